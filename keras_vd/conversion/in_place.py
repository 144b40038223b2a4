"""Make layers variational where they are, in code that cannot be written out.

A composite that reads a batch size, say, has to stay whole, and so does a model
with methods of its own, such as `generate`. In a copy, rebuilt from its config,
its parts become variational: each stays the object that the code holds, and
gets another class and a posterior.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, cast

import keras

from keras_vd._backend.keras_internals import (
    change_class,
    flatten_layers,
    functional_part,
    is_made_from_graph,
    own_methods,
    sublayers,
)
from keras_vd.layers.base import (
    LinearLayer,
    VariationalLayer,
    variational_form,
)
from keras_vd.layers.embedding import TableLayer
from keras_vd.posteriors import WeightPosterior

Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What is variational in a layer.

    Attributes:
        arguments: What variational parts get beyond what they are, by their
            places in `_parts`.
    """

    # Keras would take a dictionary for a place where layers are.
    arguments: Mapping[int, Config]


@keras.saving.register_keras_serializable(package="keras_vd")
class PartlyVariational:
    """Mixin of layers and models of which some parts are variational.

    Its subclasses, one for each class of layers, are made by `exchange_parts`.
    A file holds the config of the plain layer, and which parts are variational:
    it loads where the class of the plain layer is known.
    """

    plain_class: type
    exchange: Exchange

    def get_config(self) -> Config:
        plain = self.plain_class
        parts = _parts(cast(keras.layers.Layer, self))
        return {
            "layer": {
                "module": plain.__module__,
                "class_name": plain.__name__,
                "config": keras.saving.serialize_keras_object(
                    cast(Any, super()).get_config()
                ),
                "registered_name": keras.saving.get_registered_name(plain),
            },
            "parts": {
                str(place): keras.saving.serialize_keras_object(
                    parts[place]._posterior_arguments()
                )
                for place in self.exchange.arguments
            },
        }

    @classmethod
    def from_config(cls, config: Config) -> Any:
        known = getattr(cls, "plain_class", None)
        scope = {known.__name__: known} if known else {}
        with keras.saving.custom_object_scope(scope):
            layer = keras.saving.deserialize_keras_object(config["layer"])
        exchange_parts(
            layer,
            {
                int(place): keras.saving.deserialize_keras_object(arguments)
                for place, arguments in config["parts"].items()
            },
        )
        return layer

    def build_from_config(self, config: Config) -> None:
        cast(Any, super()).build_from_config(config)
        cast(keras.layers.Layer, self).built = True
        _exchange(self)


def exchange_parts(
    layer: keras.layers.Layer, arguments: Mapping[int, Config]
) -> None:
    """Make parts of a layer variational, once it is built.

    Args:
        layer: A layer, changed in place.
        arguments: What variational layers get beyond what they are, by the
            place of the part among `part_places`.
    """
    cls: Any = type(layer)
    layer.__class__ = _partly_variational(cls)
    layer.exchange = Exchange(arguments)
    if layer.built:
        _exchange(layer)


def part_places(layer: keras.layers.Layer) -> dict[int, int]:
    """Return the places of all layers in a layer, by their `id`."""
    return {id(x): place for place, x in enumerate(_parts(layer))}


def exchangeable(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """List what can become variational in place: a layer, or its parts."""
    form = variational_form(layer)
    if form is not None and issubclass(form, (LinearLayer, TableLayer)):
        return [layer]
    return [x for part in sublayers(layer) for x in exchangeable(part)]


def keeps_class(model: Any) -> bool:
    """Tell whether a Functional model would lack methods that a model has.

    That is so if its class has more of them than Keras knows, and makes the
    graph by itself from a config.
    """
    cls = type(model)
    return (
        functional_part(model) is model
        and not is_made_from_graph(model)
        and cls.get_config.__module__.split(".")[0] != "keras"
        and bool(own_methods(cls))
    )


def _parts(layer: keras.layers.Layer) -> list[Any]:
    below = flatten_layers(layer)
    return [x for x in below if not isinstance(x, WeightPosterior)]


def _exchange(layer: Any) -> None:
    # All of them are found before the first one changes.
    parts = _parts(layer)
    for place, arguments in layer.exchange.arguments.items():
        part = parts[place]
        # A config may have brought it as it is to become.
        if isinstance(part, VariationalLayer):
            continue
        form: Any = variational_form(part)
        with change_class(part, form):
            part.become_variational(**arguments)


@functools.cache
def _partly_variational(cls: type) -> type:
    made = type(
        f"Variational{cls.__name__}",
        (PartlyVariational, cls),
        {"plain_class": cls, "__module__": __name__},
    )
    # All have one name in files: any of them revives the others, and that of
    # the class that this module defines has to be there in other processes.
    name = "PartlyVariational"
    for each in (made, PartlyVariational):
        keras.saving.register_keras_serializable("keras_vd", name)(each)
    return made
