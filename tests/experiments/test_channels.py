"""experiments.channels: which channels go, for how long is trained."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import experiments.channels.__main__ as channels
from experiments.channels import methods
from experiments.mnist import data as mnist_data
from tests.helpers.arrays import to_numpy


def network(hidden, features=4):
    """Two hidden widths, with nothing that ties them."""
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(hidden, 3, use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2D(features, 3, use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))


def macs(hidden, features=4):
    """Multiplications, counted by hand."""
    return 16 * 27 * hidden + 4 * 9 * hidden * features + 2 * features


def parameters(hidden, features=4):
    """Parameters, counted by hand; four of normalization for a channel."""
    kernels = 27 * hidden + 9 * hidden * features
    return kernels + 4 * (hidden + features) + 2 * features + 2


def size(hidden, features=4):
    return methods.Size(macs(hidden, features), parameters(hidden, features))


def scaled(model, small):
    """Make kernels even, and those of some channels a hundredth of that."""
    generator = np.random.default_rng(0)
    first = generator.choice((-1.0, 1.0), model.layers[1].kernel.shape)
    first[..., small] *= 0.01
    model.layers[1].kernel.assign(first)
    second = model.layers[4].kernel
    # Smaller than any of the others, and yet none is small for its layer.
    second.assign(1e-4 * generator.choice((-1.0, 1.0), second.shape))
    return first


@pytest.mark.parametrize("small", [[0, 2, 3], [5]])
def test_magnitude_takes_the_smallest_and_no_more(small):
    """Oracle: the kernels that were made small, and MACs by hand."""
    model = network(6)
    kernel = scaled(model, small)
    left = 6 - len(small)
    schedule = methods.Schedule(1, 1, steps=1)

    def fit(model, epochs, decays):
        pass

    thin = methods.by_magnitude(model, fit, schedule, size(left))
    assert methods.size_of(thin) == size(left)
    np.testing.assert_allclose(
        to_numpy(thin.layers[1].kernel), np.delete(kernel, small, -1), rtol=1e-6
    )
    # One multiplication or parameter less allowed is one channel less.
    for less in ((1, 0), (0, 1)):
        allowed = methods.Size(macs(left) - less[0], parameters(left) - less[1])
        thinner = methods.by_magnitude(model, fit, schedule, allowed)
        assert methods.size_of(thinner) <= allowed


@pytest.mark.integration
def test_magnitude_trains_as_long_as_gates():
    """Oracle: the schedule, and the cube of what is left of it."""
    whole, wish = macs(40), methods.Size(macs(4), parameters(40))
    seen = []

    def fit(model, epochs, decays, callbacks=()):
        seen.append((methods.size_of(model).macs, epochs, decays))

    schedule = methods.Schedule(7, 3, steps=3)
    thin = methods.by_magnitude(network(40), fit, schedule, wish)
    assert methods.size_of(thin).macs == seen[-1][0] <= wish.macs
    assert [(epochs, decays) for _, epochs, decays in seen] == [
        (3, False),
        (2, False),
        (2, False),
        (3, True),
    ]
    one_channel = macs(40) - macs(39)
    for step, (found, *_) in enumerate(seen[:3], 1):
        allowed = wish.macs + (whole - wish.macs) * (1 - step / 3) ** 3
        assert allowed - one_channel < found <= allowed


def test_the_gates_with_the_most_noise_go():
    """Oracle: a network without the channels whose gates were made noisy."""
    model = network(6)
    seen = []

    def fit(model, epochs, decays, callbacks=()):
        gates = [x for x in model.layers if hasattr(x, "keep_mask")]
        open_gates = sum(int(to_numpy(x.keep_mask).sum()) for x in gates)
        kinds = [type(x).__name__ for x in callbacks]
        seen.append((open_gates, epochs, decays, kinds))
        for gate in gates:
            # The first have the most noise, so they are closed first.
            mask = to_numpy(gate.keep_mask)
            assert (mask == np.sort(mask)).all()
            gate.log_sigma.assign(np.linspace(-1.0, -2.0, gate.units))

    schedule = methods.Schedule(4, 2, steps=2)
    smaller = methods.by_noise(model, fit, schedule, size(3, 3), 10, 1.0)
    assert methods.size_of(smaller) == size(3, 3)
    (first, *_), (second, *_), _ = seen
    assert first == 6 + 4 > second >= 3 + 3
    assert [x[1:] for x in seen] == [
        (2, False, ["KLAnnealing"]),
        (2, False, ["KLAnnealing"]),
        (2, True, []),
    ]
    kernel = to_numpy(model.layers[1].kernel)[..., 3:]
    np.testing.assert_allclose(
        to_numpy(smaller.layers[1].kernel), kernel, rtol=1e-6
    )


def test_what_a_channel_costs():
    """Oracle: shares of MACs and parameters, counted by hand."""
    model = network(6)
    whole = size(6)
    costs = methods.channel_costs(methods.with_gates(model)[0])
    for found, less in zip(costs.values(), (size(5), size(6, 3)), strict=True):
        expected = 2.0 - less.macs / whole.macs
        expected -= less.parameters / whole.parameters
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sigma", "left"), [(0.45, (1, 4)), (0.2, (6, 1))], ids=["cost", "noise"]
)
def test_noise_and_cost_decide(sigma, left):
    """Oracle: the products by hand; a hidden channel costs 1.6 times more."""

    def fit(model, epochs, decays, callbacks=()):
        gates = [x for x in model.layers if hasattr(x, "keep_mask")]
        for gate, noise in zip(gates, (sigma, 0.5), strict=False):
            gate.log_sigma.assign(np.full(gate.units, np.log(noise)))

    schedule = methods.Schedule(1, 0, steps=1)
    smaller = methods.by_noise(network(6), fit, schedule, size(*left), 10, 1.0)
    assert methods.size_of(smaller) == size(*left)


def test_what_is_wished_for(monkeypatch, tmp_path):
    """Oracle: shares of a whole that is counted by hand; a larger gated one."""
    seen = []

    def method(name):
        def remember(model, fit, schedule, wish, *_):
            seen.append((name, wish, fit.__self__.teacher))
            return network(3)

        return remember

    for name in ("by_noise", "by_magnitude"):
        monkeypatch.setattr(methods, name, method(name))
    monkeypatch.setattr(channels.Trainer, "fit", lambda self, *_, **__: None)
    monkeypatch.setattr(channels.Trainer, "accuracy_percent", lambda *_: 50.0)
    monkeypatch.setattr(channels, "build", lambda *_: network(6))
    options = ("--limit", "100", "--macs", "0.5", "--parameters", "0.25")
    out = ("--out", str(tmp_path))
    if hasattr(keras, "distillation"):
        out = (*out, "--distill")
    channels.run(channels.parse_arguments([*options, *out]))
    (_, gates, teacher), (_, magnitude, other) = seen
    assert gates == methods.Size(macs(6) // 2, parameters(6) // 4)
    assert magnitude == methods.Size(macs(3), parameters(6))
    assert teacher is other
    assert (teacher is not None) == ("--distill" in out)


def test_a_keras_without_a_distiller(monkeypatch, capsys):
    monkeypatch.delattr(keras, "distillation", raising=False)
    with pytest.raises(SystemExit):
        channels.parse_arguments(["--distill"])
    assert "--distill needs Keras 3.12 or newer" in capsys.readouterr().err


@pytest.mark.integration
def test_one_command_makes_table_picture_and_models(tmp_path, capsys):
    out = tmp_path / "out"
    options = (
        *("--limit", "100", "--epochs", "2", "--finetune-epochs", "1"),
        *("--out", str(out), "--macs", "0.5"),
    )
    found = channels.run(channels.parse_arguments(options))
    assert json.loads((out / "results.json").read_text()) == found
    assert [x["method"] for x in found["rows"]] == [
        *("as it came", "trained on", "gates", "magnitude")
    ]
    assert (out / "channels.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    for row in found["rows"]:
        assert f"{row['accuracy_percent']:.2f} | {row['macs']:,}" in printed
    whole = found["rows"][0]["macs"]
    for row in found["rows"][2:]:
        assert 0.3 * whole < row["macs"] <= 0.5 * whole
    gates, magnitude = found["rows"][2:]
    assert magnitude["macs"] <= gates["macs"]
    (file,) = out.glob("gates-*.keras")
    loaded = channels.load(file)
    assert loaded.count_params() == found["rows"][2]["parameters"]


@pytest.mark.skipif(
    not hasattr(keras, "distillation"), reason="needs Keras 3.12"
)
@pytest.mark.parametrize("activation", ["softmax", None])
def test_those_without_gates_learn_from_a_teacher(activation):
    """Oracle: a teacher that is sure of one class, whose weight is a half."""
    options = ("--learning-rate", "0.05", "--batch-size", "50")
    images = mnist_data.load("digits", None).limited(300)
    trainer = channels.Trainer(images, channels.parse_arguments(options))

    def classifier(**options):
        shape = images.x_train.shape[1:]
        stack = [keras.Input(shape), keras.layers.Flatten()]
        outputs = keras.layers.Dense(10, activation, **options)
        return keras.Sequential([*stack, outputs])

    def share_of_first(teacher):
        keras.utils.set_random_seed(0)
        student = classifier()
        trainer.teacher = teacher
        trainer.fit(student, 8, decays=False)
        outputs = student.predict(images.x_train, verbose=0)
        if not activation:
            outputs = keras.ops.convert_to_numpy(keras.ops.softmax(outputs))
        return outputs[:, 0].mean()

    bias = keras.initializers.Constant([20.0] + 9 * [0.0])
    sure = classifier(kernel_initializer="zeros", bias_initializer=bias)
    assert share_of_first(None) < 0.15
    # Of the others' examples half, of the first class all.
    assert share_of_first(sure) == pytest.approx(0.55, abs=0.1)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epochs", "0", "--epochs must be at least 1, not 0"),
        ("--finetune-epochs", "-1", "must be at least 0, not -1"),
        ("--scale", "0", "--scale must be above 0, not 0.0"),
        ("--macs", "-1", "--macs must be above 0, not -1.0"),
        ("--parameters", "0", "--parameters must be above 0, not 0.0"),
        ("--learning-rate", "nan", "--learning-rate must be above 0, not nan"),
    ],
)
def test_bad_options_are_refused(option, value, message, capsys):
    with pytest.raises(SystemExit) as ended:
        channels.parse_arguments([option, value])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_model_that_cannot_be_read(tmp_path, capsys):
    file = tmp_path / "model.keras"
    file.write_text("nothing")
    with pytest.raises(SystemExit):
        channels.load(file)
    assert str(file) in capsys.readouterr().err
