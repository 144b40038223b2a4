"""IVON: its posterior, its steps, and what can be done with them."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_vd
from keras_vd.optimizers import IVON

pytestmark = pytest.mark.core


def as_array(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def trained(optimizer, x, y, epochs=1, bias=True, seed=1):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((x.shape[1],)), keras.layers.Dense(1, use_bias=bias)]
    )
    model.compile(optimizer, keras_vd.losses.GaussianNLL(stddev=1.0))
    model.fit(x, y, batch_size=len(x), epochs=epochs, verbose=0)
    return model


def test_posterior_of_a_linear_model():
    """Oracle: Bayesian linear regression. Columns that are orthogonal to each
    other have posteriors that are independent, so a diagonal holds them all."""
    generator = np.random.default_rng(0)
    scales = np.array([0.5, 1.0, 2.0])
    x, _ = np.linalg.qr(generator.normal(size=(40, 3)))
    x = (x * np.sqrt(40) * scales).astype("float32")
    y = x @ np.array([[1.0], [-2.0], [0.5]]) + generator.normal(size=(40, 1))
    prior_stddev = 0.5
    precisions = (x**2).sum(0) + prior_stddev**-2
    means = (x.T @ y)[:, 0] / precisions
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 1500)
    optimizer = IVON(
        40, schedule, prior_stddev, hessian_init=1.0, beta_2=0.995, seed=0
    )
    # The same batch again and again, in one epoch.
    copies = np.tile(x, (1500, 1)), np.tile(y, (1500, 1))
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(1, use_bias=False)]
    )
    model.compile(optimizer, keras_vd.losses.GaussianNLL(stddev=1.0))
    model.fit(*copies, batch_size=40, shuffle=False, verbose=0)
    kernel = model.layers[0].kernel
    sigma = as_array(optimizer.sigma(kernel))[:, 0]
    np.testing.assert_allclose(sigma, precisions**-0.5, rtol=0.2)
    distance = (as_array(kernel)[:, 0] - means) * np.sqrt(precisions)
    assert np.abs(distance).max() < 0.3  # of a standard deviation


def test_steps_are_those_of_the_paper():
    """Oracle: algorithm 1, written out in NumPy, with the same draws."""
    n, s, rate, start, beta_1, beta_2 = 50, 0.7, 0.2, 3.0, 0.8, 0.9
    optimizer = IVON(n, rate, s, start, beta_1, beta_2, seed=0)
    weights = keras.Variable(np.array([1.0, -0.5, 0.2], "float32"))
    optimizer.build([weights])
    d = 1 / (n * s**2)
    m, h, v = (
        as_array(weights).astype("float64"),
        np.full(3, start),
        np.zeros(3),
    )
    generator = np.random.default_rng(0)
    for t in range(1, 6):
        w, g = as_array(weights).astype("float64"), generator.normal(size=3)
        optimizer.apply([ops.convert_to_tensor(g, "float32")], [weights])
        if t > 1:
            estimate = g * (w - m) * n * (h + d)
            gap = estimate - h
            h = (
                beta_2 * h
                + (1 - beta_2) * estimate
                + 0.5 * (1 - beta_2) ** 2 * gap**2 / (h + d)
            )
        v = beta_1 * v + (1 - beta_1) * g
        slope = v / (1 - beta_1**t) + d * m
        m = m - rate * (start + d) * slope / (h + d)
        sigma = 1 / np.sqrt(n * (h + d))
        np.testing.assert_allclose(
            as_array(optimizer.sigma(weights)), sigma, rtol=1e-5
        )
        drawn = (as_array(weights) - m) / sigma
        assert (np.abs(drawn) > 0).all()
        assert (np.abs(drawn) < 5).all()
    optimizer.finalize_variable_values([weights])
    np.testing.assert_allclose(as_array(weights), m, rtol=1e-4, atol=1e-6)


def test_what_is_drawn_has_the_posterior_s_width():
    optimizer = IVON(10, 1e-9, 1.0, hessian_init=2.0, seed=3)
    weights = keras.Variable(np.zeros(20000, "float32"))
    optimizer.build([weights])
    optimizer.apply([ops.zeros(20000)], [weights])
    # sigma^2 = 1 / (10 (2 + 1/10))
    assert np.std(as_array(weights)) == pytest.approx(21**-0.5, rel=0.02)
    assert abs(np.mean(as_array(weights))) < 4 * 21**-0.5 / 20000**0.5


@pytest.fixture(scope="module")
def regression():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 4)).astype("float32")
    y = x[:, :1] - 0.5 * x[:, 1:2] + 0.1 * generator.normal(size=(64, 1))
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(1),
        ]
    )
    optimizer = IVON(64, 0.02, hessian_init=20.0, seed=0)
    model.compile(optimizer, keras_vd.losses.GaussianNLL(stddev=0.5))
    model.fit(x, y, batch_size=16, epochs=20, verbose=0)
    return model, optimizer, x


def test_as_a_variational_model(regression):
    """Oracles: the plain network at its means, and `sigma`."""
    model, optimizer, x = regression
    before = [as_array(v) for v in model.trainable_variables]
    variational = optimizer.to_variational(model)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(as_array(variable), value)
    np.testing.assert_allclose(
        variational.predict(x, verbose=0),
        model.predict(x, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )
    plain = [
        variable
        for layer in (model.layers[0], model.layers[2])
        for variable in (layer.kernel, layer.bias)
    ]
    found = keras_vd.variational_weights(variational)
    assert len(found) == len(plain)
    for variable in plain:
        matches = [
            weight
            for weight in found
            if np.array_equal(as_array(weight.theta), as_array(variable))
        ]
        assert len(matches) == 1
        np.testing.assert_allclose(
            np.exp(0.5 * as_array(matches[0].log_sigma2)),
            as_array(optimizer.sigma(variable)),
            rtol=1e-5,
        )


def test_it_predicts_with_the_uncertainty_of_its_weights(regression):
    """Oracle: the plain network with weights drawn from N(mean, sigma^2)."""
    model, optimizer, x = regression
    found = keras_vd.predict_mc(
        optimizer.to_variational(model),
        x[:8],
        num_samples=400,
        task="regression",
        noise=0.5,
        verbose=0,
        seed=0,
    )
    first, norm, last = model.layers
    generator = np.random.default_rng(0)

    def drawn(variable):
        sigma = as_array(optimizer.sigma(variable))
        noise = generator.standard_normal((4000, *sigma.shape))
        return as_array(variable) + sigma * noise

    hidden = np.maximum(
        np.einsum("ei,diu->deu", x[:8], drawn(first.kernel))
        + drawn(first.bias)[:, None],
        0,
    )
    centred = hidden - hidden.mean(-1, keepdims=True)
    scale = np.sqrt(hidden.var(-1, keepdims=True) + norm.epsilon)
    normal = centred / scale * as_array(norm.gamma) + as_array(norm.beta)
    outputs = np.einsum("deu,duo->deo", normal, drawn(last.kernel))
    outputs = outputs + drawn(last.bias)[:, None]
    np.testing.assert_allclose(
        found.standard_deviation, outputs.std(0), rtol=0.2
    )


def test_weights_below_their_noise_are_pruned(regression):
    model, optimizer, _ = regression
    kernel = model.layers[0].kernel
    log_alpha = 2 * np.log(as_array(optimizer.sigma(kernel) / ops.abs(kernel)))
    threshold = float(np.median(log_alpha))
    pruned = optimizer.to_variational(model, threshold=threshold)
    report = keras_vd.prune(pruned)
    kept = log_alpha < threshold
    assert 0.4 < np.mean(kept) < 0.6
    kernel = as_array(keras_vd.to_deterministic(pruned).layers[0].kernel)
    np.testing.assert_array_equal(kernel != 0, kept)
    assert report.nonzero_ratio > 1


def test_the_means_are_left_after_fit(regression):
    model, optimizer, _ = regression
    for variable, mean in zip(
        model.trainable_variables, optimizer._means, strict=True
    ):
        np.testing.assert_array_equal(as_array(variable), as_array(mean))


def test_a_seed_repeats_and_another_does_not():
    x = np.random.default_rng(0).normal(size=(16, 2)).astype("float32")
    y = x[:, :1]
    kernels = [
        as_array(trained(IVON(16, seed=s), x, y, epochs=3).layers[0].kernel)
        for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_saved_and_trained_on(tmp_path):
    """Oracle: training that was never interrupted."""
    x = np.random.default_rng(0).normal(size=(16, 2)).astype("float32")
    y = x[:, :1]
    model = trained(IVON(16, seed=0), x, y, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, IVON)
    for one in (model, loaded):
        one.fit(x, y, batch_size=16, epochs=2, verbose=0)
    for one, other in zip(
        model.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        np.testing.assert_allclose(as_array(one), as_array(other), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_examples": 0}, "num_examples"),
        ({"prior_stddev": 0.0}, "prior_stddev"),
        ({"hessian_init": -1.0}, "hessian_init"),
        ({"beta_1": 1.0}, "beta_1"),
        ({"beta_2": 1.5}, "beta_2"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"use_ema": True}, "use_ema"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"`{message}`"):
        IVON(**{"num_examples": 10, **arguments})


def test_models_that_it_cannot_convert(regression):
    model, optimizer, _ = regression
    with pytest.raises(ValueError, match="`share` must be 'weight'"):
        optimizer.to_variational(model, share="unit")
    variational = optimizer.to_variational(model)
    with pytest.raises(ValueError, match="no variational layers"):
        optimizer.to_variational(variational)


def test_frozen_layers_stay_plain():
    keras.utils.set_random_seed(0)
    frozen = keras.layers.Dense(3, trainable=False)
    model = keras.Sequential([keras.Input((2,)), frozen, keras.layers.Dense(1)])
    optimizer = IVON(16, seed=0)
    model.compile(optimizer, keras_vd.losses.GaussianNLL(stddev=1.0))
    x = np.random.default_rng(0).normal(size=(16, 2)).astype("float32")
    model.fit(x, x[:, :1], verbose=0)
    variational = optimizer.to_variational(model)
    assert type(variational.layers[0]) is keras.layers.Dense
    kernel = keras_vd.variational_weights(variational)[0]
    sigma = as_array(optimizer.sigma(model.layers[1].kernel))
    np.testing.assert_allclose(
        np.exp(0.5 * as_array(kernel.log_sigma2)), sigma, rtol=1e-5
    )


def test_variables_of_others():
    variable = keras.Variable(np.zeros(2, "float32"))
    with pytest.raises(ValueError, match="has trained"):
        IVON(10).sigma(variable)


def test_several_replicas_are_refused(monkeypatch):
    monkeypatch.setattr(
        "keras_vd.optimizers.uses_several_replicas", lambda: True
    )
    variable = keras.Variable(np.zeros(2, "float32"))
    with pytest.raises(ValueError, match="replicas"):
        IVON(10).build([variable])


def test_a_bias_that_has_no_posterior():
    """The only bias is that of a frozen layer, which is not converted."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, use_bias=False),
            keras.layers.Dense(1, trainable=False),
        ]
    )
    optimizer = IVON(4, seed=0)
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 3)), np.ones(4), verbose=0)
    found = keras_vd.variational_weights(optimizer.to_variational(model))
    assert [weight.is_bias for weight in found] == [False]
