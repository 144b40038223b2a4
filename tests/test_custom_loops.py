"""The page on training loops does what it says, on the running backend."""

import pathlib
import re

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd.callbacks import KLAnnealing
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.models import ard_kl, mlp, plain_mlp

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "custom_loops.md"
SECTIONS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "torch"}


def run(text, names):
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), names)


@pytest.mark.integration
@pytest.mark.core
def test_the_loops_of_the_page():
    """Oracles: the schedule, the loss without a KL, and what was learned.

    4 epochs: a quarter is 1, so that the second has the full weight.
    """
    keras.utils.set_random_seed(0)
    first, *sections = PAGE.read_text().split("\n## ")
    names = {}
    run(first, names)
    model, before = names["model"], names["model"].get_weights()
    annealing, weights = names["annealing"], []
    set_weight = annealing.set_weight
    annealing.set_weight = lambda *args, **options: weights.append(
        set_weight(*args, **options)
    )
    title = SECTIONS[keras.backend.backend()]
    (section,) = [x for x in sections if x.startswith(title)]
    run(section, names)
    assert weights == pytest.approx([0.0, *[1 / 256] * 3])
    posteriors = keras_vd.variational_weights(model)
    for posterior in posteriors:
        assert float(to_float64(posterior.kl_weight)) == pytest.approx(1 / 256)
    # Everything that can be learned has moved, log variances too.
    variables = {id(variable) for variable in model.trainable_variables}
    for variable, old in zip(model.weights, before, strict=True):
        if id(variable) in variables:
            assert (to_float64(variable) != old).any(), variable.path
    # The KL is a large part of that loss.
    x, y = names["x"], names["y"]
    kl = keras_vd.kl_divergence(model) / 256
    loss = keras.ops.stop_gradient(names["loss"])
    assert float(to_float64(loss)) > 0.5 * kl > 0.0
    errors = (model.predict(x, verbose=0) - y) ** 2
    assert errors.mean() < (y**2).mean()
    # The optimizer with weight decay has been told what not to decay.
    decaying = names["decaying"]
    for posterior in posteriors:
        for variable in posterior.trainable_variables:
            assert not decaying._use_weight_decay(variable)
        assert decaying._use_weight_decay(posterior.weight)


@pytest.mark.core
def test_set_weight_without_fit():
    """Oracle: the loss added in training, from the variables by NumPy."""
    model, annealing = mlp(), KLAnnealing(8, 1, 2, 0.5)
    for epoch, share in enumerate([0.0, 0.0, 0.25, 0.5]):
        assert annealing.set_weight(model, epoch) == pytest.approx(share / 8)
        model(random_inputs(4, 6), training=True)
        kl = sum(map(ard_kl, keras_vd.variational_weights(model)))
        total = sum(float(to_float64(loss)) for loss in model.losses)
        assert total == pytest.approx(share / 8 * kl, rel=1e-4, abs=1e-9)


@pytest.mark.core
def test_set_weight_without_the_number_of_epochs_says_so():
    annealing, model = KLAnnealing(8), mlp()
    with pytest.warns(UserWarning, match="number of `epochs` of the loop"):
        annealing.set_weight(model, 0)
    # Once, and not where it is known.
    assert annealing.set_weight(model, 0) == 0.0
    assert KLAnnealing(8).set_weight(model, 0, epochs=3) == 1 / 8
    assert KLAnnealing(8).set_weight(model, 19) == pytest.approx(14 / 15 / 8)


@pytest.mark.core
def test_what_set_weight_refuses():
    annealing = KLAnnealing(8)
    with pytest.raises(ValueError, match="at least one variational layer"):
        annealing.set_weight(plain_mlp(), 0, 3)
    unbuilt = keras.Sequential([keras_vd.layers.VDDense(2)])
    with pytest.raises(ValueError, match="must be built"):
        annealing.set_weight(unbuilt, 0, 3)
    with pytest.raises(ValueError, match=r"`epoch`.*at least 0"):
        annealing.set_weight(mlp(), -1, 3)
    with pytest.raises(TypeError, match=r"`epochs`.*integer"):
        annealing.set_weight(mlp(), 0, 3.0)


@pytest.mark.core
def test_a_callback_without_fit_names_the_way():
    annealing = KLAnnealing(8)
    for model in (None, mlp()):
        annealing.set_model(model)
        with pytest.raises(ValueError, match=r"set_weight\(model, epoch\)"):
            annealing.on_train_begin()


def test_a_loop_with_a_list_of_callbacks(capsys):
    """Keras' own way of calling callbacks: as in `fit`, bar or no bar."""
    model = mlp()
    model.compile("sgd", "mse")
    callbacks = keras.callbacks.CallbackList(
        [KLAnnealing(8, 0, 0)], add_history=True, model=model, epochs=2
    )
    for _ in range(2):
        callbacks.on_train_begin()
        for epoch in range(2):
            callbacks.on_epoch_begin(epoch)
            callbacks.on_epoch_end(epoch, {"loss": 1.0})
        callbacks.on_train_end()
    assert len(callbacks.callbacks) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [x.split(":")[0] for x in lines] == ["Epoch 1", "Epoch 2"] * 2
    assert model.history.history["kl_weight"] == [0.125] * 4
    assert np.isfinite(model.history.history["kl"]).all()
