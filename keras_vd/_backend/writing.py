"""Files and folders that are put in place complete and checked, or not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

if os.name == "posix":
    import fcntl

T = TypeVar("T")

_REPLACED = "replaced"


def write_checked(
    path: str | os.PathLike[str],
    write: Callable[[Path], object],
    check: Callable[[Path], object],
    is_folder: bool = False,
) -> None:
    """Write a file or folder beside its place, check it, then move it there.

    Whatever fails, and if the process is killed, what was there before is
    kept. What killed writers of the same path have left is removed.

    Args:
        path: Where the file or folder is to be.
        write: Writes to the path that it is given, which ends in the same name
            as `path`.
        check: Reads what was written; raises if it is wrong.
        is_folder: Whether a folder is written, which may replace a SavedModel
            or an empty folder.

    Raises:
        OSError: if it cannot be written or read back, with the path.
    """
    target = Path(os.path.realpath(path))
    _check_place(target, is_folder)
    with contextlib.ExitStack() as stack:
        with _naming(target, "prepare"):
            _clear(target)
            beside = stack.enter_context(_folder_beside(target))
        new = beside / target.name
        with _naming(target, "write"):
            write(new)
            _flush(new)
        check(new)
        with _naming(target, "replace"):
            _move(new, target, beside / _REPLACED)
            _flush_folder(target.parent)


def read_back(path: Path, reader: Callable[[Path], T]) -> T:
    """Return what `reader` reads from a file; raise an OSError if it fails."""
    try:
        return reader(path)
    # Runtimes raise errors of many types for a file that is cut short.
    except Exception as error:
        raise OSError(
            f"What was written for '{path.name}' cannot be read back: {error}"
        ) from error


def _check_place(target: Path, is_folder: bool) -> None:
    if not target.is_dir():
        if is_folder and target.exists():
            raise NotADirectoryError(
                f"Argument `path` must name a folder. '{target}' is a file."
            )
        return
    if not is_folder:
        raise IsADirectoryError(
            f"Argument `path` must name a file. '{target}' is a folder."
        )
    names = os.listdir(target)
    if names and "saved_model.pb" not in names:
        raise FileExistsError(
            "Argument `path` must name a SavedModel, an empty folder or "
            f"nothing yet. '{target}' holds other things: {sorted(names)[:5]}."
        )


@contextlib.contextmanager
def _naming(target: Path, verb: str) -> Iterator[None]:
    """Turn errors of any type into an OSError with the path."""
    try:
        yield
    # TensorFlow has errors of its own for a disk that is full.
    except Exception as error:
        message = f"Could not {verb} '{target}': {error}"
        if isinstance(error, OSError) and error.errno:
            reason = f"could not {verb} it: {error.strerror}"
            raise OSError(error.errno, reason, str(target)) from error
        raise OSError(message) from error


def _flush(new: Path) -> None:
    """Wait until a file, or all that a folder holds, is on the disk."""
    for file in [new] if new.is_file() else sorted(new.rglob("*")):
        if file.is_file():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        else:
            _flush_folder(file)


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prefix(target: Path) -> str:
    """Return how the names of the folders in which `target` is written begin.

    `tempfile` adds 8 letters, digits and underscores.
    """
    return f".writing-{target.name}-"


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """Make a folder to write to, and lock it as long as it is in use.

    It is beside `target`, as only a move within one file system is atomic.
    """
    while True:
        made = tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent)
        folder = Path(made)
        lock = _lock(folder)
        if folder.exists():
            break
        # Before it was locked, another writer has removed it, as if it were the
        # folder of a process that was killed.
        _unlock(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _clear(target: Path) -> None:
    """Remove folders that killed writers of `target` have left; bring it back.

    A process that is killed while it replaces a folder may leave the old one
    inside its own folder. So the folders of other targets are left alone.
    """
    name = re.compile(re.escape(_prefix(target)) + r"\w{8}")
    folders = [x for x in target.parent.iterdir() if name.fullmatch(x.name)]
    for folder in sorted(folders):
        lock = _lock(folder)
        if lock is None:
            continue
        try:
            replaced = folder / _REPLACED
            if replaced.exists() and (folder / target.name).exists():
                if not target.exists():
                    os.rename(replaced, target)
            if not replaced.exists() or target.exists():
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            _unlock(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder, and return the descriptor that holds the lock.

    Return None if another process has locked it, or if the system cannot.
    """
    if os.name != "posix":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _move(new: Path, target: Path, replaced: Path) -> None:
    if not target.is_dir():
        os.replace(new, target)
        return
    if _exchange(new, target):
        return
    # A folder with files in it cannot be replaced in one step.
    os.rename(target, replaced)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(replaced, target)
        raise


def _exchange(new: Path, target: Path) -> bool:
    """Swap two folders in one step; return False where the system cannot."""
    if os.name != "posix":
        return False
    library = ctypes.CDLL(None)
    names = os.fsencode(new), os.fsencode(target)
    here, swap = ctypes.c_int(-100), ctypes.c_uint(2)
    if hasattr(library, "renameat2"):  # Linux
        return library.renameat2(here, names[0], here, names[1], swap) == 0
    if hasattr(library, "renamex_np"):  # macOS
        return library.renamex_np(*names, swap) == 0
    return False
