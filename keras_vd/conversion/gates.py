"""Make the gates that `to_variational` places."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_vd._backend.keras_internals import flatten_layers, functional_part
from keras_vd._backend.names import Names
from keras_vd.conversion.cloning import Read, read_by
from keras_vd.conversion.folding import absorb, find_folds
from keras_vd.conversion.functional import Written
from keras_vd.conversion.report import StreamRow
from keras_vd.conversion.streams import Stream, find_streams
from keras_vd.layers.beta_bernoulli import BetaBernoulliDropout
from keras_vd.layers.hard_concrete import HardConcreteDropout
from keras_vd.layers.log_normal import LogNormalDropout
from keras_vd.layers.structured import StructuredGate

# Gates that are open wide enough for a model that is trained already.
_NAMES: dict[str, Callable[[], StructuredGate]] = {
    "log_normal": LogNormalDropout,
    "beta_bernoulli": lambda: BetaBernoulliDropout(a_init=2.0),
    "hard_concrete": lambda: HardConcreteDropout(log_alpha_init=2.0),
}


@dataclasses.dataclass(frozen=True)
class Gates:
    """Gates for a model, and what becomes of its channels.

    Attributes:
        inserted: The gate, by what is to read its outputs; as of `Cloner`.
        rows: What the report says of each stream.
    """

    inserted: dict[Read, StructuredGate]
    rows: tuple[StreamRow, ...]

    def divide_out(self, model: keras.Model) -> None:
        """Divide weights by the gates' factors at inference.

        So the model predicts as it did without gates.
        """
        own = dict.fromkeys(self.inserted.values())
        folds = find_folds(model)
        for gate in own:
            factors = gate.constant_factors()
            if factors is None or not (factors > 0.0).all():
                raise ValueError(
                    "Argument `gates` must give gates that start open, with a "
                    "factor that does not depend on inputs, so that it can be "
                    f"divided out of a trained model. '{gate.name}', a "
                    f"{type(gate).__name__}, does not."
                )
        for gate in own:
            for layer, factors in folds[gate]:
                absorb(layer, 1.0 / factors)


def check_gates(gates: Any) -> None:
    """Raise unless `gates` is something that `to_variational` takes.

    Raises:
        TypeError: if it is of the wrong type.
        ValueError: if it is an unknown string, or a gate along another axis
            than the last.
    """
    is_function = callable(gates) and not (
        inspect.isclass(gates) or isinstance(gates, keras.layers.Layer)
    )
    if gates is not None and not is_function:
        _template(gates)


def make_gates(written: Written, gates: Any, kl_weight: float | None) -> Gates:
    """Make gates for the channels of a plain model.

    Args:
        written: The model, without models in it.
        gates: As in `to_variational`.
        kl_weight: As in `to_variational`.

    Raises:
        TypeError: if a function returns something of the wrong type.
        ValueError: if no gate can be placed, or see `check_gates`.
    """
    model = written.model
    functional = functional_part(model)
    if functional is None:
        raise ValueError(
            "Argument `gates` needs a model whose connections are known. "
            f"'{model.name}' computes in a `call` of its own, which cannot be "
            f"written out: {written.reasons.get(id(model), 'it is not built')}."
        )
    names = Names(x.name for x in flatten_layers(functional))
    inserted: dict[Read, StructuredGate] = {}
    rows = []
    for stream in find_streams(functional):
        reason, template = stream.reason, None
        if reason is None:
            template = _chosen(gates, stream)
            reason = "not chosen" if template is None else None
        name = None
        if template is not None:
            name = names.unique(f"{stream.makers[0].name}_gate")
            gate = _new(template, name, stream, kl_weight)
            for tensor, call in stream.reads:
                inserted[read_by(call, tensor)] = gate
        makers = tuple(x.name for x in stream.makers)
        kind = None if template is None else type(template).__name__
        rows.append(StreamRow(name, kind, makers, stream.units, reason))
    if not inserted:
        raise ValueError(
            "Argument `gates` needs a layer whose channels can go. "
            f"'{model.name}' has none: {_listed(rows)}."
        )
    return Gates(inserted, tuple(rows))


def _listed(rows: Iterable[StreamRow]) -> str:
    found = (f"{list(row.layers)}, {row.reason}" for row in rows)
    return "; ".join(found) or "it has no layers with kernels"


def _template(gate: Any) -> StructuredGate:
    """Return a gate that has the options of those to be made."""
    if isinstance(gate, str):
        if gate not in _NAMES:
            raise ValueError(
                f"Argument `gates` must be one of {list(_NAMES)}, a gate, or a "
                f"function of a layer. Received: gates={gate!r}."
            )
        return _NAMES[gate]()
    if not isinstance(gate, StructuredGate):
        raise TypeError(
            f"Argument `gates` must be one of {list(_NAMES)}, a gate from "
            "`keras_vd.layers`, or a function of a layer that returns one of "
            f"these or None. Received: {gate!r} (of type "
            f"{type(gate).__name__})."
        )
    if gate.axis != -1:
        raise ValueError(
            "Argument `gates` must give gates along the last axis, "
            f"axis=-1. Received: '{gate.name}' with axis={gate.axis}."
        )
    return gate


def _chosen(gates: Any, stream: Stream) -> StructuredGate | None:
    """Return the template for a stream; None if the user wants no gate.

    A function is asked for all layers that make the channels; they get a gate
    if it returns one for each, and that is the first.
    """
    if isinstance(gates, (str, StructuredGate)):
        return _template(gates)
    found = [gates(layer) for layer in stream.makers]
    templates = [_template(x) for x in found if x is not None]
    return templates[0] if len(templates) == len(found) else None


def _new(
    template: StructuredGate,
    name: str,
    stream: Stream,
    kl_weight: float | None,
) -> StructuredGate:
    config = template.get_config()
    config |= {"name": name, "dtype": stream.makers[0].dtype_policy}
    if kl_weight is not None:
        config["kl_weight"] = kl_weight
    made: StructuredGate = type(template).from_config(config)
    return made
