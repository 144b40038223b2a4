import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import to_deterministic, variational_weights
from keras_vd.callbacks import (
    BackupAndRestore,
    KLAnnealing,
    ShrinkWhileTraining,
    shrinking,
)
from keras_vd.layers import (
    VDGRU,
    VDLSTM,
    DependentBetaBernoulliDropout,
    LogNormalDropout,
    VDConv1D,
    VDConv2D,
    VDDense,
    VDEmbedding,
    VDSeparableConv2D,
)
from keras_vd.posteriors import VD, Gaussian, SparseVD
from keras_vd.shrinking.variational import shrink_in_place

pytestmark = pytest.mark.core

L = keras.layers


def kill_inputs(layer, dead, weight="kernel"):
    """Prune all weights that read some of the inputs, the last but one axis."""
    posterior = getattr(layer, f"{weight}_posterior")
    mask = np.ones(posterior.weight.shape, bool)
    mask[..., dead, :] = False
    posterior.keep_mask.assign(mask)


def kill_outputs(layer, dead):
    """Prune all weights that make some of the outputs, the last axis."""
    posterior = layer.kernel_posterior
    mask = np.ones(posterior.weight.shape, bool)
    mask[..., dead] = False
    posterior.keep_mask.assign(mask)


def mlp(**options):
    """Return a model of 6-8-7-3 with units 1, 2 and 5 of the first layer dead.

    Nothing reads unit 1; units 2 and 5 are constants, which are not 0.
    """
    options = {"kl_weight": 1e-2, **options}
    model = keras.Sequential(
        [
            keras.Input((6,)),
            VDDense(8, "tanh", name="a", **options),
            L.BatchNormalization(name="n"),
            L.Dropout(0.2, name="d"),
            VDDense(7, "relu", name="b", **options),
            VDDense(3, name="c", **options),
        ]
    )
    randomize(model)
    kill_inputs(model.get_layer("b"), [1])
    kill_outputs(model.get_layer("a"), [2, 5])
    return model


def added():
    model = keras.Sequential()
    model.add(keras.Input((6,)))
    model.add(VDDense(8, "tanh", name="a", kl_weight=1.0))
    model.add(L.ReLU(name="r"))
    model.add(VDDense(3, name="c", kl_weight=1.0))
    randomize(model)
    kill_inputs(model.get_layer("c"), [0, 1, 7])
    return model


def residual():
    inputs = keras.Input((8, 8, 3))
    conv = VDConv2D(6, 3, padding="same", name="a", kl_weight=1.0)
    a = L.Activation("relu")(conv(inputs))
    b = VDConv2D(6, 3, padding="same", name="b", kl_weight=1.0)(a)
    x = L.MaxPooling2D()(L.Add()([a, b]))
    x = L.DepthwiseConv2D(3, depth_multiplier=2, name="w")(x)
    x = VDSeparableConv2D(5, 2, name="s", kl_weight=1.0)(x)
    outputs = VDDense(3, name="c", kl_weight=1.0)(L.Flatten(name="f")(x))
    model = keras.Model(inputs, outputs)
    randomize(model)
    # Channel 4 is read by nobody: neither by `b` nor, after the sum, by `s`.
    kill_inputs(model.get_layer("b"), [4])
    kill_inputs(model.get_layer("s"), [8, 9], "depthwise_kernel")
    kill_inputs(model.get_layer("c"), [2])
    return model


def branches():
    inputs = keras.Input((10, 2))
    a = VDConv1D(4, 3, padding="causal", name="a", kl_weight=1.0)(inputs)
    b = VDConv1D(4, 1, name="b", kl_weight=1.0)(inputs)
    x = L.GlobalAveragePooling1D()(L.Concatenate(name="j")([a, b]))
    model = keras.Model(inputs, VDDense(2, name="c", kl_weight=1.0)(x))
    randomize(model)
    # All of the first branch is dead, and one channel of it stays.
    kill_inputs(model.get_layer("c"), [0, 1, 2, 3, 6])
    return model


def recurrent():
    inputs = keras.Input((5,), dtype="int32")
    options = {"kl_weight": 1.0, "groups": ("units",)}
    x = VDEmbedding(20, 6, name="e", kl_weight=1.0)(inputs)
    x = VDLSTM(5, return_sequences=True, name="l", **options)(x)
    x = VDGRU(4, name="g", **options)(x)
    outputs = VDDense(3, name="c", kl_weight=1.0)(x)
    model = keras.Model(inputs, outputs)
    randomize(model)
    kill_inputs(model.get_layer("l"), [3])
    for name, units in (("l", [0, 2]), ("g", [1])):
        group = model.get_layer(name).units_group
        mask = np.ones(group.weight.shape, bool)
        mask[units] = False
        group.keep_mask.assign(mask)
    return model


def groups():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            VDDense(
                8, "relu", name="a", kl_weight=1.0, groups=("input", "output")
            ),
            VDDense(
                5,
                name="b",
                kl_weight=1.0,
                groups=("input", "output"),
                posterior=SparseVD(share="rank1"),
            ),
            VDDense(3, name="c", kl_weight=1.0, posterior=VD(share="unit")),
        ]
    )
    randomize(model)
    group = model.get_layer("b").input_group
    group.keep_mask.assign(np.arange(8) % 2 == 0)
    kill_inputs(model.get_layer("c"), [4])
    return model


def gates():
    inputs = keras.Input((6,))
    x = VDDense(8, "relu", name="a", kl_weight=1.0)(inputs)
    # One gate goes into the next layer, the other one becomes a Rescaling.
    x = LogNormalDropout(name="folded", kl_weight=1.0)(x)
    x = VDDense(6, "relu", name="b", kl_weight=1.0)(x)
    x = L.Activation("tanh")(LogNormalDropout(name="kept", kl_weight=1.0)(x))
    outputs = VDDense(3, name="c", kl_weight=1.0)(x)
    model = keras.Model(inputs, outputs)
    randomize(model)
    for name, dead in (("folded", [1, 2]), ("kept", [5])):
        close(model.get_layer(name), dead)
    kill_inputs(model.get_layer("c"), [0])
    return model


def close(gate, dead):
    mask = np.ones(gate.units, bool)
    mask[dead] = False
    gate.keep_mask.assign(mask)


def gate_of_a_stream():
    """One gate for the channels that a sum ties."""
    inputs = keras.Input((6,))
    gate = LogNormalDropout(name="gate", kl_weight=1.0)
    x = VDDense(8, "relu", name="a", kl_weight=1.0)(inputs)
    y = VDDense(8, "relu", name="b", kl_weight=1.0)(gate(x))
    x = L.Add(name="sum")([x, y])
    outputs = VDDense(3, name="c", kl_weight=1.0)(gate(x))
    model = keras.Model(inputs, outputs)
    randomize(model)
    close(gate, [1, 2])
    return model


def gate_of_branches(dead=()):
    """One gate for two branches, one of which has `dead` units of its own."""
    inputs = keras.Input((6,))
    gate = LogNormalDropout(name="gate", kl_weight=1.0)
    branches = [
        VDDense(3, name=end, kl_weight=1.0)(
            gate(VDDense(8, "relu", name=name, kl_weight=1.0)(inputs))
        )
        for name, end in (("a", "c"), ("b", "d"))
    ]
    model = keras.Model(inputs, L.Add()(branches))
    randomize(model)
    close(gate, [1, 2])
    kill_inputs(model.get_layer("c"), list(dead))
    return model


# Sizes of outputs after the change, by the name of the layer.
ZOO = {
    mlp: {"a": 5, "n": 5, "d": 5, "b": 7, "c": 3},
    added: {"a": 5, "r": 5, "c": 3},
    residual: {"a": 5, "b": 5, "w": 10, "s": 4, "f": 4, "c": 3},
    branches: {"a": 1, "b": 3, "j": 4, "c": 2},
    recurrent: {"e": 5, "l": 3, "g": 3, "c": 3},
    gates: {"a": 6, "folded": 6, "b": 4, "kept": 4, "c": 3},
    groups: {"a": 4, "b": 4, "c": 3},
    gate_of_a_stream: {"a": 6, "b": 6, "gate": 6, "c": 3},
    gate_of_branches: {"a": 6, "b": 6, "gate": 6, "c": 3, "d": 3},
}


def randomize(model):
    rng = np.random.default_rng(1)
    for layer in model.layers:
        for weight in layer.weights:
            name = weight.path.split("/")[-1]
            if name in ("bias", "gamma", "beta", "moving_mean"):
                weight.assign(rng.normal(size=weight.shape))
            elif name in ("kernel", "scales", "moving_variance"):
                weight.assign(rng.uniform(0.5, 1.0, weight.shape))


def data(model, count=16):
    rng = np.random.default_rng(0)
    shape = (count, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        x = rng.integers(0, 20, shape)
    else:
        x = rng.normal(size=shape).astype("float32")
    return x, rng.normal(size=(count, model.output_shape[-1]))


def compiled(model, optimizer="adam"):
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def values(variables):
    return [keras.ops.convert_to_numpy(x) for x in variables]


@pytest.mark.integration
@pytest.mark.parametrize("make", ZOO)
def test_predictions_stay_and_sizes_shrink(make, tmp_path, capsys):
    # Oracle: the model before, and sizes by hand.
    model = compiled(make())
    x, y = data(model)
    expected = model.predict(x, verbose=0)
    layers, names = list(model.layers), [x.path for x in model.variables]
    variables = list(map(id, model.variables))
    assert shrink_in_place(model)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5
    )
    sizes = {n: model.get_layer(n).output.shape[-1] for n in ZOO[make]}
    assert sizes == ZOO[make]
    assert all(a is b for a, b in zip(model.layers, layers, strict=True))
    assert [x.path for x in model.variables] == names
    assert list(map(id, model.variables)) == variables
    # No more is dead, and all of these work on the smaller model. Tracing
    # takes most of the time: one model is enough.
    assert not shrink_in_place(model)
    is_on_tensorflow = keras.backend.backend() == "tensorflow"
    model.run_eagerly = is_on_tensorflow and make is not mlp
    model.fit(x, y, epochs=2, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.summary()
    trained = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), trained, 1e-5)
    assert loaded.count_params() == model.count_params()
    loaded.run_eagerly = model.run_eagerly
    loaded.fit(x, y, verbose=0)
    plain = keras_vd.shrink(to_deterministic(model), verbose=0)
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), trained, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_optimizer_keeps_what_it_knows(optimizer):
    # Oracle: the slots before, at the indices that stay.
    made = {
        "sgd": keras.optimizers.SGD(0.01, momentum=0.9),
        "adam": keras.optimizers.Adam(0.01, amsgrad=True),
    }[optimizer]
    model = compiled(mlp(), made)
    x, y = data(model)
    model.fit(x, y, epochs=2, verbose=0)
    assert made.iterations == 2
    before = dict(
        zip(map(id, made.variables), values(made.variables), strict=True)
    )
    assert shrink_in_place(model)
    assert made.iterations == 2
    kept = np.array([0, 3, 4, 6, 7])
    changed = 0
    for variable in made.variables:
        expected = before[id(variable)]
        if tuple(variable.shape) != expected.shape:
            changed += 1
            for axis, size in enumerate(expected.shape):
                if size == 8:
                    expected = np.take(expected, kept, axis)
        np.testing.assert_array_equal(values([variable])[0], expected)
    # Kernel and log_sigma2 of `a` and `b`, bias of `a`, gamma and beta.
    per_variable = {"sgd": 1, "adam": 3}[optimizer]
    assert changed == 7 * per_variable
    model.fit(x, y, verbose=0)


def test_training_goes_on_as_without():
    # Oracle: the same model, pruned but not shrunk, without noise. Units that
    # are dead on both sides do not move.
    options = {
        "kl_weight": 0.0,
        "posterior": Gaussian(log_sigma2_init=-45.0, estimator="weight"),
    }

    def make():
        model = keras.Sequential(
            [
                keras.Input((6,)),
                VDDense(8, "tanh", name="a", **options),
                VDDense(3, name="b", **options),
            ]
        )
        randomize(model)
        kill_outputs(model.get_layer("a"), [0, 5])
        kill_inputs(model.get_layer("b"), [0, 5])
        return compiled(model, keras.optimizers.Adam(0.01))

    models = [make(), make()]
    for model in models:
        x, y = data(model)
        model.fit(x, y, epochs=2, verbose=0, shuffle=False)
    assert shrink_in_place(models[1])
    for model in models:
        model.fit(x, y, batch_size=6, epochs=1, verbose=0, shuffle=False)
    whole, smaller = ({v.path: v for v in m.variables} for m in models)
    kept = np.array([1, 2, 3, 4, 6, 7])
    for layer, axes in (("a", (1,)), ("b", (0,))):
        found = values([models[1].get_layer(layer).kernel])[0]
        expected = values([models[0].get_layer(layer).kernel])[0]
        for axis in axes:
            expected = np.take(expected, kept, axis)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert len(whole) == len(smaller)
    biases = values([m.get_layer("b").bias for m in models])
    np.testing.assert_allclose(*biases, atol=2e-5)


def test_fit_shrinks_at_the_asked_epochs(capsys):
    # Oracle: numbers of parameters before and after one change, and the epochs
    # that the arguments name.
    model = compiled(mlp())
    before = model.count_params()
    weights = 6 * 8 + 8 * 7 + 7 * 3
    x, y = data(model)
    history = model.fit(
        x,
        y,
        epochs=6,
        verbose=0,
        validation_data=(x, y),
        callbacks=[
            KLAnnealing(16, warmup_epochs=1, start_epoch=0, verbose=0),
            ShrinkWhileTraining(every=2, start_epoch=1),
        ],
    )
    after = model.count_params()
    assert after < before
    counts = history.history["parameters"]
    assert counts == [before] * 3 + [after] * 3
    assert capsys.readouterr().out.count("parameters:") == 1
    assert model.get_layer("a").units == 5
    # What has been removed counts as zero.
    report = keras_vd.sparsity_report(model)
    assert report.weights < weights
    last = {name: values[-1] for name, values in history.history.items()}
    assert last["nonzero_ratio"] == pytest.approx(weights / report.nonzero)
    assert last["sparsity"] == pytest.approx(1 - report.nonzero / weights)


def test_nothing_happens_where_nothing_is_dead(capsys):
    model = compiled(
        keras.Sequential(
            [
                keras.Input((4,)),
                VDDense(3, "relu", kl_weight=1.0),
                VDDense(2, kl_weight=1.0),
            ]
        )
    )
    x, y = data(model)
    model.fit(x, y, verbose=0)
    functions = model.train_function
    before = [v.value for v in model.non_trainable_variables]
    assert not shrink_in_place(model)
    assert model.train_function is functions
    after = [v.value for v in model.non_trainable_variables]
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_a_gate_of_branches_that_would_differ_stays_whole():
    """Its variables have one size, so branches must keep the same units."""
    assert not shrink_in_place(compiled(gate_of_branches(dead=[0])))


def test_gates_that_depend_on_inputs_stay_whole():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            VDDense(8, "relu", name="a", kl_weight=1.0),
            DependentBetaBernoulliDropout(kl_weight=1.0),
            VDDense(7, "relu", name="b", kl_weight=1.0),
            VDDense(2, name="c", kl_weight=1.0),
        ]
    )
    kill_inputs(model.get_layer("b"), [1, 2])
    kill_inputs(model.get_layer("c"), [3])
    compiled(model)
    x, _ = data(model)
    expected = model.predict(x, verbose=0)
    assert shrink_in_place(model)
    assert [model.get_layer(n).units for n in "abc"] == [8, 6, 2]
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, 1e-5)


def test_frozen_zeros_stay_whole():
    # A constraint that holds a mask of the old shape would not fit.
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(8), VDDense(2, kl_weight=1.0)]
    )
    kill_inputs(model.layers[1], [1, 2])
    kernel = np.eye(6, 8)
    model.layers[0].kernel.assign(kernel)
    keras_vd.freeze_zeros(model)
    assert not shrink_in_place(compiled(model))


def test_layers_that_need_a_new_bias_stay_whole():
    # A constant unit that is not 0 has to go to a bias that is not there.
    model = keras.Sequential(
        [
            keras.Input((6,)),
            VDDense(8, "tanh", name="a", kl_weight=1.0),
            VDDense(2, name="b", kl_weight=1.0, use_bias=False),
        ]
    )
    randomize(model)
    kill_outputs(model.get_layer("a"), [2, 5])
    assert not shrink_in_place(compiled(model))


def test_outputs_that_another_model_reads_stay_whole():
    inputs = keras.Input((6,))
    hidden = VDDense(8, "tanh", name="a", kl_weight=1.0)(inputs)
    outputs = VDDense(2, name="b", kl_weight=1.0)(hidden)
    model = compiled(keras.Model(inputs, outputs))
    kill_inputs(model.get_layer("b"), [2, 5])
    keras.Model(inputs, L.Dense(3)(hidden))
    assert not shrink_in_place(model)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = VDDense(3, kl_weight=1.0)

    def call(self, inputs, training=None):
        return self.dense(inputs, training=training)


def refused(model, *others, match):
    x, y = np.ones((4, 6)), np.ones((4, 3))
    with pytest.raises(ValueError, match=match):
        model.fit(x, y, verbose=0, callbacks=[ShrinkWhileTraining(), *others])


def test_refuses_what_cannot_work(tmp_path, monkeypatch):
    model = compiled(mlp())
    stopping = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    refused(model, stopping, match="restore_best_weights")
    for backup in (keras.callbacks.BackupAndRestore, BackupAndRestore):
        refused(model, backup(str(tmp_path)), match="BackupAndRestore")
    refused(compiled(mlp(), "adafactor"), match="Adafactor")
    subclassed = Subclassed()
    subclassed.compile("adam", "mse")
    refused(subclassed, match="`call` of its own")
    plain = keras.Sequential([keras.Input((6,)), L.Dense(3)])
    refused(compiled(plain), match="variational layer")
    callback = ShrinkWhileTraining()
    callback.set_model(mlp())
    with pytest.raises(ValueError, match="compiled"):
        callback.on_train_begin()
    monkeypatch.setattr(shrinking, "is_distributed", lambda model: True)
    refused(model, match="single device")


@pytest.mark.parametrize("options", [{"every": 0}, {"start_epoch": -1}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="at least"):
        ShrinkWhileTraining(**options)


def test_initial_weights_shrink_with_their_weights():
    """Identity: the rows and columns of the initial kernel that stay."""
    prior = keras_vd.priors.Gaussian(0.5, mean="initial")
    model = mlp(posterior=Gaussian(prior=prior))
    initial = values([x.prior_mean for x in variational_weights(model)])
    assert shrink_in_place(compiled(model))
    a, b, c = [x.prior_mean for x in variational_weights(model)]
    kept = [0, 3, 4, 6, 7]  # all but units 1, 2 and 5
    np.testing.assert_array_equal(a, initial[0][:, kept])
    np.testing.assert_array_equal(b, initial[1][kept])
    np.testing.assert_array_equal(c, initial[2])
    keras_vd.kl_divergence(model)


def test_masks_shrink_with_their_weights():
    model = compiled(mlp())
    assert shrink_in_place(model)
    for posterior in variational_weights(model):
        shape = tuple(posterior.weight.shape)
        assert tuple(posterior.keep_mask.shape) == shape
        assert tuple(posterior.log_sigma2.shape) == shape


def test_outputs_from_before_do_not_matter():
    # PyTorch remembers the shape of a weight as long as such outputs exist.
    model = compiled(mlp())
    x, y = data(model)
    outputs = model(x, training=True)
    assert shrink_in_place(model)
    model.fit(x, y, verbose=0)
    assert outputs.shape == (16, 3)
