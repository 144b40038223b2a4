import keras
import numpy as np
import pytest

import keras_vd
from keras_vd.callbacks import MagnitudePruning
from tests.helpers.models import mlp

pytestmark = pytest.mark.core

L = keras.layers
EPOCHS = 8


def build(rate=0.0, momentum=0.0):
    """Return a network that a rate of 0 leaves as it is."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 1)),
            L.Conv1D(4, 3, padding="same", activation="relu"),
            L.BatchNormalization(),
            L.Flatten(),
            L.Dense(5, kernel_initializer="random_normal"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(rate, momentum=momentum),
        "mse",
        run_eagerly=keras.backend.backend() == "tensorflow",
    )
    return model


def fit(model, pruning, epochs=EPOCHS, **options):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 6, 1)), rng.normal(size=(16, 5))
    options = {"callbacks": [pruning], "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, **options).history


def kernels(model):
    return [model.layers[i].get_weights()[0] for i in (0, 3)]


def pruned(arrays, share):
    """Return copies of arrays without a share of their smallest entries."""
    number = round(share * sum(x.size for x in arrays))
    limit = np.sort(np.abs(np.concatenate([x.ravel() for x in arrays])))
    limit = limit[number - 1] if number else -1.0
    return [np.where(np.abs(x) > limit, x, 0.0) for x in arrays]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_smallest_weights_go(scope):
    # Oracle: NumPy, on the weights before.
    model = build()
    before, others = kernels(model), model.get_weights()[1:6]
    history = fit(model, MagnitudePruning(0.75, scope=scope, verbose=0))
    groups = [before] if scope == "global" else [[x] for x in before]
    expected = [x for group in groups for x in pruned(group, 0.75)]
    for found, wanted in zip(kernels(model), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(model.get_weights()[1], others[0])
    total = sum(x.size for x in before)
    zeros = total - sum(np.count_nonzero(x) for x in expected)
    assert history["sparsity"][-1] == pytest.approx(zeros / total)


def test_the_schedule():
    # Oracle: Zhu and Gupta's formula, with every second epoch.
    pruning = MagnitudePruning(
        0.9, 0.1, start_epoch=2, end_epoch=7, every=2, scope="global"
    )
    times = [None, None, 0.0, 0.0, 0.4, 0.4, 0.8, 1.0, 1.0, 1.0]
    expected = [
        0.0 if t is None else 0.9 + (0.1 - 0.9) * (1 - t) ** 3 for t in times
    ]
    found = [pruning.sparsity_at(epoch, 7) for epoch in range(len(times))]
    np.testing.assert_allclose(found, expected)
    model = build()
    history = fit(model, pruning, epochs=10)
    total = sum(x.size for x in kernels(model))
    wanted = [round(total * share) / total for share in expected]
    np.testing.assert_allclose(history["sparsity"], wanted)


def test_pruned_weights_stay_zero_while_others_train(capsys):
    model = build(0.05, momentum=0.9)
    fit(model, MagnitudePruning(0.5, end_epoch=1, verbose=1), epochs=2)
    assert capsys.readouterr().out == "\nsparsity: 0.5000\n"
    zeros = [x == 0.0 for x in kernels(model)]
    before = kernels(model)
    pruning = MagnitudePruning(0.5, 0.5, end_epoch=1, verbose=0)
    fit(model, pruning, epochs=3)
    for old, new, zero in zip(before, kernels(model), zeros, strict=True):
        np.testing.assert_array_equal(new == 0.0, zero)
        assert (old != new)[~zero].all()
    small = keras_vd.shrink(model, verbose=0)
    x = np.ones((2, 6, 1))
    np.testing.assert_allclose(
        small.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5
    )


def test_a_resumed_run_goes_on():
    # Identity: one run of all epochs. Zeros that came back in between go.
    whole, halves = build(0.01), build(0.01)
    fit(whole, MagnitudePruning(0.8, verbose=0), shuffle=False)
    first = MagnitudePruning(0.8, end_epoch=6, verbose=0)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 3

    fit(halves, first, shuffle=False, callbacks=[first, Stop()])
    copy = build(0.01)
    copy.set_weights(halves.get_weights())
    second = MagnitudePruning(0.8, end_epoch=6, verbose=0)
    fit(copy, second, shuffle=False, initial_epoch=4)
    for found, expected in zip(kernels(copy), kernels(whole), strict=True):
        np.testing.assert_array_equal(found == 0.0, expected == 0.0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"final_sparsity": 1.0}, ValueError),
        ({"final_sparsity": -0.1}, ValueError),
        ({"final_sparsity": "0.5"}, TypeError),
        ({"initial_sparsity": 0.6}, ValueError),
        ({"start_epoch": -1}, ValueError),
        ({"end_epoch": 0}, ValueError),
        ({"every": 0}, ValueError),
        ({"scope": "all"}, ValueError),
    ],
)
def test_bad_arguments_are_named(options, error):
    (argument,) = options
    with pytest.raises(error, match=f"`{argument}`"):
        MagnitudePruning(**{"final_sparsity": 0.5, **options})


def test_what_cannot_be_pruned_is_refused():
    pruning = MagnitudePruning(0.5, verbose=0)
    with pytest.raises(ValueError, match="end after `start_epoch`"):
        fit(build(), pruning, epochs=1)
    with pytest.raises(ValueError, match="fit` of 4 epochs"):
        fit(build(), MagnitudePruning(0.5, end_epoch=4), epochs=4)
    variational = mlp(kl_weight=1e-3)
    variational.compile("sgd", "sparse_categorical_crossentropy")
    x, y = np.zeros((4, 6)), np.zeros(4)
    with pytest.raises(ValueError, match="must be a plain Keras model"):
        variational.fit(x, y, epochs=4, verbose=0, callbacks=[pruning])
    nothing = keras.Sequential([keras.Input((6,)), L.BatchNormalization()])
    nothing.compile("sgd", "mse")
    with pytest.raises(ValueError, match="nothing to prune"):
        nothing.fit(x, x, epochs=4, verbose=0, callbacks=[pruning])
