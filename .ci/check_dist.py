"""Compares what `python -m build` wrote with what git knows.

    python .ci/check_dist.py dist

The wheel has to hold the package and nothing else, the source distribution
everything.
"""

import pathlib
import subprocess
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).parents[1]


def tracked() -> set[str]:
    """Names of the files that git knows."""
    listed = subprocess.run(
        ["git", "ls-files"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(listed.stdout.splitlines())


def in_wheel(path: pathlib.Path) -> set[str]:
    """Names of the files in a wheel, its metadata left out."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    return {n for n in names if ".dist-info/" not in n}


def in_sdist(path: pathlib.Path) -> set[str]:
    """Names of the files in a source distribution, its metadata left out."""
    with tarfile.open(path) as sdist:
        names = [x.name.partition("/")[2] for x in sdist if x.isfile()]
    generated = {"PKG-INFO", "setup.cfg"}
    return {n for n in names if ".egg-info/" not in n} - generated


def compare(path: pathlib.Path, found: set[str], wanted: set[str]) -> None:
    """Ends the program if a file is missing or should not be there."""
    for word, names in (("lacks", wanted - found), ("has", found - wanted)):
        if names:
            raise SystemExit(f"{path.name} {word} {sorted(names)}")
    print(f"{path.name}: {len(found)} files")


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    known = tracked()
    package = {name for name in known if name.startswith("keras_vd/")}
    compare(wheel, in_wheel(wheel), package)
    compare(sdist, in_sdist(sdist), known)
