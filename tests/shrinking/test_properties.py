"""Random networks with random zeros: predictions never change.

`python -m tools.shrink_networks` tries thousands of them.
"""

from __future__ import annotations

import keras
import pytest

from keras_vd._backend.keras_internals import functional_part
from keras_vd.rules.graph import read_graph
from keras_vd.rules.rule import RULES
from tools.random_networks import FEATURES, make_network
from tools.shrink_networks import ShrinkCheck

pytestmark = [
    pytest.mark.core,
    # Not every layer hands masks on, and 16 bits overflow: Keras, NumPy and
    # the backends say so each time.
    pytest.mark.filterwarnings("ignore"),
]

# JAX compiles every operation for every shape.
NETWORKS = 10 if keras.backend.backend() == "jax" else 60


@pytest.mark.integration
@pytest.mark.parametrize("first", range(0, NETWORKS, 10))
def test_predictions_stay(first):
    check = ShrinkCheck()
    for seed in range(first, first + 10):
        check.check(seed)


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="The networks are the same; building them takes JAX minutes.",
)
def test_every_layer_with_a_rule_is_in_some_network():
    known = set()
    for seed in range(len(FEATURES)):
        graph = read_graph(functional_part(make_network(seed).model))
        known.update(type(node.operation) for node in graph.nodes)
    # Other tests enter rules for layers of their own.
    ours = {cls for cls in RULES if cls.__module__.startswith("keras")}
    missing = ours - known
    assert not missing, f"add these to tools/random_networks: {missing}"


def test_a_network_is_a_function_of_its_seed():
    one, other = (make_network(27).model for _ in range(2))
    assert one.to_json() == other.to_json()
    for value, expected in zip(
        one.get_weights(), other.get_weights(), strict=True
    ):
        assert (value == expected).all()
    assert keras.config.dtype_policy().name == "float32"
