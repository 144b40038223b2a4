"""Seconds until networks of many layers have made their first step."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

import keras_vd
from benchmarks.families import FAMILIES, KL_WEIGHT
from benchmarks.networks import Case
from benchmarks.records import Recorder
from benchmarks.steps import KerasTraining

VARIANTS = ("plain", "keras_vd", "keras_vd, share unit")
_DENSE = Case("dense-31", "", "dense", 32, (256,) * 32)
_IMAGES = (8, 64, 64, 3)


def measure_first_step(name: str, recorder: Recorder) -> None:
    """Table "deep": tracing, compiling and making a first step.

    Args:
        name: Of a network; a key of `benchmarks.networks.DEEP`.
        recorder: Takes the records.
    """
    # What the backend and `fit` need once is not what deep networks cost.
    small = Case("", "", "dense", 32, (4, 4))
    FAMILIES["plain"]().start(small).first_step()
    for variant in VARIANTS:
        keras.utils.clear_session(free_memory=True)
        try:
            training = _STARTS[name](variant)
            seconds = training.first_step()
        # Whatever one of them raises, the others go on.
        except Exception as error:
            recorder.add_error("deep", name, variant, error)
        else:
            recorder.add("deep", name, variant, seconds=seconds)


def _start_dense(variant: str) -> KerasTraining:
    return FAMILIES[variant]().start(_DENSE)


def _start_resnet(variant: str) -> KerasTraining:
    model = keras.applications.ResNet50(
        weights=None, input_shape=_IMAGES[1:], classes=10
    )
    if variant != "plain":
        share = "unit" if "unit" in variant else "weight"
        model = keras_vd.to_variational(
            model,
            keras_vd.posteriors.SparseVD(share=share),
            kl_weight=KL_WEIGHT,
            verbose=0,
        )
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    rng = np.random.default_rng(0)
    x = rng.standard_normal(_IMAGES, "float32")
    return KerasTraining(model, x, np.zeros((len(x), 10), "float32"))


_STARTS: dict[str, Callable[[str], KerasTraining]] = {
    "dense-31": _start_dense,
    "resnet50": _start_resnet,
}
