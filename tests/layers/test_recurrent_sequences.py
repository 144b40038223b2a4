"""What Keras' recurrent layers can do with sequences, with sampled weights.

Oracles are loops over time steps in NumPy, see `tests/helpers/recurrent.py`.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

import keras_vd
from keras_vd import layers
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import (
    IS_JAX,
    KL_WEIGHT,
    MAX_Z,
    assert_close,
    assert_equal,
    randomize,
)
from tests.helpers.plain import plain_class
from tests.helpers.recurrent import (
    KERNELS,
    make_case,
    record_flipped,
    redraw,
    rewound,
    sequence_weights,
    slow_rnn,
)

KINDS = [layers.VDSimpleRNN, layers.VDLSTM, layers.VDGRU]
MASK = np.array(
    [
        [True, True, True, True],
        [True, True, False, False],
        [False, True, False, True],
    ]
)
STATES = np.random.default_rng(8).normal(size=(2, 3, 3)).astype("float32")
# Arguments of the layer, and of the slow layer for each sequence.
VARIANTS = {
    "go_backwards": ({"go_backwards": True}, ()),
    "mask": ({}, ("mask",)),
    "zero_output_for_mask": ({"zero_output_for_mask": True}, ("mask",)),
    "initial_state": ({}, ("states",)),
    "unroll": ({"unroll": True}, ("states", "mask")),
    "all": (
        {"go_backwards": True, "zero_output_for_mask": True},
        ("states", "mask"),
    ),
}


@pytest.mark.integration
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_samples", ["batch", "sequence"])
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=pytest.mark.core if name == "all" else ())
        for name in VARIANTS
    ],
)
def test_variants(kind, weight_samples, variant, monkeypatch):
    """Oracle: the slow loop; all outputs, the last one and the states."""
    arguments, given = VARIANTS[variant]
    case = make_case("rnn", kind, **arguments)
    drawn = record_flipped(monkeypatch)
    layer = case.make(
        weight_samples=weight_samples, return_sequences=True, return_state=True
    )
    inputs, call = case.inputs(), {}
    states = STATES[: 1 + (kind is layers.VDLSTM)]
    if "mask" in given:
        call["mask"] = MASK
    if "states" in given:
        call["initial_state"] = list(states)
    with rewound(layer):
        outputs, *last = layer(inputs, training=True, **call)
    weights = [redraw(layer)] * 3
    if weight_samples == "sequence":
        drawn = dict(zip(KERNELS, drawn, strict=True))
        weights = [sequence_weights(drawn, b) for b in range(3)]
    for b in range(3):
        expected, expected_last = slow_rnn(
            layer,
            inputs[b],
            weights[b],
            MASK[b] if "mask" in given else None,
            list(states[:, b]) if "states" in given else None,
        )
        assert_close(outputs[b], expected, 1e-5)
        for ours, theirs in zip(last, expected_last, strict=True):
            assert_close(ours[b], theirs, 1e-5)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_samples", ["batch", "sequence"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(kind, weight_samples, training):
    """Identity: a padded sequence's output is that of the bare one."""
    embedding = keras.layers.Embedding(5, 2, mask_zero=True)
    layer = kind(
        3, kl_weight=KL_WEIGHT, weight_samples=weight_samples, unroll=True
    )
    outputs = []
    for padding in ((0, 0), (0, 2), (1, 1)):
        ids = np.pad([[1, 4, 2], [3, 3, 1]], ((0, 0), padding))
        if not outputs:
            layer.build((None, 3, 2))
            randomize(layer)
        with rewound(layer):
            outputs.append(to_numpy(layer(embedding(ids), training=training)))
    assert_close(outputs[1], outputs[0])
    assert_close(outputs[2], outputs[0])
    assert np.abs(outputs[0]).max() > 0.01


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_stateful(kind, training):
    """Oracle: the slow loop, going on from the states of the last call."""
    case = make_case("rnn", kind)
    layer = kind(3, kl_weight=KL_WEIGHT, stateful=True, unroll=True)
    layer.build((3, 4, 2))
    randomize(layer)
    states = [None] * 3
    for call in range(3):
        if call == 2:
            layer.reset_state()
            states = [None] * 3
        inputs = case.inputs(seed=call)
        with rewound(layer):
            outputs = layer(inputs, training=training)
        weights = {name: getattr(layer.cell, name) for name in KERNELS}
        if training:
            weights = redraw(layer)
        weights = {name: to_numpy(weights[name]) for name in KERNELS}
        ends = [
            slow_rnn(layer, inputs[b], weights, states=states[b])
            for b in range(3)
        ]
        states = [end[1] for end in ends]
        expected = np.stack([end[0][-1] for end in ends])
        assert_close(outputs, expected, 1e-5)


def test_stacked_layers():
    """Oracle: Keras layers with the drawn weights, on top of each other."""
    model = keras.Sequential(
        [
            keras.Input((4, 2)),
            layers.VDLSTM(3, return_sequences=True, kl_weight=KL_WEIGHT),
            layers.VDGRU(2, kl_weight=KL_WEIGHT),
        ]
    )
    randomize(model)
    inputs = make_case("rnn", layers.VDLSTM).inputs()
    with rewound(model):
        outputs = model(inputs, training=True)
    assert len(model.losses) == 4
    expected = ops.convert_to_tensor(inputs)
    for layer in model.layers:
        weights = redraw(layer)
        steps = [slow_rnn(layer, x, weights)[0] for x in to_numpy(expected)]
        expected = np.stack(steps)
    assert_close(outputs, expected[:, -1], 1e-5)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("weight_samples", ["batch", "sequence"])
def test_time_distributed(weight_samples):
    """Oracles: one KL for each kernel; inference step by step."""
    layer = make_case(
        "lstm", layers.VDLSTM, weight_samples=weight_samples
    ).make()
    model = keras.Sequential(
        [keras.Input((3, 4, 2)), keras.layers.TimeDistributed(layer)]
    )
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4, 2))
    outputs = to_numpy(model(np.ones((2, 3, 4, 2)), training=True))
    assert len(np.unique(outputs[0, :, 0])) == 3
    total = sum(float(to_numpy(loss)) for loss in model.losses)
    expected = KL_WEIGHT * keras_vd.kl_divergence(model)
    assert total == pytest.approx(expected, rel=1e-6)
    inputs = inputs.astype("float32")
    steps = [to_numpy(layer(inputs[:, step])) for step in range(3)]
    assert_close(model(inputs), np.stack(steps, axis=1))


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="only TensorFlow's graphs have axes of unknown length",
)
@pytest.mark.parametrize("training", [False, True])
def test_time_distributed_over_an_unknown_number_of_steps(training):
    """Oracle: Keras' layer in the same wrapper, next to no noise in training.

    As many steps as sequences: Keras 3.15 takes one for the other there.
    """
    import tensorflow as tf

    case = make_case("lstm", layers.VDLSTM)
    layer = case.make()
    for posterior in case.posteriors(layer):
        posterior.log_sigma2.assign(np.full(posterior.theta.shape, -80.0))
    plain = case.plain(layer, [x.theta for x in case.posteriors(layer)])
    inputs = np.random.default_rng(0).normal(size=(3, 3, 4, 2))
    inputs = inputs.astype("float32")
    outputs, losses = [], []
    for inner in (layer, plain):
        wrapper = keras.layers.TimeDistributed(inner)
        wrapper.build((None, None, 4, 2))

        @tf.function(input_signature=[tf.TensorSpec((None, None, 4, 2))])
        def call(inputs, wrapper=wrapper):
            assert inputs.shape[1] is None
            result = wrapper(inputs, training=training)
            return result, tf.convert_to_tensor(sum(wrapper.losses))

        result, loss = call(inputs)
        outputs.append(result)
        losses.append(float(loss))
    assert_close(*outputs)
    expected = KL_WEIGHT * keras_vd.kl_divergence(layer) * training
    assert losses == [pytest.approx(expected, rel=1e-6), 0.0]


def bidirectional(kind, merge_mode="concat", **arguments):
    """A wrapper of 3 units each way, built, with random weights."""
    layer = kind(3, kl_weight=KL_WEIGHT, **arguments)
    wrapper = keras.layers.Bidirectional(layer, merge_mode=merge_mode)
    wrapper.build((None, 4, 2))
    randomize(wrapper)
    return wrapper


def directions(wrapper):
    return [wrapper.forward_layer, wrapper.backward_layer]


def with_weights(wrapper, kind, weights, **arguments):
    """Keras' wrapper around the plain layer, with these kernels."""
    plain = keras.layers.Bidirectional(
        plain_class(kind)(3, **arguments), merge_mode=wrapper.merge_mode
    )
    plain.build((None, 4, 2))
    pairs = zip(directions(plain), directions(wrapper), weights, strict=True)
    for ours, theirs, kernels in pairs:
        for name in KERNELS:
            getattr(ours.cell, name).assign(kernels[name])
        ours.cell.bias.assign(to_numpy(theirs.cell.bias))
    return plain


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize(
    ("kind", "merge_mode", "arguments"),
    [
        (layers.VDLSTM, "concat", {}),
        (layers.VDGRU, "sum", {"return_sequences": True}),
        (layers.VDSimpleRNN, "mul", {"unroll": True}),
        (layers.VDLSTM, "ave", {"unroll": True, "return_state": True}),
        (layers.VDGRU, None, {"unroll": True, "reset_after": False}),
    ],
)
def test_bidirectional(kind, merge_mode, arguments):
    """Oracle: Keras' wrapper, with the weights that each direction drew."""
    wrapper = bidirectional(kind, merge_mode, **arguments)
    inputs = make_case("rnn", kind).inputs()
    with rewound(wrapper):
        outputs = wrapper(inputs, training=True)
    assert len(wrapper.losses) == 4
    total = sum(float(to_numpy(loss)) for loss in wrapper.losses)
    expected = KL_WEIGHT * keras_vd.kl_divergence(wrapper)
    assert total == pytest.approx(expected, rel=1e-6)
    weights = [redraw(layer) for layer in directions(wrapper)]
    plain = with_weights(wrapper, kind, weights, **arguments)
    for ours, theirs in zip(
        keras.tree.flatten(outputs),
        keras.tree.flatten(plain(inputs)),
        strict=True,
    ):
        assert_close(ours, theirs)
    weights = [
        {name: to_numpy(getattr(layer.cell, name)) for name in KERNELS}
        for layer in directions(wrapper)
    ]
    plain = with_weights(wrapper, kind, weights, **arguments)
    for ours, theirs in zip(
        keras.tree.flatten(wrapper(inputs)),
        keras.tree.flatten(plain(inputs)),
        strict=True,
    ):
        assert_close(ours, theirs)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("weight_samples", ["batch", "sequence"])
def test_directions_have_noise_of_their_own_despite_a_seed(weight_samples):
    """Oracle: correlation 0 of the noise of two directions.

    Both have the same weights and see a sequence of equal steps, so without
    noise of their own they would agree.
    """
    wrapper = bidirectional(
        layers.VDSimpleRNN,
        None,
        seed=3,
        unroll=True,
        weight_samples=weight_samples,
    )
    forward, backward = directions(wrapper)
    for ours, theirs in zip(
        forward.trainable_variables, backward.trainable_variables, strict=True
    ):
        theirs.assign(to_numpy(ours))
    inputs = np.ones((1, 2, 2), "float32")
    num_draws = 60
    outputs = np.stack(
        [
            np.stack([to_numpy(y)[0] for y in wrapper(inputs, training=True)])
            for _ in range(num_draws)
        ]
    )
    assert_equal(*wrapper(inputs))
    for unit in range(3):
        correlation = np.corrcoef(outputs[:, 0, unit], outputs[:, 1, unit])
        assert abs(correlation[0, 1]) < MAX_Z / np.sqrt(num_draws)


FUSED = {layers.VDLSTM: "lstm", layers.VDGRU: "gru"}
# Not in Keras 3.10. The fixture below makes one.
FUSES_BOTH_DIRECTIONS = hasattr(keras.src.backend, "bidirectional_lstm")


@pytest.fixture
def fused_calls(monkeypatch):
    """Keyword arguments of the calls of fused kernels, by their names."""
    calls = {}
    for name in ("lstm", "gru", "bidirectional_lstm", "bidirectional_gru"):
        calls[name] = []

        def record(*args, calls=calls[name], **kwargs):
            calls.append(kwargs)
            raise NotImplementedError

        monkeypatch.setattr(f"keras.src.backend.{name}", record, raising=False)
    return calls


@pytest.mark.core
@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("training", [False, True])
def test_fused_kernels_get_sampled_weights(kind, training, fused_calls):
    """Oracles: the drawn weights, or theta; Keras' wrapper as a control.

    The fused kernel of `Bidirectional` reads the variables of the cells.
    """
    wrapper, inputs = bidirectional(kind), make_case("rnn", kind).inputs()
    with rewound(wrapper):
        wrapper(inputs, training=training)
    assert fused_calls[f"bidirectional_{FUSED[kind]}"] == []
    calls = fused_calls[FUSED[kind]]
    for call, layer in zip(calls, directions(wrapper), strict=True):
        expected = {name: getattr(layer.cell, name) for name in KERNELS}
        if training:
            expected = redraw(layer)
        for name in KERNELS:
            assert_equal(call[name], expected[name])
    calls.clear()
    plain = with_weights(
        wrapper, kind, [redraw(layer) for layer in directions(wrapper)]
    )
    plain(inputs)
    fused = fused_calls[f"bidirectional_{FUSED[kind]}"]
    assert len(fused) == FUSES_BOTH_DIRECTIONS
    assert len(calls) == 2


@pytest.mark.core
@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_use_cudnn_is_what_the_user_wants(kind, is_wrapped, fused_calls):
    """Oracle: calls of the fused kernel, counted; an error where it must be."""
    inputs, calls = make_case("rnn", kind).inputs(), fused_calls[FUSED[kind]]
    for use_cudnn in (False, "auto", True):
        layer = kind(3, kl_weight=KL_WEIGHT, use_cudnn=use_cudnn, unroll=True)
        if is_wrapped:
            layer = keras.layers.Bidirectional(layer)
        layer.build((None, 4, 2))
        calls.clear()
        if use_cudnn is True:
            with pytest.raises(ValueError, match="cuDNN is not supported"):
                layer(inputs, training=True)
        else:
            layer(inputs, training=True)
        assert bool(calls) == (use_cudnn is not False)
    assert all(
        not fused_calls[f"bidirectional_{name}"] for name in ("lstm", "gru")
    )


def test_sequences_need_a_loop_of_their_own(fused_calls):
    """A fused kernel knows one set of weights."""
    case = make_case("lstm", layers.VDLSTM, weight_samples="sequence")
    layer = case.make()
    layer(case.inputs(), training=True)
    assert fused_calls["lstm"] == []
    layer(case.inputs())
    assert len(fused_calls["lstm"]) == 1


@pytest.mark.core
@pytest.mark.parametrize("weight_samples", ["batch", "sequence"])
@pytest.mark.parametrize("training", [False, True])
def test_cell_is_as_before_after_an_error(weight_samples, training):
    """Identity: the very same attributes, also when the loop has failed."""
    is_broken = []

    def activation(x):
        if is_broken:
            raise ArithmeticError("broken")
        return ops.tanh(x)

    layer = layers.VDLSTM(
        3,
        activation=activation,
        kl_weight=KL_WEIGHT,
        weight_samples=weight_samples,
        use_cudnn="auto",
    )
    inputs = make_case("rnn", layers.VDLSTM).inputs()
    layer(inputs)
    kept = {"kernel", "recurrent_kernel", "bias", "call"}
    before = {name: vars(layer.cell).get(name) for name in kept}
    layer(inputs, training=training)
    is_broken.append(True)
    with pytest.raises(ArithmeticError, match="broken"):
        layer(inputs, training=training)
    is_broken.clear()
    for name, value in before.items():
        assert vars(layer.cell).get(name) is value
    assert layer.use_cudnn is False
    assert len(layer.trainable_variables) == 5
    outputs = to_numpy(layer(inputs))
    assert_equal(layer(inputs), outputs)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_training_with_fit(kind):
    """Oracle: mean squared error of the inference output, plus the KL."""
    model = keras.Sequential([keras.Input((None, 2)), bidirectional(kind)])
    for posterior in keras_vd.variational_weights(model):
        posterior.log_sigma2.assign(np.full(posterior.theta.shape, -30.0))
    inputs = make_case("rnn", kind).inputs()
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=not IS_JAX)
    error = float(np.mean(to_numpy(model(inputs)) ** 2))
    expected = error + KL_WEIGHT * keras_vd.kl_divergence(model)
    history = model.fit(inputs, np.zeros((3, 6)), epochs=1, verbose=0)
    assert history.history["loss"][0] == pytest.approx(expected, rel=1e-4)
    loss = model.evaluate(inputs, np.zeros((3, 6)), verbose=0)
    assert loss == pytest.approx(error, rel=1e-4)
