"""Ways to damage a file, or to make one that does harm.

Functions whose names begin with `folder` are for SavedModels, the others for
`.keras` files.
"""

from __future__ import annotations

import base64
import io
import json
import marshal
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
BOMB = 2**28  # bytes, of zeros


class Damage:
    """A file to damage.

    Attributes:
        path: The file or folder.
        generator: Says where and how.
        canary: A path that code in the file tries to write.
        is_other_model: Whether the file, as damaged, describes another model.
        claimed: Bytes that the damaged file says its arrays take.
    """

    def __init__(
        self, path: Path, generator: np.random.Generator, canary: Path
    ) -> None:
        self.path = path
        self.generator = generator
        self.canary = canary
        self.is_other_model = False
        self.claimed = 0

    def pick(self, items: Any) -> Any:
        """One of the items."""
        items = list(items)
        return items[self.generator.integers(len(items))]

    def members(self) -> dict[str, bytes]:
        """Contents of a zip file."""
        with zipfile.ZipFile(self.path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def write(
        self,
        members: dict[str, bytes],
        more: dict[str, bytes] | None = None,
        compression: int = zipfile.ZIP_STORED,
    ) -> None:
        """Write a zip file anew, with `more` members whatever their names."""
        with zipfile.ZipFile(self.path, "w", compression) as archive:
            for name, content in [*members.items(), *(more or {}).items()]:
                archive.writestr(name, content)

    def edit_config(self, edit: Callable[[Any], None]) -> None:
        """Change the configuration."""
        members = self.members()
        config = json.loads(members[CONFIG])
        edit(config)
        members[CONFIG] = json.dumps(config).encode()
        self.write(members)

    def edit_weights(self, edit: Callable[[Any], None]) -> None:
        """Change the file of weights."""
        members = self.members()
        buffer = io.BytesIO(members[WEIGHTS])
        with h5py.File(buffer, "r+") as file:
            edit(file)
        members[WEIGHTS] = buffer.getvalue()
        self.write(members)


def _flipped(damage: Damage, content: bytes, most: int = 8) -> bytes:
    array = np.frombuffer(content, np.uint8).copy()
    if len(array):
        number = int(damage.generator.integers(1, most + 1))
        places = damage.generator.integers(0, len(array), number)
        bits = damage.generator.integers(0, 8, number)
        np.bitwise_xor.at(array, places, (1 << bits).astype(np.uint8))
    return array.tobytes()


def flip_bits(damage: Damage) -> None:
    """Up to 8 bits anywhere in the file."""
    damage.path.write_bytes(_flipped(damage, damage.path.read_bytes()))


def flip_member(damage: Damage) -> None:
    """Up to 8 bits of a member, whose checksum is right all the same."""
    members = damage.members()
    name = damage.pick(members)
    members[name] = _flipped(damage, members[name])
    damage.is_other_model = True
    damage.write(members)


def truncate(damage: Damage) -> None:
    """Keep only a beginning."""
    content = damage.path.read_bytes()
    damage.path.write_bytes(content[: damage.generator.integers(len(content))])


def swap_members(damage: Damage) -> None:
    """Two members under each other's names."""
    members = damage.members()
    one, other = damage.generator.permutation(list(members))[:2]
    members[one], members[other] = members[other], members[one]
    damage.write(members)


def drop_member(damage: Damage) -> None:
    """A member is missing."""
    members = damage.members()
    members.pop(damage.pick([CONFIG, WEIGHTS]))
    damage.write(members)


def bomb(damage: Damage) -> None:
    """A member that is 1,000 times as large as the file."""
    members = damage.members()
    name = damage.pick([*members, "assets/large", WEIGHTS])
    members[name] = members.get(name, b"") * (damage.generator.random() < 0.5)
    members[name] += bytes(BOMB)
    damage.write(members, compression=zipfile.ZIP_DEFLATED)


def bomb_in_weights(damage: Damage) -> None:
    """A compressed array of zeros that is larger than it should be."""

    def edit(file: Any) -> None:
        place = damage.pick(_datasets(file))
        dtype = file[place].dtype
        del file[place]
        file.create_dataset(
            place, (BOMB // 4,), dtype, compression="gzip", chunks=(2**16,)
        )

    damage.claimed = BOMB
    damage.edit_weights(edit)


def leave_folder(damage: Damage) -> None:
    """Members whose names lead out of the folder."""
    name = damage.pick(
        [
            "../../escaped",
            "assets/../../../escaped",
            str(damage.canary.parent / "escaped"),
            "assets/" + str(damage.canary.parent / "escaped"),
            "..\\..\\escaped",
            "assets/a/../../../../escaped",
        ]
    )
    damage.write(damage.members(), {name: b"escaped"})


def link(damage: Damage) -> None:
    """A member that is a link out of the folder, and one below it."""
    members = damage.members()
    entry = zipfile.ZipInfo("assets/out")
    entry.create_system = 3
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(damage.path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(entry, str(damage.canary.parent))
        archive.writestr("assets/out/escaped", b"escaped")


def repeat_member(damage: Damage) -> None:
    """The configuration twice, the second one with code."""
    members = damage.members()
    config = json.loads(members[CONFIG])
    _layers(config)[-1]["config"]["activation"] = _code(damage)
    with zipfile.ZipFile(damage.path, "a") as archive:
        archive.writestr(CONFIG, json.dumps(config))


def _code(damage: Damage) -> dict[str, Any]:
    """A function that writes the canary, as Keras serializes it."""
    source = f"open({str(damage.canary)!r}, 'w').close() or x"
    function = eval(f"lambda x: {source}")
    code = base64.b64encode(marshal.dumps(function.__code__)).decode()
    return {
        "class_name": "__lambda__",
        "config": {"value": [code, None, None], "code": code},
    }


def run_code(damage: Damage) -> None:
    """A function of Python in the place of any part of the configuration."""
    code = _code(damage)
    wrapped = {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"function": code, "name": "l", "arguments": {}},
        "registered_name": None,
    }
    value = damage.pick([code, wrapped])

    def edit(config: Any) -> None:
        places = list(_places(config))
        holder, key = damage.pick(places)
        holder[key] = value

    damage.edit_config(edit)


def name_functions(damage: Damage) -> None:
    """Functions and classes that no model needs."""
    module, name = damage.pick(
        [
            ("os", "system"),
            ("builtins", "eval"),
            ("keras.utils", "get_file"),
            ("keras.saving", "load_model"),
            ("keras.config", "enable_unsafe_deserialization"),
            ("keras.src.utils.python_utils", "func_load"),
            ("keras_vd.posteriors.posterior", "Posterior"),
            ("subprocess", "Popen"),
        ]
    )
    value = damage.pick(
        [
            {
                "module": module,
                "class_name": "function",
                "config": name,
                "registered_name": name,
            },
            {
                "module": module,
                "class_name": name,
                "config": {"args": f"touch {damage.canary}"},
                "registered_name": name,
            },
            {
                "module": "keras.layers",
                "class_name": "TFSMLayer",
                "config": {"filepath": str(damage.canary.parent)},
                "registered_name": None,
            },
        ]
    )

    def edit(config: Any) -> None:
        holder, key = damage.pick(_places(config))
        holder[key] = value

    damage.edit_config(edit)


def pickled(damage: Damage) -> None:
    """A pickle in the place of the weights."""
    members = damage.members()
    members.pop(WEIGHTS)
    payload = _Payload(str(damage.canary))
    if damage.generator.random() < 0.5:
        members[damage.pick([WEIGHTS, "model.weights.npz"])] = pickle.dumps(
            payload
        )
    else:
        buffer = io.BytesIO()
        np.savez(buffer, first=np.array([payload], object))
        members["model.weights.npz"] = buffer.getvalue()
    damage.write(members)


class _Payload:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.canary, "w")


def change_config(damage: Damage) -> None:
    """A value in the configuration that makes no sense."""
    value = damage.pick(
        ["no such name", -(10**9), float("nan"), 1e308, [], {}, True, "", [[]]]
    )

    def edit(config: Any) -> None:
        holder, key = damage.pick(_places(config))
        holder[key] = value

    damage.is_other_model = True
    damage.edit_config(edit)


def drop_config(damage: Damage) -> None:
    """A key of the configuration is missing."""

    def edit(config: Any) -> None:
        places = [x for x in _places(config) if isinstance(x[0], dict)]
        holder, key = damage.pick(places)
        del holder[key]

    damage.is_other_model = True
    damage.edit_config(edit)


def claim_units(damage: Damage) -> None:
    """A layer of absurd size."""
    units = damage.pick([10**7, 10**9, 10**12, 2**63])

    def edit(config: Any) -> None:
        layer = damage.pick(
            x for x in _layers(config) if "units" in x["config"]
        )
        place = damage.pick(["units", "build_config"])
        if place == "units":
            layer["config"]["units"] = units
        else:
            layer["build_config"] = {"input_shape": [None, units]}

    damage.claimed = 2**62
    damage.edit_config(edit)


def claim_shape(damage: Damage) -> None:
    """An array that is absurdly large and holds nothing."""

    def edit(file: Any) -> None:
        place = damage.pick(_datasets(file))
        dtype = file[place].dtype
        rank = max(1, len(file[place].shape))
        del file[place]
        shape = damage.pick([(2**20,) * rank, (2**34,) + (1,) * (rank - 1)])
        chunks = tuple(min(size, 16) for size in shape)
        file.create_dataset(place, shape, dtype, chunks=chunks)
        damage.claimed = math.prod(shape) * dtype.itemsize

    damage.edit_weights(edit)


def change_array(damage: Damage) -> None:
    """An array of another shape or type, with NaN, missing, or one more."""

    def edit(file: Any) -> None:
        place = damage.pick(_datasets(file))
        old = file[place][()]
        how = damage.pick(["shape", "dtype", "missing", "more", "group"])
        if how != "more":
            del file[place]
        if how == "shape":
            file[place] = np.zeros((*old.shape, 2), old.dtype)
        elif how == "dtype":
            file[place] = np.full(old.shape, b"text")
        elif how == "group":
            file.create_group(place)
        elif how == "more":
            file[f"{place}_more"] = old

    damage.edit_weights(edit)


def link_array(damage: Damage) -> None:
    """An array that is in another file, or loops."""

    def edit(file: Any) -> None:
        place = damage.pick(_datasets(file))
        old = file[place]
        shape, dtype = old.shape, old.dtype
        del file[place]
        how = damage.pick(["external", "storage", "soft", "loop"])
        if how == "external":
            file[place] = h5py.ExternalLink("/etc/passwd", "/x")
        elif how == "storage" and shape:
            size = int(np.prod(shape)) * dtype.itemsize
            file.create_dataset(
                place, shape, dtype, external=[("/etc/passwd", 0, size)]
            )
        elif how == "soft":
            file[place] = h5py.SoftLink("/no/such/place")
        else:
            file[place] = h5py.SoftLink(f"/{place}")

    damage.edit_weights(edit)


def _datasets(file: Any) -> list[str]:
    found: list[str] = []
    file.visititems(
        lambda name, item: (
            found.append(name) if isinstance(item, h5py.Dataset) else None
        )
    )
    return found


def _layers(config: Any) -> list[Any]:
    return [x for x in config["config"]["layers"] if "Input" not in str(x)[:99]]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in nested dictionaries and lists, the outermost first."""
    keys: Any = range(len(value)) if isinstance(value, list) else value
    for key in list(keys):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def _file(damage: Damage) -> Path:
    files = [x for x in sorted(damage.path.rglob("*")) if x.is_file()]
    # The graph and the weights matter more than what is read by nobody.
    sizes = np.array([x.stat().st_size for x in files], float)
    place = damage.generator.choice(len(files), p=sizes / sizes.sum())
    found: Path = files[place]
    return found


def folder_flip_bits(damage: Damage) -> None:
    """Up to 8 bits of a file."""
    file = _file(damage)
    file.write_bytes(_flipped(damage, file.read_bytes()))


def folder_truncate(damage: Damage) -> None:
    """Keep only a beginning of a file."""
    file = _file(damage)
    content = file.read_bytes()
    file.write_bytes(content[: damage.generator.integers(len(content))])


def folder_drop(damage: Damage) -> None:
    """A file is missing."""
    _file(damage).unlink()


def folder_swap(damage: Damage) -> None:
    """Two files under each other's names."""
    files = [x for x in sorted(damage.path.rglob("*")) if x.is_file()]
    one, other = damage.generator.permutation(len(files))[:2]
    first, second = files[one].read_bytes(), files[other].read_bytes()
    files[one].write_bytes(second)
    files[other].write_bytes(first)


def folder_constants(damage: Damage) -> None:
    """Bits of a constant: codes, values, sizes or shapes."""
    _edit_constant(damage, lambda x: _flipped(damage, x, 1))


def folder_zeros(damage: Damage) -> None:
    """Zeros in the place of a constant."""
    _edit_constant(damage, lambda x: bytes(len(x)))


def folder_sizes(damage: Damage) -> None:
    """The largest numbers in the place of a constant."""
    _edit_constant(damage, lambda x: b"\x7f" * len(x))


def _edit_constant(damage: Damage, edit: Callable[[bytes], bytes]) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    file = damage.path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    tensors = [
        node.attr["value"].tensor
        for meta in saved.meta_graphs
        for function in meta.graph_def.library.function
        for node in function.node_def
        if node.op == "Const" and node.attr["value"].tensor.tensor_content
    ]
    if tensors:
        tensor = damage.pick(tensors)
        damage.is_other_model = True
        tensor.tensor_content = edit(tensor.tensor_content)
    file.write_bytes(saved.SerializeToString(deterministic=True))


KINDS: dict[str, Callable[[Damage], None]] = {
    function.__name__: function
    for function in (
        flip_bits,
        flip_member,
        truncate,
        swap_members,
        drop_member,
        bomb,
        bomb_in_weights,
        leave_folder,
        link,
        repeat_member,
        run_code,
        name_functions,
        pickled,
        change_config,
        drop_config,
        claim_units,
        claim_shape,
        change_array,
        link_array,
        folder_flip_bits,
        folder_truncate,
        folder_drop,
        folder_swap,
        folder_constants,
        folder_zeros,
        folder_sizes,
    )
}
