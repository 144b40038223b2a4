"""The bytes of an archive.

They are, in this order: `MAGIC`; the CRC-32 of what follows; the config and the
values of the weights that are not rounded, each after its length; and all
integers, coded: lists of the config, then, weight by weight, whether it is
rounded, its step if that is not the one before, and its values in units of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import keras
import numpy as np

from keras_vd._backend.keras_internals import without_values
from keras_vd.deployment import configs
from keras_vd.deployment.entropy import FEWEST_BITS, Coder, code_integers

MAGIC = b"KVD1"
# What a byte of deflated zeros becomes at most, in bytes.
INFLATION = 1032
STORED = {
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
}
Steps = list[float | None]


def integers_of(variable: keras.Variable, step: float) -> np.ndarray:
    """Round a weight to whole steps; return their numbers, int64."""
    values = np.asarray(keras.ops.convert_to_numpy(variable), float)
    return np.rint(values / step).astype(np.int64)


def times(integers: np.ndarray, step: float) -> np.ndarray:
    """Return the float32 values of so many steps."""
    with np.errstate(over="ignore"):  # only in files that were tampered with
        return integers.astype(np.float32) * np.float32(step)


def encode(model: keras.Model, steps: Steps) -> bytes:
    """Make an archive of a plain model.

    Args:
        model: The model.
        steps: Step of each of its weights; None: it is not rounded.

    Raises:
        ValueError: if its config does not give the same model again.
    """
    config, lists = configs.pack(model)
    exact = bytearray()
    coder = Coder()
    _code_lists(coder, [len(values) for values in lists], lists)
    before = 1.0
    for variable, step in zip(model.weights, steps, strict=True):
        _code_step(coder, before, step)
        if step is None:
            value = keras.ops.convert_to_numpy(variable)
            exact += value.astype(_storage(variable.dtype)).tobytes()
            continue
        values = _matrix(integers_of(variable, step))
        code_integers(coder, values.shape, values, _kind(variable.shape))
        coder.forget()
        before = step
    parts = [
        config,
        zlib.compress(bytes(exact), 9, wbits=-15) if exact else b"",
    ]
    body = b"".join(_length(len(part)) + part for part in parts)
    body += coder.to_bytes()
    return MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def decode(content: bytes) -> keras.Model:
    """Make a model of an archive.

    Raises:
        ValueError: if it is damaged, or not allowed.
    """
    start = len(MAGIC) + 4
    body = content[start:]
    if len(content) < start or not content.startswith(MAGIC):
        raise ValueError("It does not begin as archives do.")
    if zlib.crc32(body) != int.from_bytes(
        content[len(MAGIC) : start], "little"
    ):
        raise ValueError("It is damaged: its checksum is another one.")
    parts, rest = [], body
    for _ in range(2):
        part, rest = _split(rest)
        parts.append(part)
    config = configs.unpack(parts[0])
    coder = Coder(rest)
    # A file of this size holds no more numbers than that.
    most = 1 + int(8 * len(rest) / FEWEST_BITS) + INFLATION * len(parts[1])
    lengths = configs.lengths_of_lists(config)
    _check_count(sum(lengths), most)
    lists = _code_lists(coder, lengths, None)
    # Built without values first, as a config may ask for any size.
    counted = without_values(lambda: configs.build(config, lists))
    _check_count(sum(_size(x.shape) for x in counted.weights), most)
    model = configs.build(config, lists)
    exact = _inflated(parts[1], model)
    before = 1.0
    for variable in model.weights:
        step = _code_step(coder, before, None, is_read=True)
        shape = tuple(variable.shape)
        if step is None:
            dtype = _storage(variable.dtype)
            size = dtype.itemsize * _size(shape)
            if len(exact) < size:
                raise ValueError("Values of weights are missing.")
            value = np.frombuffer(exact[:size], dtype).reshape(shape)
            exact = exact[size:]
        else:
            matrix = code_integers(
                coder, _matrix_shape(shape), None, _kind(shape)
            )
            value = times(_from_matrix(matrix, shape), step)
            coder.forget()
            before = step
        variable.assign(value.astype(value.dtype.newbyteorder("=")))
    if exact:
        raise ValueError("It holds more values than the model has weights.")
    return model


def _code_lists(
    coder: Coder, lengths: Sequence[int], lists: list[list[int]] | None
) -> list[list[int]]:
    """Write or read lists of integers as their differences."""
    found = []
    for i, length in enumerate(lengths):
        values = None
        if lists is not None:
            values = np.diff(np.array(lists[i], np.int64), prepend=0)
            values = values.reshape(-1, 1)
        values = code_integers(coder, (length, 1), values, "list")
        found.append(np.cumsum(values).tolist())
    return found


def _code_step(
    coder: Coder, before: float, step: float | None, is_read: bool = False
) -> float | None:
    """Write or read whether a weight is rounded, and to which step.

    Args:
        coder: What writes or reads.
        before: The step of the weight before it.
        step: What to write; None: the weight is not rounded.
        is_read: Whether to read.
    """

    def code(kind: str, value: bool) -> bool:
        bits = None if is_read else np.array([value])
        return bool(coder.code_alike(kind, 1, bits)[0])

    if not code("is rounded", step is not None):
        return None
    if code("same step", step == before):
        return before
    bits = None
    if not is_read:
        bits = np.array([_word(step) >> i & 1 for i in range(16, 32)], bool)
    bits = coder.code_evenly(16, bits)
    word = sum(int(bit) << i for i, bit in enumerate(bits, 16))
    found = float(np.uint32(word).view(np.float32))
    if not 0.0 < found < float("inf"):
        raise ValueError(f"It holds the step {found}.")
    return found


def _word(step: float | None) -> int:
    return int(np.float32(step).view(np.uint32))


def _kind(shape: Sequence[int]) -> str:
    return "kernel" if len(shape) > 1 else "bias"


def _matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the shape of a weight as a matrix: of a vector, one column."""
    columns = shape[-1] if len(shape) > 1 else 1
    return _size(shape) // max(1, columns), columns


def _order(rank: int) -> list[int]:
    """Return the order of axes: inputs, other axes but the last, the last."""
    return (
        [rank - 2, *range(rank - 2), rank - 1] if rank > 2 else [*range(rank)]
    )


def _matrix(values: np.ndarray) -> np.ndarray:
    ordered = values.transpose(_order(values.ndim))
    return ordered.reshape(_matrix_shape(values.shape))


def _from_matrix(matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    order = _order(len(shape))
    ordered = matrix.reshape([shape[axis] for axis in order])
    return ordered.transpose(np.argsort(order))


def _storage(dtype: str) -> np.dtype:
    """Return the type in which weights that are not rounded are stored."""
    # NumPy does not know the others, all of which are parts of float32.
    return np.dtype(dtype if dtype in STORED else "float32").newbyteorder("<")


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=object))


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise ValueError(
            f"It asks for {count:,} numbers, more than its size can hold."
        )


def _length(n: int) -> bytes:
    """Write a length in as few bytes as it needs, seven bits in each."""
    found = bytearray()
    while n >= 128:
        found.append(n & 127 | 128)
        n >>= 7
    return bytes([*found, n])


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Split what comes after its length from the rest."""
    length = 0
    for i, byte in enumerate(content[:5]):
        length |= (byte & 127) << 7 * i
        if byte < 128:
            end = i + 1 + length
            if end > len(content):
                break
            return content[i + 1 : end], content[end:]
    raise ValueError("It is cut short.")


def _inflated(content: bytes, model: keras.Model) -> bytes:
    """Inflate values, of which there are no more than the model has weights."""
    if not content:
        return b""
    sizes = [_storage(x.dtype).itemsize * _size(x.shape) for x in model.weights]
    stream = zlib.decompressobj(-15)
    try:
        values = stream.decompress(content, sum(sizes) + 1)
    except zlib.error as error:
        raise ValueError(
            f"Values of weights cannot be read: {error}."
        ) from error
    if not stream.eof or stream.unused_data:
        raise ValueError("Values of weights are cut short, or too long.")
    return values
