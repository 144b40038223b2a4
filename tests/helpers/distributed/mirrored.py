"""Two replicas in one process; `test_mirrored.py` runs these tests.

They need two devices, which TensorFlow has to know before its first operation.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vd import (
    kl_divergence,
    layers,
    posteriors,
    predict_mc,
    prune,
    sparsity_report,
)
from keras_vd.posteriors.posterior import Posterior
from tests.helpers.distributed.steps import (
    EXAMPLES,
    KL_WEIGHT,
    WISHES,
    assert_close,
    data,
    dense,
    documented,
    make,
    noisy,
    quiet,
    recurrent,
    run_documented,
    step,
    train_to,
    values,
)

REPLICAS = 2
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * REPLICAS,
)


@pytest.fixture(scope="module")
def strategy():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.mark.parametrize(
    ("build", "options"), [(dense, {"gates": False}), (recurrent, {})]
)
def test_a_step_is_that_of_one_device(strategy, build, options):
    # Oracle: one device, the same batch, next to no noise.
    single = make(build, quiet(), **options)
    with strategy.scope():
        mirrored = make(build, quiet(), **options)
    weighted = KL_WEIGHT * float(kl_divergence(single))
    expected = step(single)
    assert weighted > 0.5 * expected, "a KL counted twice would not be seen"
    assert step(mirrored) == pytest.approx(expected, rel=1e-5)
    assert_close(values(mirrored), values(single), rtol=1e-5, atol=1e-6)


def gates_and_posteriors(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, Posterior)
    ]


def draw_as_replica(model, replica):
    """Have a model draw the noise of one of the replicas, by hand.

    Draw number n of a posterior is number n * REPLICAS + replica of its seed.
    """
    for posterior in gates_and_posteriors(model):
        seed = int(posterior.seed_generator.state.numpy()[0])
        numbers = itertools.count(replica, REPLICAS)
        posterior.seed_generator.next = lambda seed=seed, numbers=numbers: (
            tf.constant([seed, next(numbers)], "int64")
        )


@pytest.mark.parametrize("build", [dense, recurrent])
def test_a_noisy_step_is_the_mean_over_replicas(strategy, build):
    # Oracle: one device computes loss and gradients of each half of the batch
    # with the noise of its replica; plain arithmetic does the rest.
    with strategy.scope():
        mirrored = make(build, noisy())
    single = make(build, noisy())
    inputs, labels = data(single)
    losses, gradients = [], []
    for replica in range(REPLICAS):
        draw_as_replica(single, replica)
        half = slice(replica * EXAMPLES // 2, (replica + 1) * EXAMPLES // 2)
        with tf.GradientTape() as tape:
            outputs = single(inputs[half], training=True)
            loss = single.compute_loss(y=labels[half], y_pred=outputs)
        losses.append(float(loss))
        gradients.append(tape.gradient(loss, single.trainable_weights))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert step(mirrored) == pytest.approx(np.mean(losses), rel=1e-5)
    for variable, *pair in zip(
        single.trainable_weights, *gradients, strict=True
    ):
        pair = [tf.convert_to_tensor(gradient) for gradient in pair]
        variable.assign(variable - 0.1 * sum(pair) / REPLICAS)
    assert_close(values(mirrored), values(single), rtol=1e-5, atol=1e-6)


def replica_outputs(strategy, layer, inputs, calls=2):
    """Outputs of training passes; shape (calls, replicas, ...)."""

    @tf.function
    def run():
        return strategy.run(lambda: layer(inputs, training=True))

    return np.array([run().values for _ in range(calls)])


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.VDDense(4, posterior=noisy(), kl_weight=1.0),
        lambda: layers.VDEmbedding(
            9, 2, posterior=noisy(), kl_weight=1.0, mask_zero=False
        ),
        lambda: layers.VDDense(4, posterior="vd", kl_weight=1.0),
        lambda: layers.VDGRU(4, posterior=noisy(), kl_weight=1.0),
        lambda: layers.VDLSTM(
            4, posterior=noisy(), kl_weight=1.0, weight_samples="sequence"
        ),
        lambda: layers.LogNormalDropout(kl_weight=1.0),
        lambda: layers.BetaBernoulliDropout(kl_weight=1.0, a_init=0.0),
        lambda: layers.DependentBetaBernoulliDropout(kl_weight=1.0, a_init=0.0),
    ],
)
def test_replicas_and_steps_draw_noise_of_their_own(strategy, layer):
    with strategy.scope():
        layer = layer()
    inputs = tf.ones((3, 5, 6) if "cell" in dir(layer) else (3, 6))
    with strategy.scope():
        layer.build(inputs.shape)
    outputs = replica_outputs(strategy, layer, inputs)
    draws = outputs.reshape(4, -1)
    for one, other in itertools.combinations(draws, 2):
        assert not np.allclose(one, other, rtol=1e-9, atol=0.0)


def test_the_noise_goes_on_after_a_restart(strategy, tmp_path):
    # The state that is saved counts draws, on all replicas alike.
    with strategy.scope():
        model = make(dense, noisy())
        model.save(tmp_path / "model.keras")
        revived = keras.saving.load_model(tmp_path / "model.keras")
    for _ in range(2):
        assert step(model) == step(revived)
    for posterior in gates_and_posteriors(model):
        states = strategy.experimental_local_results(
            posterior.seed_generator.state.value
        )
        np.testing.assert_array_equal(states[0], states[1])


def test_reports_and_files_do_not_know_of_the_strategy(strategy, tmp_path):
    with strategy.scope():
        model = make(dense, noisy())
    step(model)
    posterior = model.layers[0].kernel_posterior
    posterior.log_sigma2.assign(
        np.linspace(-9.0, 5.0, 48, dtype="float32").reshape(6, 8)
    )
    before = sparsity_report(model).n_active
    assert prune(model).n_active == before
    masks = strategy.experimental_local_results(posterior.keep_mask.value)
    assert 0 < np.sum(masks[0]) < 48
    np.testing.assert_array_equal(masks[0], masks[1])
    inputs, _ = data(model)
    model.save(tmp_path / "model.keras")
    plain = keras.saving.load_model(tmp_path / "model.keras")
    assert not isinstance(
        plain.layers[0].kernel.value, tf.distribute.DistributedValues
    )
    assert sparsity_report(plain).n_active == before
    expected = plain.predict(inputs, verbose=0)
    np.testing.assert_allclose(
        model.predict(inputs, verbose=0), expected, rtol=1e-6
    )
    samples = predict_mc(model, inputs, num_samples=3, seed=1)
    np.testing.assert_allclose(
        samples.mean, predict_mc(plain, inputs, 3, seed=1).mean, rtol=1e-5
    )


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: next(iter(wish)))
def test_a_wish_comes_true_on_all_replicas(strategy, wish):
    with strategy.scope():
        model = make(dense, posteriors.SparseVD())
    train_to(wish, model)
    for variable in model.weights:
        one, other = strategy.experimental_local_results(variable.value)
        np.testing.assert_array_equal(one, other)


def test_what_the_page_says(strategy, monkeypatch):
    # On the two devices; a second strategy would mix its reductions with ours.
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: strategy)
    names = run_documented("One machine, TensorFlow")
    kernel = names["model"].layers[0].kernel.value
    assert isinstance(kernel, tf.distribute.DistributedValues)
    for block in documented("Several machines, TensorFlow"):
        compile(block, "distributed.md", "exec")
