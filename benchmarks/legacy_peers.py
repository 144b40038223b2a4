"""Layers of other libraries that do the same job, on `tf_keras`.

These libraries live on the Keras before version 3. It runs beside Keras 3 in
one process, so their steps are interleaved with plain layers of both.
"""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.families import KL_WEIGHT, Plain


class LegacyPlain(Plain):
    """Layers of `tf_keras`."""

    def __init__(self) -> None:
        super().__init__()
        self.keras = importlib.import_module("tf_keras")


class _Probability(LegacyPlain):
    """Layers of TensorFlow Probability."""

    dense_class = conv_class = ""
    kinds = ("dense", "conv", "lenet")

    def __init__(self) -> None:
        super().__init__()
        self._tfp = importlib.import_module("tensorflow_probability")

    def _scaled_kl(self, posterior: Any, prior: Any, _: Any) -> Any:
        divergence = self._tfp.distributions.kl_divergence(posterior, prior)
        return KL_WEIGHT * divergence

    def dense(self, units: int, activation: str | None = None) -> Any:
        return getattr(self._tfp.layers, self.dense_class)(
            units,
            activation=activation,
            kernel_divergence_fn=self._scaled_kl,
        )

    def conv(
        self, filters: int, size: int, activation: str | None, padding: str
    ) -> Any:
        return getattr(self._tfp.layers, self.conv_class)(
            filters,
            size,
            activation=activation,
            padding=padding,
            kernel_divergence_fn=self._scaled_kl,
        )


class LocalReparameterization(_Probability):
    """The same estimator; its convolutions draw one kernel per call."""

    dense_class = "DenseLocalReparameterization"
    conv_class = "Convolution2DReparameterization"


class Flipout(_Probability):
    """Pseudo-independent weights for every example."""

    dense_class = "DenseFlipout"
    conv_class = "Convolution2DFlipout"


class VariationalDropout(LegacyPlain):
    """`DenseVariationalDropout` of edward2; its convolution does not run.

    Its regularizer has the sign of the divergence reversed; here it counts for
    its time alone.
    """

    kinds = ("dense",)

    def __init__(self) -> None:
        super().__init__()
        self._edward2 = _import_edward2()
        self._regularizers = importlib.import_module(
            "edward2.tensorflow.regularizers"
        )

    def dense(self, units: int, activation: str | None = None) -> Any:
        return self._edward2.layers.DenseVariationalDropout(
            units,
            activation=activation,
            kernel_regularizer=self._regularizers.LogUniformKLDivergence(
                scale_factor=KL_WEIGHT
            ),
        )


def _import_edward2() -> Any:
    """Import it in spite of a SciPy that it does not know.

    It wraps `rvs` of every distribution of `scipy.stats`, and one that came
    later has none.
    """
    stats = importlib.import_module("scipy.stats")
    if not hasattr(stats.dirichlet_multinomial, "rvs"):
        type(stats.dirichlet_multinomial).rvs = None
    return importlib.import_module("edward2")


# By library, its families; the first one is plain.
LEGACY_LIBRARIES: dict[str, dict[str, Any]] = {
    "tfp": {
        "tf_keras": LegacyPlain,
        "tfp local reparameterization": LocalReparameterization,
        "tfp Flipout": Flipout,
    },
    "edward2": {
        "tf_keras": LegacyPlain,
        "edward2 variational dropout": VariationalDropout,
    },
}
