"""Experiments of a few steps: tracing them takes TensorFlow far longer.

What they train is compiled where examples and processes of their own run.
"""

import keras
import pytest


@pytest.fixture
def compiled_steps():
    """Asked for by tests with so many steps that tracing pays."""


@pytest.fixture(autouse=True)
def train_eagerly(monkeypatch, request):
    is_long = (
        request.node.get_closest_marker("slow")
        or "compiled_steps" in request.fixturenames
    )
    if keras.backend.backend() == "tensorflow" and not is_long:
        fit = keras.Model.fit

        def fit_eagerly(model, *arguments, **options):
            model.run_eagerly = True
            return fit(model, *arguments, **options)

        monkeypatch.setattr(keras.Model, "fit", fit_eagerly)
