"""`keras.distribution` on 4 JAX devices; `test_sharded.py` runs these tests.

They need devices that JAX has to know when it is imported.
"""

import functools

import keras
import numpy as np
import pytest

from keras_vd import (
    kl_divergence,
    layers,
    posteriors,
    prune,
    sparsity_report,
    variational_weights,
)
from tests.helpers.distributed.steps import (
    KL_WEIGHT,
    WISHES,
    assert_close,
    data,
    dense,
    make,
    noisy,
    recurrent,
    run_documented,
    step,
    train_to,
    values,
)

# Columns of kernels, and rows of the vocabulary.
LAYOUTS = {
    ".*/kernel": (None, "model"),
    ".*/recurrent_kernel": (None, "model"),
    ".*/embeddings": ("model", None),
}


def data_parallel():
    devices = keras.distribution.list_devices()[:2]
    return keras.distribution.DataParallel(devices=devices)


def model_parallel(rows=1, columns=2, layouts=LAYOUTS):
    mesh = keras.distribution.DeviceMesh(
        (rows, columns),
        ("batch", "model"),
        keras.distribution.list_devices()[: rows * columns],
    )
    layout_map = keras.distribution.LayoutMap(mesh)
    layout_map.update(layouts)
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch"
    )


@functools.cache
def on_one_device(build):
    """KL in the loss, the loss of a step, the values after it."""
    model = make(build, noisy())
    weighted = KL_WEIGHT * float(kl_divergence(model))
    return weighted, step(model), values(model)


@pytest.mark.parametrize("build", [dense, recurrent])
@pytest.mark.parametrize(
    "distribution",
    [data_parallel, model_parallel, lambda: model_parallel(2, 2)],
    ids=["data", "model", "both"],
)
def test_a_step_is_that_of_one_device(build, distribution):
    # The noise is that of one device, too.
    weighted, expected, expected_values = on_one_device(build)
    assert weighted > 0.1 * expected, "a KL counted twice would not be seen"
    with distribution().scope():
        model = make(build, noisy())
        assert step(model) == pytest.approx(expected, rel=1e-5)
        assert_close(values(model), expected_values, rtol=1e-5, atol=1e-6)


def spec(variable):
    return tuple(variable.value.sharding.spec)


@pytest.mark.parametrize("share", ["weight", "unit", "layer"])
def test_noise_parameters_lie_where_their_kernel_does(share):
    posterior = posteriors.SparseVD(share=share)
    with model_parallel(2, 2).scope():
        layer = layers.VDDense(8, posterior=posterior, kl_weight=1.0)
        layer.build((None, 6))
        optimizer = keras.optimizers.Adam()
        optimizer.build(layer.trainable_variables)
    posterior = layer.kernel_posterior
    assert spec(layer.kernel) == spec(posterior.keep_mask) == (None, "model")
    columns = None if share == "layer" else "model"
    assert spec(posterior.log_sigma2) == (None, columns)
    slots = [v for v in optimizer.variables if "log_sigma2" in v.path]
    assert [spec(slot) for slot in slots] == [(None, columns)] * 2
    shards = posterior.log_sigma2.value.addressable_shards
    halves = {"weight": (6, 4), "unit": (1, 4), "layer": (1, 1)}
    assert {shard.data.shape for shard in shards} == {halves[share]}
    # Assigned values, too.
    posterior.prune(3.0)
    assert spec(posterior.keep_mask) == (None, "model")


def test_a_rule_of_the_user_goes_first():
    own = {".*/kernel": (None, "model"), ".*/log_sigma2": ("model", None)}
    with model_parallel(layouts=own).scope():
        layer = layers.VDDense(8)
        layer.build((None, 6))
        assert spec(layer.kernel_posterior.log_sigma2) == ("model", None)
        assert spec(layer.kernel_posterior.keep_mask) == (None, "model")


def test_the_distribution_is_the_users_again():
    # Also when building a layer fails.
    distribution = model_parallel()
    with distribution.scope():
        layer = layers.VDDense(8, posterior="ard")
        layer.kernel_posterior.build = lambda shape: 1 / 0
        with pytest.raises(ZeroDivisionError):
            layer.build((None, 6))
        assert keras.distribution.distribution() is distribution


def test_reports_and_files_do_not_know_of_the_distribution(tmp_path):
    with model_parallel(2, 2).scope():
        model = make(dense, noisy())
        posterior = model.layers[0].kernel_posterior
        posterior.log_sigma2.assign(
            np.linspace(-9.0, 5.0, 48, dtype="float32").reshape(6, 8)
        )
        before = sparsity_report(model)
        assert 0.1 < before.sparsity < 0.9
        assert prune(model).n_active == before.n_active
        inputs, _ = data(model)
        expected = model.predict(inputs, verbose=0)
        model.save(tmp_path / "model.keras")
    plain = keras.saving.load_model(tmp_path / "model.keras")
    assert len(plain.layers[0].kernel.value.sharding.device_set) == 1
    assert sparsity_report(plain).to_dict() == before.to_dict()
    np.testing.assert_allclose(
        plain.predict(inputs, verbose=0), expected, rtol=1e-6
    )


@pytest.mark.parametrize("distribution", [data_parallel, model_parallel])
@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: next(iter(wish)))
def test_a_wish_comes_true_as_on_one_device(wish, distribution):
    # Oracle: the same run, whose noise is the same, on one device.
    single = make(dense, posteriors.SparseVD())
    train_to(wish, single)
    with distribution().scope():
        model = make(dense, posteriors.SparseVD())
        train_to(wish, model)
    assert_close(values(model), values(single), rtol=1e-2, atol=1e-3)


def test_what_the_page_says():
    previous = keras.distribution.distribution()
    try:
        run_documented("The batch split, JAX")
        model = run_documented("The weights split, JAX")["model"]
    finally:
        keras.distribution.set_distribution(previous)
    posterior = variational_weights(model)[0]
    assert spec(posterior.weight) == (None, "model")
    assert spec(posterior.log_sigma2) == (None, "model")
