"""Random networks with random zeros: predictions never change.

In float64, so that an error of any size shows.
"""

from __future__ import annotations

import keras
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.shrinking import networks
from tests.shrinking.comparing import assert_equal_predictions, shrink

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="One backend is enough for the logic; JAX would take an hour.",
    ),
    # Not every layer hands masks on; Keras says so each time.
    pytest.mark.filterwarnings("ignore:.*was passed an input with a mask"),
]
random_networks = settings(
    derandomize=True,
    deadline=None,
    database=None,
    # Making an example smaller takes longer than all others together.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True, scope="module")
def float64():
    keras.config.set_floatx("float64")
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


def integers(data):
    return lambda low, high: data.draw(st.integers(low, high))


def check(model, options=(None, True)):
    """Oracle: the model itself; shrinking again changes nothing more."""
    inputs = networks.random_inputs(model)
    for gather_inputs in options:
        smaller, report = shrink(model, gather_inputs=gather_inputs)
        assert_equal_predictions(model, smaller, inputs, rtol=1e-9)
        assert smaller.count_params() == report.kept_parameters
        if gather_inputs is None:
            _, again = shrink(smaller)
            assert again.kept_parameters == report.kept_parameters


@settings(random_networks, max_examples=110)
@given(st.data())
def test_vectors(data):
    check(networks.vector_models(integers(data)))


@settings(random_networks, max_examples=110)
@given(st.data())
def test_images(data):
    check(networks.image_models(integers(data)))


@settings(random_networks, max_examples=110)
@given(st.data())
def test_sequences(data):
    check(networks.sequence_models(integers(data)))


@settings(random_networks, max_examples=110)
@given(st.data())
def test_attention(data):
    # Attention is slow to build.
    model = networks.attention_models(integers(data))
    check(model, [data.draw(st.sampled_from([None, True]))])
