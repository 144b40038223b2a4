"""A file that cannot be written leaves the old one as it was."""

import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vd import deployment
from keras_vd._backend import writing
from tests.helpers.arrays import random_inputs
from tests.helpers.models import run_python

BACKEND = keras.backend.backend()
FOLDERS = pytest.mark.skipif(
    BACKEND == "torch", reason="PyTorch writes no SavedModel."
)


def model(units=3):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])


def content(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# With files of at most 3 kB, which are fewer than either takes.
FULL = """
import resource, signal, sys
import keras, keras_vd
model = keras.Sequential([keras.Input((90,)), keras.layers.Dense(90)])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for function, path in (
    (keras_vd.deployment.save_compressed, sys.argv[1]),
    (keras_vd.deployment.export_saved_model, sys.argv[2]),
)[: int(sys.argv[3])]:
    try:
        function(model, path)
    except OSError as error:
        print("TOLD" if path in str(error) else repr(error))
"""


@pytest.mark.integration
@pytest.mark.core
def test_a_full_disk_keeps_the_old_file(tmp_path):
    file, folder = tmp_path / "m.keras", tmp_path / "m"
    deployment.save_compressed(model(), file)
    if can_export := BACKEND != "torch":
        deployment.export_saved_model(model(), folder)
    before = content(tmp_path)
    result = run_python(FULL, file, folder, 1 + can_export)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["TOLD"] * (1 + can_export), result.stdout
    assert content(tmp_path) == before
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.core
def test_a_place_that_cannot_be_written_is_named(tmp_path):
    # Below a regular file: permissions do not stop the root user.
    (tmp_path / "file").write_text("mine")
    for path in ("file/m.keras", "missing/m.keras"):
        with pytest.raises(OSError, match="could not prepare") as told:
            deployment.save_compressed(model(), tmp_path / path)
        assert str(tmp_path / path) in str(told.value)
    assert content(tmp_path) == {
        (tmp_path / "file").relative_to(tmp_path): b"mine"
    }


def test_what_is_no_file_of_ours_is_kept(tmp_path):
    (tmp_path / "m.keras").mkdir()
    with pytest.raises(IsADirectoryError, match="`path` must name a file"):
        deployment.save_compressed(model(), tmp_path / "m.keras")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")

    def write(new):
        new.mkdir()
        (new / "saved_model.pb").write_text("new")

    def none(new):
        pass

    with pytest.raises(FileExistsError, match="holds other things"):
        writing.write_checked(tmp_path / "home", write, none, is_folder=True)
    path = tmp_path / "home" / "thesis.txt"
    with pytest.raises(NotADirectoryError, match="is a file"):
        writing.write_checked(path, write, none, is_folder=True)
    assert path.read_text() == "mine"


@pytest.mark.core
def test_other_outputs_are_an_error(tmp_path, monkeypatch):
    deployment.save_compressed(model(), path := tmp_path / "m.keras")
    before = content(tmp_path)
    save = keras.Model.save

    def save_wrong(self, *args, **kwargs):
        kernel, bias = self.get_weights()
        self.set_weights([1.01 * kernel, bias])
        save(self, *args, **kwargs)
        self.set_weights([kernel, bias])

    monkeypatch.setattr(keras.Model, "save", save_wrong)
    with pytest.raises(RuntimeError, match="is allowed"):
        deployment.save_compressed(model(), path)
    assert content(tmp_path) == before


@pytest.mark.core
def test_a_file_cut_short_is_an_error(tmp_path, monkeypatch):
    deployment.save_compressed(model(), path := tmp_path / "m.keras")
    before = content(tmp_path)
    flush = writing._flush

    def cut(new):
        new.write_bytes(new.read_bytes()[:-100])
        flush(new)

    monkeypatch.setattr(writing, "_flush", cut)
    with pytest.raises(OSError, match="cannot be read back"):
        deployment.save_compressed(model(), path)
    assert content(tmp_path) == before


def saved_as(text):
    def write(new):
        new.mkdir()
        (new / "saved_model.pb").write_text(text)

    return write


def unchecked(new):
    pass


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="Linux swaps folders.")
def test_a_folder_is_there_all_the_time(tmp_path):
    target = tmp_path / "m"
    writing.write_checked(target, saved_as("0"), unchecked, is_folder=True)
    missing, is_over = [], threading.Event()

    def look():
        while not is_over.is_set():
            if not (target / "saved_model.pb").exists():
                missing.append(True)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for i in range(200):
            text = str(i)
            writing.write_checked(
                target, saved_as(text), unchecked, is_folder=True
            )
            assert (target / "saved_model.pb").read_text() == text
    finally:
        is_over.set()
        reader.join()
    assert not missing
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# Dies while the new folder is checked, or between the two renames of a system
# that swaps no folders.
KILLED = """
import os, signal, sys
from pathlib import Path
from keras_vd._backend import writing

def write(new):
    new.mkdir()
    (new / "saved_model.pb").write_text("killed")

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def rename_and_die(old, new, rename=os.rename):
    rename(old, new)
    die()

check = die
if sys.argv[2] == "replaces":
    check = str
    writing._exchange = lambda *paths: False
    os.rename = rename_and_die
writing.write_checked(Path(sys.argv[1]), write, check, is_folder=True)
"""


@pytest.mark.integration
@pytest.mark.parametrize("when", ["checks", "replaces"])
def test_what_a_killed_process_left_is_cleared(when, tmp_path):
    target = tmp_path / "m"
    writing.write_checked(target, saved_as("old"), unchecked, is_folder=True)
    result = run_python(KILLED, target, when)
    assert result.returncode == -9, result.stderr
    assert list(tmp_path.glob(".writing-*"))
    assert target.exists() == (when == "checks")

    def fail(new):
        raise OSError(5, "Input/output error")

    # Back before anything new is there.
    with pytest.raises(OSError, match="could not write"):
        writing.write_checked(target, fail, unchecked, is_folder=True)
    assert content(tmp_path) == {Path("m/saved_model.pb"): b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.integration
def test_what_others_have_left_stays(tmp_path):
    """The old folder of another target may be in what its writer left."""
    target = tmp_path / "m"
    writing.write_checked(target, saved_as("old"), unchecked, is_folder=True)
    assert run_python(KILLED, target, "replaces").returncode == -9
    assert not target.exists()
    # Names that begin alike, and a folder of the user's.
    (tmp_path / ".writing-mine").mkdir()
    for name in ("other", "m-2", "m-12345678"):
        writing.write_checked(
            tmp_path / name, saved_as(name), unchecked, is_folder=True
        )

    def fail(new):
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="could not write"):
        writing.write_checked(target, fail, unchecked, is_folder=True)
    assert (target / "saved_model.pb").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".writing-mine", "m", "m-12345678", "m-2", "other")
    ]


def test_what_others_are_writing_stays(tmp_path):
    target, other = tmp_path / "m", tmp_path / "other"

    def write(new):
        saved_as("other")(new)
        # Another writer in the same folder begins and ends meanwhile.
        writing.write_checked(target, saved_as("m"), unchecked, is_folder=True)

    writing.write_checked(other, write, unchecked, is_folder=True)
    assert (target / "saved_model.pb").read_text() == "m"
    assert (other / "saved_model.pb").read_text() == "other"


@pytest.mark.parametrize("failing", ["first", "second"])
def test_a_folder_comes_back_if_it_cannot_be_replaced(
    failing, tmp_path, monkeypatch
):
    target = tmp_path / "m"
    write, none = saved_as, unchecked
    writing.write_checked(target, write("old"), none, is_folder=True)
    before = content(tmp_path)
    rename, calls = writing.os.rename, []

    def fail(old, new):
        calls.append(new)
        if len(calls) == (1 if failing == "first" else 2):
            raise OSError(5, "Input/output error")
        rename(old, new)

    with monkeypatch.context() as patch:
        # As on a system that swaps no folders.
        patch.setattr(writing, "_exchange", lambda *paths: False)
        patch.setattr(writing.os, "rename", fail)
        with pytest.raises(OSError, match="could not replace") as told:
            writing.write_checked(target, write("new"), none, is_folder=True)
    assert str(target) in str(told.value)
    assert content(tmp_path) == before
    writing.write_checked(target, write("new"), none, is_folder=True)
    assert (target / "saved_model.pb").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_link_stays_a_link(tmp_path):
    deployment.save_compressed(model(), real := tmp_path / "real.keras")
    (link := tmp_path / "link.keras").symlink_to(real)
    deployment.save_compressed(changed := model(5), link)
    assert link.is_symlink()
    x = random_inputs(2, 4)
    np.testing.assert_allclose(
        keras.models.load_model(real).predict(x, verbose=0),
        changed.predict(x, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )
