import ast
import graphlib
import importlib
import inspect
import json
import pathlib
import warnings

import keras
import pytest

import keras_vd
from tests.helpers import package
from tests.helpers.models import REPOSITORY, run_python

PACKAGE = pathlib.Path(keras_vd.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = ["keras_vd", *package.MODULES]
# Optional: needed by plots, examples and one layer, or installed by users who
# want them.
OPTIONAL = (
    "constriction",
    "keras_hub",
    "matplotlib",
    "scipy",
    "sklearn",
    "tensorboard",
    "tensorflow_probability",
    "tensorflow_datasets",
)


@pytest.mark.integration
def test_import_needs_nothing_optional_and_warns_of_nothing():
    """Blocks the optional packages, and all backends but the running one.

    Keras itself tries to import some of them and does without; warnings of
    other packages do not count.
    """
    backend = keras.backend.backend()
    blocked = {*OPTIONAL, "tensorflow", "torch"} - {backend}
    if backend == "jax":
        blocked.remove("scipy")  # JAX itself needs it
    code = """
import importlib, json, sys, warnings
blocked, modules = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))
import keras
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in modules:
        importlib.import_module(name)
    sys.modules["keras_vd"].layers.VDDense(2).build((None, 3))
loaded = {n.partition(".")[0] for n, m in sys.modules.items() if m}
ours = [str(w) for w in caught if "keras_vd" in w.filename]
print(json.dumps([sorted(loaded & set(blocked)), ours]))
"""
    with_optional = {
        *("keras_vd.drawing", "keras_vd.plots"),
        "keras_vd.layers.position_embedding",
    }
    modules = [name for name in MODULES if name not in with_optional]
    result = run_python(code, json.dumps([sorted(blocked), modules]))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [[], []]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_compiling_warns_of_nothing(path):
    # An import from a cache would not show it.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compile(path.read_text(), str(path), "exec")
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.core
@pytest.mark.parametrize("module", MODULES)
def test_public_names_exist_and_are_documented(module):
    module = importlib.import_module(module)
    assert module.__doc__
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), name
    for name, value in vars(module).items():
        is_ours = getattr(value, "__module__", None) == module.__name__
        if is_ours and callable(value) and not name.startswith("_"):
            # Of its own: a class inherits its Keras layer's docstring.
            is_class = inspect.isclass(value)
            assert vars(value)["__doc__"] if is_class else value.__doc__, name


def test_all_is_complete():
    # What is imported at the top is public, now or when it is first named.
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        if node.module.partition(".")[0] == "keras_vd"
        for alias in node.names
    }
    assert imported == set(keras_vd.__all__)


@pytest.mark.integration
def test_what_few_need_loads_when_it_is_named():
    code = """
import sys
import keras_vd
later = {"keras_vd.deployment", "keras_vd.plots", "keras_vd.reports"}
assert not later & set(sys.modules), later & set(sys.modules)
assert {"deployment", "plots", "reports"} <= set(dir(keras_vd))
assert keras_vd.reports.ShrinkReport.__module__ == "keras_vd.shrinking.report"
assert keras_vd.deployment.export_onnx and keras_vd.plots.plot_gates
try:
    keras_vd.nothing
except AttributeError as error:
    print(error)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "'keras_vd' has no attribute 'nothing'" in result.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_functions_stay_small(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            # What a function tells its users is no part of its length.
            length -= len((ast.get_docstring(node) or "").splitlines())
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def part_of(module):
    """Part of the package that a dotted module name belongs to."""
    _, _, rest = module.partition(".")
    return rest.partition(".")[0] or "keras_vd"


def imports_of(path):
    """Parts of the package that the file at `path` imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules = [node.module]
            if node.module == "keras_vd":
                modules = [f"keras_vd.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            if module.partition(".")[0] == "keras_vd":
                yield part_of(module)


def test_imports_point_down():
    line = {
        part: number
        for number, parts in enumerate(package.LAYERS_OF_THE_PACKAGE)
        for part in parts
    }
    graph = {}
    for path in FILES:
        relative = path.relative_to(PACKAGE).with_suffix("").parts
        part = "keras_vd" if relative == ("__init__",) else relative[0]
        for imported in imports_of(path):
            down = line[imported] >= line[part]
            assert down, f"{path.name} imports {imported}, which is above it"
            if imported != part:
                graph.setdefault(part, set()).add(imported)
    # Raises CycleError if parts on one line import each other.
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("divergences") < order.index("posteriors")


def test_no_test_imports_another():
    # What tests share is in tests/helpers.
    folder = REPOSITORY / "tests"
    shared = [
        (path.name, node.module)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("tests.")
        and not node.module.startswith("tests.helpers")
    ]
    assert shared == []
