"""Convert any Keras model to a variational one with the same predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, overload

import keras
import numpy as np
from keras import ops

from keras_vd import posteriors
from keras_vd._backend.keras_internals import (
    computing_class,
    flatten_layers,
    functional_part,
    overridden,
    own_variables,
    sublayers,
)
from keras_vd._backend.validation import (
    check_built,
    check_finite_model,
    check_model,
    reason_to_keep_weights,
)
from keras_vd.conversion.cloning import Cloner, Config
from keras_vd.conversion.comparing import predict_alike
from keras_vd.conversion.deterministic import to_deterministic
from keras_vd.conversion.functional import Written, written_out
from keras_vd.conversion.gates import Gates, check_gates, make_gates
from keras_vd.conversion.groups import Groups, find_groups
from keras_vd.conversion.in_place import (
    exchange_parts,
    exchangeable,
    keeps_class,
    part_places,
)
from keras_vd.conversion.report import (
    ConversionReport,
    ConversionRow,
    FunctionalReport,
    StreamRow,
)
from keras_vd.conversion.selection import Path, Selectors, select
from keras_vd.layers.base import (
    COUNTERPARTS,
    VariationalLayer,
    has_bias,
    variational_form,
)
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors.finding import variational_weights


@overload
def to_variational(
    model: keras.Model,
    posterior: Any = "sparse_vd",
    include: Selectors | None = None,
    exclude: Selectors | None = None,
    kl_weight: float | None = None,
    groups: Groups = (),
    gates: Any = None,
    return_report: Literal[False] = False,
    verbose: int = 1,
    bias_posterior: Any = None,
) -> keras.Model: ...
@overload
def to_variational(
    model: keras.Model,
    posterior: Any = "sparse_vd",
    include: Selectors | None = None,
    exclude: Selectors | None = None,
    kl_weight: float | None = None,
    groups: Groups = (),
    gates: Any = None,
    *,
    return_report: Literal[True],
    verbose: int = 1,
    bias_posterior: Any = None,
) -> tuple[keras.Model, ConversionReport]: ...
def to_variational(
    model: keras.Model,
    posterior: Any = "sparse_vd",
    include: Selectors | None = None,
    exclude: Selectors | None = None,
    kl_weight: float | None = None,
    groups: Groups = (),
    gates: Any = None,
    return_report: bool = False,
    verbose: int = 1,
    bias_posterior: Any = None,
) -> keras.Model | tuple[keras.Model, ConversionReport]:
    """Replace Keras layers by their variational forms and keep the weights.

    The trained weights become the posterior means, so predictions stay as
    they are; layers without a variational form are copied. The noise starts
    small enough that no weight counts as zero: see `start_from_weight` of
    `keras_vd.posteriors.AdditiveGaussian`. Train on with `KLAnnealing`.

    With `gates`, channels and hidden units can go as well. A gate,
    `<layer>_gate`, stands after the normalization and activation of what a
    layer makes, before each layer that mixes its channels. Where sums or
    products tie the channels of several layers, as along a residual stream,
    one gate is used in all places, with draws of its own in each: a channel
    that it closes goes from all of them in `shrink`. What a gate multiplies
    with at first is divided out of the weights that read it, so predictions
    stay as they are, up to rounding. Channels have no gate if the model returns
    them, or if an unknown layer, attention or one such as `LayerNormalization`
    reads them. Heads have `groups=("heads",)`. Nested models are taken apart.

    Args:
        model: A built model; not changed. Subclassed models and layers made
            of layers are written out, see `to_functional`. Where that cannot
            be, or would lose methods that the class of a Functional model has,
            layers become variational inside a copy that is rebuilt from its
            config, and stay plain where the code does more with their weights
            than to call the layers: that is tried.
        posterior: `"sparse_vd"`, `"vd"`, `"ard"`, `"gaussian"`, an object
            from `keras_vd.posteriors`, or a function that returns one of these
            for a layer of `model`. None: kernels stay as they are, for gates
            alone.
        include: What to convert: names (of a layer, or of a model or wrapper
            that it is in), layer classes, or functions of a layer that return
            a bool; one, or a sequence of them. None: all layers.
        exclude: Layers that stay, likewise. It wins over `include`.
        kl_weight: Float >= 0 or None: multiplier of the KL in nats, normally
            1 / (number of training examples). None: set by `KLAnnealing`.
        groups: Tuple of names of groups of weights, as `("heads",)`; each
            layer that is converted gets those that it knows. Or a function
            that returns a layer's tuple.
        gates: `"log_normal"`, `"beta_bernoulli"`, `"hard_concrete"`, a gate
            from `keras_vd.layers`, or a function that returns one of these or
            None for a layer of `model`; channels of several layers get the
            gate of the first, if there is one for each. None: no gates.
        return_report: Whether to return the report as well.
        verbose: 1 to print the report, 0 not to.
        bias_posterior: Posterior of the biases, as of `posterior`: each layer
            that is converted and has a bias gets it. A function may return None
            for a layer. None: biases are no random variables.

    Returns:
        A new model, not compiled, or with `return_report` the model and its
        `ConversionReport`: what was converted, which gates there are, what was
        not possible and why. Shared layers stay so; a Sequential model with
        one, and a model that is written out, become Functional ones.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the model is not built, a weight is not finite, an
            argument is not allowed, a part of `include` or `exclude` fits no
            layer, none can be converted, one cannot be rebuilt, no layer knows
            a name in `groups`, no channels can have a gate, or there is
            neither a posterior nor a gate.

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> variational = keras_vd.to_variational(model, verbose=0)
    >>> type(variational.layers[0]).__name__
    'VDDense'
    """
    check_model(model)
    check_built(model)
    check_finite_model(model)
    check_gates(gates)
    _check_posterior(posterior, groups, gates, bias_posterior)
    with _opened(model, gates) as written:
        places = _places(written.model)
        tied = _tied(written.model)
        reasons = {
            id(layer): _refusal(layer) or tied.get(id(layer))
            for layer in places.values()
        }
        for key in _left_out(places, include, exclude):
            reasons[key] = reasons[key] or "not chosen"
        if posterior is None:
            reasons = {k: x or "posterior=None" for k, x in reasons.items()}
        chosen = {k: x for k, x in reasons.items() if x is None}
        layers = [x for x in _unique(places) if id(x) in chosen]
        names = find_groups(groups, layers)
        biases = _bias_posteriors(bias_posterior, layers)
        added = {
            id(layer): _added_arguments(
                posterior,
                kl_weight,
                layer,
                names[id(layer)],
                biases.get(id(layer)),
            )
            for layer in layers
        }
        if gates is None:
            result = _convert(written, places, reasons, added)
            placed: tuple[StreamRow, ...] = ()
        else:
            with written_out(written.model, flat=True) as flat:
                made = make_gates(flat, gates, kl_weight)
                result = _convert(flat, places, reasons, added, made)
            placed = made.rows
        report = _report(places, reasons, names, placed)
    if verbose:
        print(str(report))
    return (result, report) if return_report else result


@contextlib.contextmanager
def _opened(model: keras.Model, gates: Any) -> Iterator[Written]:
    """Write a model out, unless that would take methods of its own from it.

    Gates need its graph.
    """
    if gates is None and keeps_class(model):
        yield Written(model, FunctionalReport(()), {}, contextlib.ExitStack())
        return
    with written_out(model) as written:
        yield written


def _check_posterior(
    posterior: Any, groups: Groups, gates: Any, bias_posterior: Any
) -> None:
    """Raise a ValueError if nothing would become of a model without one."""
    if posterior is not None:
        return
    if bias_posterior is not None:
        raise ValueError(
            "Argument `posterior` must not be None where there is a "
            "`bias_posterior`: biases have one beside their kernels. Received: "
            f"posterior=None, bias_posterior={bias_posterior!r}."
        )
    if groups:
        raise ValueError(
            "Argument `posterior` must not be None where there are `groups`, "
            "whose multipliers have posteriors. Received: posterior=None, "
            f"groups={groups!r}."
        )
    if gates is None:
        raise ValueError(
            "Argument `posterior` must not be None unless there are `gates`. "
            "Received: posterior=None, gates=None."
        )


def _convert(
    written: Written,
    places: dict[Path, keras.layers.Layer],
    reasons: dict[int, str | None],
    added: dict[int, Config],
    gates: Gates | None = None,
) -> keras.Model:
    """Build the variational model.

    Args:
        written: The plain model, written out.
        places: Its layers.
        reasons: Why layers are not to be converted, by their `id`; extended in
            place by layers that no config describes.
        added: Arguments of the variational layers beyond those of Keras, by
            the `id` of the layer.
        gates: Its gates, if it is to have some.
    """

    def replace(layer: keras.layers.Layer) -> tuple[type, Config] | None:
        if id(layer) not in added:
            return None
        kind: Any = computing_class(type(layer))
        form: Any = variational_form(layer)
        return form, {**kind.get_config(layer), **added[id(layer)]}

    model = written.model
    is_from_config = gates is None and keeps_class(model)
    cloner = Cloner(
        model,
        replace,
        keeps_class=keeps_class if is_from_config else lambda x: False,
        inserted=gates.inserted if gates else None,
    )
    result: keras.Model = cloner.clone(model)
    cloner.copy_values(model)
    by_code = {
        id(x): x
        for x in places.values()
        if id(x) in added and id(x) not in cloner.clones
    }
    left = _exchange(cloner, by_code, added)
    for key in left:
        reasons[key] = _reason_out_of_reach(written, key)
    reason = _not_only_called(result) if len(left) < len(by_code) else None
    if reason is not None:
        reasons |= dict.fromkeys(by_code, reason)
        rest = {k: x for k, x in added.items() if k not in by_code}
        return _convert(written, places, reasons, rest, gates)
    if all(reasons[key] for key in added) and (added or gates is None):
        raise ValueError(
            "Argument `model` must have a layer that can be converted. "
            f"'{model.name}' has none: {_report(places, reasons).skipped}."
        )
    if gates:
        gates.divide_out(result)
    copied = set(map(id, cloner.counterparts.values()))
    for weight in variational_weights(result):
        if id(weight) not in copied:
            weight.start_from_weight()
    return result


def _exchange(
    cloner: Cloner,
    layers: dict[int, keras.layers.Layer],
    added: dict[int, Config],
) -> list[int]:
    """Make layers variational that the code of what is around them makes.

    Args:
        cloner: Of the model, with all values copied; its clones change.
        layers: The layers of the plain model, by their `id`.
        added: What variational layers get beyond their configs.

    Returns:
        The `id`s of those that stay plain.
    """
    owners: dict[int, Any] = {}
    places: dict[int, dict[int, Config]] = {}
    left: list[int] = []
    for key, layer in layers.items():
        owner = cloner.owner_of(layer)
        parts = exchangeable(layer)
        clones = [cloner.counterparts.get(id(x)) for x in parts]
        if owner is None or not parts or None in clones:
            left.append(key)
            continue
        owners[id(owner)] = owner
        at = part_places(owner)
        found = places.setdefault(id(owner), {})
        found |= {at[id(x)]: added[key] for x in clones}
    for key, owner in owners.items():
        exchange_parts(owner, places[key])
    return left


def _not_only_called(model: keras.Model) -> str | None:
    """Return what a model's code does with its variational parts but call them.

    It is tried: what is dropped at random has to be gone in the plain model.
    """
    generator = np.random.default_rng(0)
    masks = [x.keep_mask for x in variational_weights(model)]
    before = [ops.convert_to_numpy(mask) for mask in masks]
    for mask in masks:
        mask.assign(generator.integers(0, 2, tuple(mask.shape)) > 0)
    try:
        if predict_alike(model, to_deterministic(model)):
            return None
        return "the code around it reads its weights, and not only calls it"
    except ValueError as error:
        return f"the code around it has no config to rebuild it from: {error}"
    finally:
        for mask, value in zip(masks, before, strict=True):
            mask.assign(value)


def _reason_out_of_reach(written: Written, key: int) -> str:
    """Return why the layer with an `id` is in no clone."""
    for layer in flatten_layers(written.model):
        reason = written.reasons.get(id(layer))
        if reason and any(id(x) == key for x in flatten_layers(layer)):
            return f"made in the code of '{layer.name}', kept whole: {reason}"
    return "made in the code of what it is in"


def _places(
    layer: keras.layers.Layer, inside: Path = ()
) -> dict[Path, keras.layers.Layer]:
    """Find the layers that have weights or a variational form, by their paths.

    A shared layer has several paths.
    """
    path = (*inside, layer.name)
    is_whole = isinstance(layer, (VariationalLayer, StructuredGate))
    if is_whole or variational_form(layer) is not None:
        return {path: layer}
    found = {path: layer} if own_variables(layer) else {}
    for inner in sublayers(layer):
        found |= _places(inner, path)
    return found


def _refusal(layer: keras.layers.Layer) -> str | None:
    """Return why a layer cannot be converted; None if it can."""
    if isinstance(layer, (VariationalLayer, StructuredGate)):
        return "variational already"
    kind = type(layer)
    if variational_form(layer) is None:
        known = [x for x in kind.__mro__ if x in COUNTERPARTS]
        if known:
            changed = ", ".join(f"`{x}`" for x in overridden(kind, known[0]))
            return f"a subclass of {known[0].__name__} that overrides {changed}"
        return f"no variational form of {kind.__name__}"
    if not layer.trainable:
        return "frozen (`trainable=False`)"
    if layer.variable_dtype == "float16":
        return "pure float16, in which variances underflow"
    return reason_to_keep_weights(layer)


def _tied(model: keras.layers.Layer) -> dict[int, str]:
    """Find layers that the user's own code shares, and return the reasons.

    Such code may read the weights of a layer, as tied embeddings do, instead of
    calling it. The reasons are keyed by the `id` of the layer.
    """
    owners: dict[int, list[keras.layers.Layer]] = {}
    for owner in flatten_layers(model):
        for layer in sublayers(owner):
            owners.setdefault(id(layer), []).append(owner)
    return {
        key: f"'{owner.name}' has it too, and may read its weights"
        for key, sharing in owners.items()
        for owner in sharing
        if len(sharing) > 1
        and not type(owner).__module__.startswith("keras.")
        and functional_part(owner) is not owner
    }


def _left_out(
    places: dict[Path, keras.layers.Layer],
    include: Selectors | None,
    exclude: Selectors | None,
) -> set[int]:
    """Return the `id`s of the layers that the user does not want converted.

    A shared layer is chosen if any of its paths is.
    """

    def chosen(argument: str, selectors: Selectors) -> set[int]:
        return {id(places[p]) for p in select(argument, selectors, places)}

    left_out: set[int] = set()
    if include is not None:
        left_out = set(map(id, places.values())) - chosen("include", include)
    if exclude is not None:
        left_out |= chosen("exclude", exclude)
    return left_out


def _added_arguments(
    posterior: Any,
    kl_weight: float | None,
    layer: keras.layers.Layer,
    groups: tuple[str, ...],
    bias_posterior: Config | None,
) -> Config:
    """Return the arguments of a variational layer beyond those of Keras."""
    template = posteriors.instantiate(
        _posterior_of(posterior, layer), "template", kl_weight
    )
    arguments = posteriors.layer_arguments(template)
    if bias_posterior is not None:
        arguments["bias_posterior"] = bias_posterior
    # Keras' convolutions have an integer of that name, which has to stay.
    return {**arguments, "groups": list(groups)} if groups else arguments


def _posterior_of(posterior: Any, layer: keras.layers.Layer) -> Any:
    """Return what an argument says of a layer: itself, or what it returns."""
    return posterior(layer) if _is_function(posterior) else posterior


def _bias_posteriors(
    bias_posterior: Any, layers: list[keras.layers.Layer]
) -> dict[int, Config]:
    """Return the posterior of each bias that has one, by its layer's `id`.

    Raises:
        ValueError: if a bias cannot have it, no layer has a bias, or one has
            none for which a function has returned a posterior.
    """
    found = {}
    for layer in layers:
        given = _posterior_of(bias_posterior, layer)
        if given is None:
            continue
        if has_bias(layer):
            template = posteriors.get_for_bias(given)
            found[id(layer)] = posteriors.serialize(template)
        elif given is not bias_posterior:
            raise ValueError(
                "Argument `bias_posterior` must return None for layer "
                f"'{layer.name}', which has no bias. It has returned {given!r}."
            )
    is_one = bias_posterior is not None and not _is_function(bias_posterior)
    if is_one and layers and not found:
        raise ValueError(
            "Argument `bias_posterior` must be None: no layer that is "
            f"converted has a bias. Received: {bias_posterior!r}."
        )
    return found


def _is_function(posterior: Any) -> bool:
    """Tell whether an argument is a function of a layer: posteriors are not."""
    is_posterior = isinstance(posterior, posteriors.WeightPosterior)
    return callable(posterior) and not is_posterior


def _unique(
    places: dict[Path, keras.layers.Layer],
) -> list[keras.layers.Layer]:
    return list({id(x): x for x in places.values()}.values())


def _report(
    places: dict[Path, keras.layers.Layer],
    reasons: dict[int, str | None],
    groups: dict[int, tuple[str, ...]] | None = None,
    gates: tuple[StreamRow, ...] = (),
) -> ConversionReport:
    rows: dict[int, ConversionRow] = {}
    for path, layer in places.items():
        reason = reasons[id(layer)]
        form: Any = None if reason else variational_form(layer)
        row = ConversionRow(
            "/".join(path[1:]) or layer.name,
            type(layer).__name__,
            form and form.__name__,
            reason,
            layer.count_params(),
            () if reason else (groups or {}).get(id(layer), ()),
        )
        rows.setdefault(id(layer), row)
    return ConversionReport(tuple(rows.values()), gates)
