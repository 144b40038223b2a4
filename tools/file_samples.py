"""Write a small file of every layer and posterior, for later versions to load.

    python -m tools.file_samples tests/files

`tests/test_files.py` loads them. What is there is never written again: files of
released versions have to load for good. A new layer or posterior gets a file of
its own, and a release that changes what is saved a new folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_vd
from keras_vd import layers, posteriors, priors

KL_WEIGHT = 0.01


def dense(**options: Any) -> Callable[[], Any]:
    return lambda: layers.VDDense(3, kl_weight=KL_WEIGHT, **options)


def one(cls: Any, *arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: cls(*arguments, kl_weight=KL_WEIGHT, **options)


# Shape of one example, and what makes the layer.
LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], Any]]] = {
    "VDDense": ((4,), dense(groups=("input", "output"))),
    "VDEinsumDense": (
        (2, 4),
        one(layers.VDEinsumDense, "abc,cd->abd", (None, 3), bias_axes="d"),
    ),
    "VDEmbedding": (
        (5,),
        one(layers.VDEmbedding, 7, 3, groups=("vocabulary",)),
    ),
    "VDSimpleRNN": ((4, 3), one(layers.VDSimpleRNN, 2)),
    "VDLSTM": (
        (4, 3),
        one(layers.VDLSTM, 2, groups=("input", "units", "gates")),
    ),
    "VDGRU": ((4, 3), one(layers.VDGRU, 2, weight_samples="sequence")),
    "VDGroupQueryAttention": (
        (3, 4),
        one(layers.VDGroupQueryAttention, 2, 4, 2),
    ),
    "VDMultiHeadAttention": (
        (3, 4),
        one(layers.VDMultiHeadAttention, 2, 3, groups=("heads",)),
    ),
    "VDConv1D": ((6, 2), one(layers.VDConv1D, 3, 2, padding="causal")),
    "VDConv2D": ((5, 5, 2), one(layers.VDConv2D, 3, 2, groups=("output",))),
    "VDConv3D": ((4, 4, 4, 1), one(layers.VDConv3D, 2, 2)),
    "VDConv1DTranspose": ((4, 2), one(layers.VDConv1DTranspose, 3, 2)),
    "VDConv2DTranspose": ((3, 3, 2), one(layers.VDConv2DTranspose, 3, 2)),
    "VDConv3DTranspose": ((2, 2, 2, 1), one(layers.VDConv3DTranspose, 2, 2)),
    "VDDepthwiseConv1D": ((5, 2), one(layers.VDDepthwiseConv1D, 2)),
    "VDDepthwiseConv2D": ((4, 4, 2), one(layers.VDDepthwiseConv2D, 2)),
    "VDSeparableConv1D": ((5, 2), one(layers.VDSeparableConv1D, 3, 2)),
    "VDSeparableConv2D": ((4, 4, 2), one(layers.VDSeparableConv2D, 3, 2)),
    "HardConcreteDropout": ((4,), one(layers.HardConcreteDropout)),
    "HomoscedasticNoise": (
        (4,),
        lambda: keras.Sequential([dense()(), layers.HomoscedasticNoise(0.5)]),
    ),
    "LogNormalDropout": ((4,), one(layers.LogNormalDropout)),
    "BetaBernoulliDropout": ((4,), one(layers.BetaBernoulliDropout)),
    "DependentBetaBernoulliDropout": (
        (4,),
        one(layers.DependentBetaBernoulliDropout),
    ),
}
if "VDReversibleEmbedding" in layers.__all__:
    LAYERS["VDReversibleEmbedding"] = (
        (5,),
        one(layers.VDReversibleEmbedding, 7, 3, tie_weights=False),
    )
if importlib.util.find_spec("keras_hub"):
    LAYERS["VDPositionEmbedding"] = (
        (4, 3),
        one(layers.VDPositionEmbedding, 6, groups=("positions",)),
    )
POSTERIORS: dict[str, Any] = {
    "VD": posteriors.VD(share="unit", noise="input"),
    "SparseVD": posteriors.SparseVD(
        prior=priors.LogUniform("exact"), share="unit", threshold=2.0
    ),
    "ARD": posteriors.ARD(share="layer", variance_dtype="bfloat16"),
    "Gaussian": posteriors.Gaussian(
        prior=priors.Gaussian(0.5), estimator="weight", kl_scale=2.0
    ),
}


def build(shape: tuple[int, ...], layer: Any) -> keras.Model:
    """Make a model of one layer, with random values and some weights pruned."""
    is_table = isinstance(layer, keras.layers.Embedding)
    inputs = keras.Input(shape, dtype="int32" if is_table else "float32")
    is_attention = "Attention" in type(layer).__name__
    outputs = layer(inputs, inputs) if is_attention else layer(inputs)
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        noise = generator.normal(scale=0.5, size=variable.shape)
        variable.assign(keras.ops.convert_to_numpy(variable) + noise)
    for weight in keras_vd.variational_weights(model):
        log_alpha = keras.ops.convert_to_numpy(weight.log_alpha)
        weight.prune(float(np.clip(np.quantile(log_alpha, 0.8), -20.0, 20.0)))
    return model


def write(name: str, model: keras.Model, folder: Path) -> None:
    """Write the model, compressed, and what it computes."""
    generator = np.random.default_rng(1)
    shape = (2, *model.input_shape[1:])
    inputs = generator.normal(size=shape).astype("float32")
    if "int" in model.inputs[0].dtype:
        inputs = generator.integers(0, 7, shape, "int32")
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary, "model.keras")
        model.save(plain)
        with (
            zipfile.ZipFile(plain) as source,
            zipfile.ZipFile(
                folder / f"{name}.keras", "w", zipfile.ZIP_DEFLATED
            ) as target,
        ):
            for member in source.namelist():
                target.writestr(member, source.read(member))
    np.savez_compressed(
        folder / f"{name}.npz",
        inputs=inputs,
        outputs=keras.ops.convert_to_numpy(model(inputs)),
        kl_divergence=keras_vd.kl_divergence(model),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder / keras_vd.__version__
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {kind.__name__ for kind in posteriors._NAMES.values()}
    known = {*layers.__all__, *layers._LATER}
    missing = (known | kinds) - {*LAYERS, *POSTERIORS}
    if missing:
        raise SystemExit(f"error: add an example of {sorted(missing)} here")
    models = {name: (shape, make) for name, (shape, make) in LAYERS.items()}
    models |= {
        name: ((4,), dense(posterior=posterior))
        for name, posterior in POSTERIORS.items()
    }
    for name, (shape, make) in models.items():
        if (folder / f"{name}.keras").exists():
            print(f"{name}: there already")
            continue
        keras.utils.clear_session()
        write(name, build(shape, make()), folder)
        print(f"{name}: written")


if __name__ == "__main__":
    main()
