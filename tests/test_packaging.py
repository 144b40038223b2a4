"""What is published is whole, and says the same everywhere."""

import email
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml

import keras_vd

ROOT = pathlib.Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
YAML = [
    *sorted(GITHUB.rglob("*.yml")),
    ROOT / "CITATION.cff",
    ROOT / ".pre-commit-config.yaml",
]
# Folders and files of the repository as commands name them.
PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|toml|cff)")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The metadata that setuptools writes before it packs anything."""
    folder = tmp_path_factory.mktemp("metadata")
    # Not beside setup.py, where an older list of files would add to this one.
    command = ["setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (info,) = folder.glob("*.egg-info")
    return info


@pytest.fixture(scope="module")
def metadata(built):
    return email.message_from_string((built / "PKG-INFO").read_text())


@pytest.fixture(scope="module")
def packed(built):
    """Names of the files in the source distribution."""
    return set((built / "SOURCES.txt").read_text().splitlines())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_the_source_distribution_holds_what_git_knows(packed):
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("git cannot read the checkout")
    known = {x for x in listed.stdout.splitlines() if (ROOT / x).exists()}
    assert "tests/clients/saved_model.c" in known
    assert known - packed == set()


def test_every_module_is_packed(built, packed):
    """MANIFEST.in names no file of the package: setup.py has to find it."""
    assert "keras_vd" not in (ROOT / "MANIFEST.in").read_text()
    package = {name_of(x) for x in (ROOT / "keras_vd").rglob("*.py")}
    assert package | {"keras_vd/py.typed"} == {
        name for name in packed if name.startswith("keras_vd/")
    }
    assert (built / "top_level.txt").read_text().split() == ["keras_vd"]


def test_one_place_names_the_repository(metadata, packed):
    root = metadata["Home-page"]
    links = [x.split(", ")[1] for x in metadata.get_all("Project-URL")]
    assert len(links) == 4
    owner, name = root.split("/")[-2:]
    pages = f"https://{owner}.github.io/{name}/"
    assert all(x in (root, pages) or x.startswith(f"{root}/") for x in links)
    naming = {
        name
        for name in packed
        if name.endswith((".py", ".md", ".yml", ".yaml", ".toml", ".cff"))
        if root in (ROOT / name).read_text(encoding="utf-8")
    }
    assert naming == {"setup.py"}
    assert (ROOT / "setup.py").read_text().count(root) == 1


def test_links_of_the_description_lead_somewhere(metadata):
    targets = re.findall(r"\]\(([^)\s]+)\)", metadata.get_payload())
    root = f"{metadata['Home-page']}/"
    ours = [x for x in targets if x.startswith(root)]
    assert ours
    for target in ours:
        kind, tag, path = target.removeprefix(root).split("/", 2)
        assert tag == f"v{keras_vd.__version__}"
        assert kind == ("raw" if path.endswith(".png") else "blob")
        assert (ROOT / path).exists(), path
    relative = [x for x in targets if (ROOT / x.partition("#")[0]).is_file()]
    assert relative == []


@pytest.mark.parametrize("path", YAML, ids=name_of)
def test_yaml_can_be_read(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_citation_names_the_version_and_the_license(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == keras_vd.__version__ == metadata["Version"]
    assert citation["license"] == metadata["License-Expression"]
    assert metadata["License-File"] == "LICENSE"
    papers = {
        (x["authors"][0]["family-names"], x["year"])
        for x in citation["references"]
    }
    assert {("Kingma", 2015), ("Molchanov", 2017)} <= papers


def test_the_changelog_begins_with_what_is_unreleased():
    headings = re.findall(
        r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert headings[0] == "[Unreleased]"
    released = re.compile(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d")
    assert [x for x in headings[1:] if not released.fullmatch(x)] == []


def jobs_of(path):
    return yaml.safe_load(path.read_text())["jobs"].values()


def commands_of(path):
    """Words of each command line that the workflow at `path` runs."""
    for job in jobs_of(path):
        for step in job.get("steps", ()):
            for line in step.get("run", "").splitlines():
                yield shlex.split(line)


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflows_name_what_exists(path, metadata):
    extras = {*metadata.get_all("Provides-Extra"), "${{ matrix.backend }}"}
    for words in commands_of(path):
        for word in words:
            is_made = word.startswith(("dist", "wheel/", "$"))
            if PATH.fullmatch(word) and not is_made:
                assert (ROOT / word).exists(), word
            wanted = re.search(r"\[([\w,${}. -]+)\]", word)
            if wanted and "install" in words:
                assert set(wanted[1].split(",")) <= extras, word
    for job in jobs_of(path):
        called = job.get("uses")
        if called:
            assert (ROOT / called).is_file(), called


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflows_may_do_little_and_pin_what_they_use(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert path.stem in workflow["concurrency"]["group"]
    for job in jobs_of(path):
        for step in job.get("steps", ()):
            if "uses" in step:
                assert re.search(r"@(release/)?v\d+$", step["uses"]), step


def test_a_tag_publishes_packages_and_book():
    """Nothing is published that was not built and compared with the tag."""
    (release,) = (x for x in WORKFLOWS if x.name == "release.yml")
    workflow = yaml.safe_load(release.read_text())
    jobs = workflow["jobs"]
    # YAML 1.1 reads `on` as true.
    assert workflow[True] == {"push": {"tags": ["v*"]}}

    def before(name):
        needs = jobs[name].get("needs", [])
        direct = [needs] if isinstance(needs, str) else needs
        return {*direct, *(x for other in direct for x in before(other))}

    for action, built in (
        ("pypa/gh-action-pypi-publish", {"packages", "book"}),
        ("actions/deploy-pages", {"book"}),
    ):
        (name,) = (
            name
            for name, job in jobs.items()
            for step in job.get("steps", ())
            if step.get("uses", "").startswith(action)
        )
        assert before(name) >= built | {"version"}
        assert jobs[name]["permissions"]["id-token"] == "write"


def test_backends_in_the_matrix_are_extras(metadata):
    matrices = [
        job["strategy"]["matrix"]
        for path in WORKFLOWS
        for job in jobs_of(path)
        if "strategy" in job
    ]
    assert len(matrices) == 2
    for matrix in matrices:
        assert matrix["backend"] == ["tensorflow", "jax", "torch"]
        assert set(matrix["backend"]) <= set(metadata.get_all("Provides-Extra"))


def test_pythons_are_the_same_everywhere(metadata):
    """Workflows run what the classifiers promise, from the oldest on."""
    classifiers = "\n".join(metadata.get_all("Classifier"))
    promised = re.findall(r":: (3\.\d+)$", classifiers, re.MULTILINE)
    oldest = promised[0]
    assert metadata["Requires-Python"] == f">={oldest}"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert settings["mypy"]["python_version"] == oldest
    assert settings["ruff"]["target-version"] == f"py{oldest}".replace(".", "")
    (tests,) = (x for x in WORKFLOWS if x.name == "tests.yml")
    job = yaml.safe_load(tests.read_text())["jobs"]["tests"]
    assert job["strategy"]["matrix"]["python"] == [oldest, promised[-1]]
    used = {
        step["with"]["python-version"]
        for path in WORKFLOWS
        for job in jobs_of(path)
        for step in job.get("steps", ())
        if "python-version" in step.get("with", {})
    }
    assert used - {"${{ matrix.python }}"} <= set(promised)
