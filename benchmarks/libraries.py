"""Which families of layers each library has."""

from __future__ import annotations

from typing import Any

# Backends of the processes in which other libraries run.
PEERS = {
    "tfp": "tensorflow",
    "edward2": "tensorflow",
    "bayesian-torch": "torch",
    "blitz": "torch",
}
# Names of the families that others are compared with.
PLAIN = ("plain", "tf_keras", "torch.nn")


def families(library: str) -> dict[str, Any]:
    """By name, what makes a family of layers; a plain one comes first.

    Args:
        library: "keras_vd" or a key of `PEERS`.

    Raises:
        ModuleNotFoundError: if it is not installed; also later, by a family.
    """
    if library == "keras_vd":
        from benchmarks.families import FAMILIES

        return FAMILIES
    if PEERS[library] == "tensorflow":
        from benchmarks.legacy_peers import LEGACY_LIBRARIES

        return LEGACY_LIBRARIES[library]
    from benchmarks.torch_peers import TORCH_LIBRARIES

    return TORCH_LIBRARIES[library]
