"""The exercises of the course, and what the book has to hold."""

import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

import keras_vd
from keras_vd import kl, layers, posteriors
from keras_vd.divergences import log_normal
from tests.helpers.models import REPOSITORY
from tests.helpers.package import public_names

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = sorted(
    (DOCS / "course").glob("[0-9]*_*.md"),
    key=lambda page: int(page.name.split("_")[0]),
)
THEORY = sorted((DOCS / "theory").glob("*.md"))


def load_solutions():
    path = DOCS / "course" / "solutions.py"
    spec = importlib.util.spec_from_file_location("solutions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


solutions = load_solutions()


def test_there_are_thirteen_pages_and_each_ends_with_an_exercise():
    numbers = [int(page.name.split("_")[0]) for page in PAGES]
    assert numbers == list(range(1, 14))
    for page in PAGES:
        _, _, exercise = page.read_text().rpartition("\n## ")
        assert exercise.startswith("Exercise\n"), page.name
        name = re.search(r":pyobject: (\w+)", exercise)[1]
        assert hasattr(solutions, name), name


def test_there_is_a_page_for_every_divergence_and_estimator():
    divergences = ["log_uniform", "ard", "gaussian", "scale_mixture"]
    gates = ["log_normal", "beta_bernoulli", "hard_concrete"]
    estimators = ["local_reparameterization", "weight_sample", "flipout"]
    others = ["shared_variances", "multiplicative_noise", "index"]
    pages = {*divergences, *gates, *estimators, *others}
    assert {page.stem for page in THEORY} == pages
    for page in THEORY:
        assert page.stem == "index" or "## Measured error" in page.read_text()


@pytest.mark.parametrize("folder", ["course", "theory"])
def test_the_index_lists_every_page(folder):
    names = {page.name for page in (PAGES if folder == "course" else THEORY)}
    text = (DOCS / folder / "index.md").read_text()
    listed = set(re.findall(r"\]\((\w+\.md)\)", text))
    assert listed == names - {"index.md"}


def test_every_test_that_a_page_names_exists():
    for page in THEORY:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())
        assert named or page.stem == "index", page.name
        for path, name in named:
            text = (REPOSITORY / path).read_text()
            assert f"def {name}(" in text, f"{page.name}: {path}::{name}"


def test_every_code_block_of_a_page_runs():
    """Blocks are cells, which run in the build, or lines for a shell."""
    for page in [*PAGES, *THEORY]:
        blocks = re.findall(r"^```(\S.*)$", page.read_text(), re.MULTILINE)
        others = {
            block
            for block in blocks
            if block != "{code-cell} python"
            and not block.startswith("{literalinclude}")
        }
        assert others <= {"shell"}, page.name
        assert page.stem == "index" or "{code-cell} python" in blocks


def test_every_cited_work_is_in_the_bibliography():
    texts = [REPOSITORY / "README.md", *DOCS.rglob("*.md")]
    texts += (REPOSITORY / "keras_vd").rglob("*.py")
    cited = {
        number
        for path in texts
        for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", path.read_text())
    }
    known = (DOCS / "references.bib").read_text()
    assert [x for x in sorted(cited) if f"arXiv:{x}" not in known] == []


def test_every_page_is_in_the_table_of_contents():
    listed = set()
    for index in DOCS.rglob("index.md"):
        folder = index.parent.relative_to(DOCS)
        for tree in re.findall(
            r"```{toctree}\n(.*?)```", index.read_text(), re.DOTALL
        ):
            names = [x for x in tree.split("\n") if x and x[0] != ":"]
            listed |= {(folder / name).as_posix() for name in names}
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for path in DOCS.rglob("*.md")
    }
    assert pages - listed == {"index"}
    assert listed <= pages


@pytest.mark.integration
def test_every_public_name_has_an_entry(tmp_path):
    """Oracle: the inventory of a book that is built without running cells."""
    # What `pip install ".[docs]"` brings.
    pytest.importorskip("sphinx")
    pytest.importorskip("keras_hub")
    from sphinx.util.inventory import InventoryFile

    command = ["-m", "sphinx", "-q", "-nW", "-D", "nb_execution_mode=off"]
    command += ["-D", "suppress_warnings=myst-nb.lexer"]
    done = subprocess.run(
        [sys.executable, *command, str(DOCS), str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    inventory = InventoryFile.loads(
        (tmp_path / "objects.inv").read_bytes(), uri=""
    )
    entries = {
        name
        for kind in inventory.data
        if kind.startswith("py:")
        for name in inventory.data[kind]
    }
    missing = [name for name in public_names() if name not in entries]
    assert missing == []


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8])
def test_page_1(keep):
    """Oracle: the closed form (1 - p) / p."""
    mean, variance = solutions.noise_of_inverted_dropout(keep)
    np.testing.assert_allclose(mean, 1.0)
    np.testing.assert_allclose(variance, (1 - keep) / keep)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_page_2(rate):
    """Oracle: the variance of the noise of binary dropout."""
    _, alpha = solutions.noise_of_inverted_dropout(1 - rate)
    np.testing.assert_allclose(solutions.drop_probability(alpha), rate)
    # The rate of the threshold that the page asks for.
    assert round(solutions.drop_probability(np.exp(3)), 2) == 0.95


def test_page_3():
    """Oracle: the library's closed form, and draws."""
    theta, sigma, s = 0.7, 0.3, 2.0
    found = solutions.gaussian_kl(theta, sigma, s)
    wanted = kl.gaussian(theta, 2 * np.log(sigma), s)
    np.testing.assert_allclose(found, float(wanted), rtol=1e-5)
    draws = theta + sigma * np.random.default_rng(0).normal(size=1_000_000)
    log_q = -0.5 * ((draws - theta) / sigma) ** 2 - np.log(sigma)
    log_p = -0.5 * (draws / s) ** 2 - np.log(s)
    np.testing.assert_allclose(found, np.mean(log_q - log_p), atol=0.01)
    assert solutions.gaussian_kl(0.0, s, s) == 0.0


def test_page_4():
    """Oracle: sums of numbers with one part in common, drawn."""
    variance, covariance, examples, batch = 4.0, 0.25, 10, 8
    rng = np.random.default_rng(0)
    common = np.sqrt(covariance) * rng.normal(size=(400_000, 1))
    own = np.sqrt(variance - covariance) * rng.normal(size=(400_000, batch))
    drawn = np.var(examples * np.mean(common + own, axis=1))
    found = solutions.gradient_variance(variance, covariance, examples, batch)
    np.testing.assert_allclose(found, drawn, rtol=0.01)


@pytest.mark.parametrize("log_alpha", [-4.0, 0.0, 4.0])
def test_page_5(log_alpha):
    """Oracle: the exact divergence, at any alpha."""
    found = solutions.log_uniform_kl(log_alpha)
    wanted = float(kl.log_uniform_exact(log_alpha))
    np.testing.assert_allclose(found, wanted, atol=0.005)


@pytest.mark.parametrize("theta", [0.01, 0.5, 10.0])
def test_page_6(theta):
    """Oracle: a search for the minimum."""

    def objective(log_sigma2):
        sigma2 = np.exp(log_sigma2)
        return 0.5 * sigma2 + 0.5 * np.log1p(theta**2 / sigma2)

    wanted = scipy.optimize.minimize_scalar(objective, bounds=(-15.0, 5.0)).x
    found = solutions.best_variance(theta)
    np.testing.assert_allclose(np.log(found), wanted, atol=1e-3)
    # What the page asks: the small one goes, the large one stays.
    log_alpha = np.log(found / theta**2)
    assert bool(log_alpha >= 3) == (theta == 0.01)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.9])
def test_page_7(share):
    """Oracle: the model that `shrink` makes."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(20, activation="relu"),
            keras.layers.Dense(15, activation="relu"),
            keras.layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        kernel, bias = layer.get_weights()
        kernel[rng.uniform(size=kernel.shape) >= share] = 0
        layer.set_weights([kernel, rng.normal(size=bias.shape)])
    small = keras_vd.shrink(model, gather_inputs=False, verbose=0)
    assert solutions.parameters_left(model) == small.count_params()


def test_page_8():
    """Oracle: quadrature of the density."""
    half, _ = scipy.integrate.quad(lambda w: 1 / w, 0.01, 2.0)
    np.testing.assert_allclose(
        solutions.mass_of_log_uniform(0.01, 2.0), 2 * half
    )
    tiny = solutions.mass_of_log_uniform(1e-30, 1e-3)
    # What the page asks: nine times as much.
    np.testing.assert_allclose(
        tiny / solutions.mass_of_log_uniform(1e-3, 1.0), 9.0
    )


@pytest.mark.parametrize("sigma", [0.1, 0.8, 1.5])
def test_page_9(sigma):
    """Oracle: the library's gates, cut off where there is nothing to cut."""
    wanted = log_normal.snr(
        np.float32([0.0]), np.float32([np.log(sigma)]), -40.0, 40.0
    )
    found = solutions.snr_of_log_normal(sigma)
    np.testing.assert_allclose(found, float(wanted[0]), rtol=1e-4)
    # What the page asks: closed from the root of log 2 on.
    edge = np.sqrt(np.log(2))
    np.testing.assert_allclose(solutions.snr_of_log_normal(edge), 1.0)


def test_page_10():
    """Oracle: draws of the weights."""
    inputs, rng = np.array([1.0, -0.5, 2.0]), np.random.default_rng(0)
    noise = 0.3 * rng.normal(size=(400_000, 3))
    one, per_step = solutions.accumulated_variance(inputs, 0.3)
    np.testing.assert_allclose(
        one, np.var(noise[:, :1] * inputs.sum()), rtol=0.01
    )
    np.testing.assert_allclose(per_step, np.var(noise @ inputs), rtol=0.01)
    # What the page asks: as many times as there are steps.
    one, per_step = solutions.accumulated_variance(np.ones(100), 0.3)
    np.testing.assert_allclose(one / per_step, 100.0)


def test_page_11():
    """Oracle: a difference of the library's divergence."""
    theta = np.random.default_rng(0).normal(size=50).astype("float32")

    def total(log_sigma2):
        log_alpha = log_sigma2 - np.log(theta**2)
        return float(keras.ops.sum(kl.ard(log_alpha.astype("float32"))))

    found = solutions.slope_of_shared_kl(theta, -1.0)
    np.testing.assert_allclose(
        found, (total(-0.9) - total(-1.1)) / 0.2, rtol=1e-3
    )
    assert -25 < found < 0


@pytest.mark.parametrize(("heads", "size"), [(1, 2), (4, 8)])
def test_page_12(heads, size):
    """Oracle: layers of Keras with one head more."""

    def count(heads):
        layer = keras.layers.MultiHeadAttention(heads, size)
        layer.build((None, 3, 5), (None, 3, 5))
        return layer.count_params()

    total, head = solutions.attention_parameters(5, heads, size)
    assert total == count(heads)
    assert head == count(heads + 1) - count(heads)


def test_page_13():
    """Oracle: what `predict_mc` says of the same draws."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.VDDense(
                3, posterior=posteriors.Gaussian(log_sigma2_init=0.0)
            ),
            keras.layers.Softmax(),
        ]
    )
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    drawn = keras_vd.predict_mc(
        model, x, 20, seed=0, return_samples=True, verbose=0
    )
    found = solutions.mutual_information(drawn.samples.astype("float64"))
    np.testing.assert_allclose(found, drawn.mutual_information, atol=1e-5)
    # What the page asks.
    np.testing.assert_allclose(
        solutions.mutual_information(np.eye(3)[:, None]), np.log(3)
    )
