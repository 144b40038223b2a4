"""Networks of Keras, of KerasHub, and such as users make, with random weights.

Each comes with inputs, with parts that are dead, and with the number of
parameters that a network without these has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from experiments.models import dying, hub, own

# The smallest network of each family of `keras.applications`, and others that
# differ in kind; sizes of images that they take.
APPLICATIONS = {
    "VGG16": 32,
    "VGG19": 32,
    "ResNet50": 32,
    "ResNet101": 32,
    "ResNet50V2": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "DenseNet121": 32,
    "NASNetMobile": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "EfficientNetV2S": 32,
    "ConvNeXtTiny": 32,
}
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to try.

    Attributes:
        name: Its name.
        build: Makes it, and inputs for it.
        kill: Makes units or channels of it dead, in place, and returns the
            number of parameters of a network that does not have them. None
            where the outputs need all channels.
    """

    name: str
    build: Callable[[], tuple[keras.Model, Any]]
    kill: Callable[[keras.Model], int] | None


def applications(names: Iterable[str] = APPLICATIONS) -> list[Network]:
    """Networks of `keras.applications`; a quarter of all channels is dead."""
    return [
        Network(name, _application(name, APPLICATIONS[name]), dying.channels)
        for name in names
    ]


def _application(name: str, size: int) -> Callable[[], tuple[keras.Model, Any]]:
    def build() -> tuple[keras.Model, Any]:
        model = getattr(keras.applications, name)(
            weights=None,
            input_shape=(size, size, 3),
            classes=CLASSES,
            classifier_activation=None,
        )
        return model, images(size) * 255.0

    return build


def images(size: int, count: int = 2) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.uniform(size=(count, size, size, 3)).astype("float32")


def users() -> list[Network]:
    """Models as people write them; half of the hidden units are dead."""

    def made(cls: Callable[[int], keras.Model], inputs: Any) -> Network:
        def build() -> tuple[keras.Model, Any]:
            model = cls(16)
            model(inputs)
            return model, inputs

        def narrow() -> keras.Model:
            model = cls(8)
            model(inputs)
            return model

        return Network(cls.__name__, build, dying.hidden_units(narrow))

    ids = np.random.default_rng(0).integers(1, 50, (2, 12)).astype("int32")
    towers = {"title": ids[:, :4], "numbers": images(1).reshape(2, 3)}
    return [
        made(own.guide_transformer, ids),
        made(own.HandWrittenTransformer, ids),
        made(own.ResidualCNN, images(16)),
        made(own.TwoTowers, towers),
    ]


def of_hub() -> list[Network]:
    """Networks of KerasHub; half of the hidden units are dead, or channels."""

    def made(name: str) -> Network:
        build = hub.BUILDERS[name]
        if name in hub.IMAGES:
            is_backbone = name.endswith("Backbone")
            return Network(name, build, None if is_backbone else dying.channels)
        narrow = dying.hidden_units(lambda: build(16)[0])
        return Network(name, build, narrow)

    return [made(name) for name in hub.BUILDERS]
