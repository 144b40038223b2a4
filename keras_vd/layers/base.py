"""What all variational layers share; each layer adds its linear operation."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_vd import posteriors
from keras_vd._backend.keras_internals import computing_class, sublayers
from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_choices, refuse_rematerialization
from keras_vd.posteriors.binding import Axes, Binding, Group
from keras_vd.posteriors.sharing import SharedOp
from keras_vd.rules.rule import SAME_WEIGHTS

# A mixin has the attributes of the Keras layer that is listed after it.
if TYPE_CHECKING:
    from keras.layers import Layer as _Mixin
else:
    _Mixin = object


# Variational layers by the Keras layer that each extends. They enter themselves
# when their classes are defined.
COUNTERPARTS: dict[type, type] = {}

# Number of group variables, and a function that spreads their values over a
# weight.
Expansion = tuple[int, Callable[[Any], Any]]


class VariationalLayer(_Mixin):
    """Mixin that gives a Keras layer a posterior for each of its weights.

    It stands before the Keras layer in the list of bases. A subclass names its
    weights, says what their axes mean and which groups of weights may be pruned
    together. The first subclass for a Keras layer is the one that
    `to_variational` makes of that layer.
    """

    _variational_weights: tuple[str, ...] = ("kernel",)
    _available_groups: tuple[str, ...] = ("input", "output")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, keras.layers.Layer):
            cls.__signature__ = _extended_signature(cls)
            # A subclass of a variational layer does not take the place of it.
            if COUNTERPARTS.setdefault(keras_class(cls), cls) is cls:
                SAME_WEIGHTS[cls] = keras_class(cls)

    def __init__(
        self,
        *args: Any,
        posterior: Any = "sparse_vd",
        kl_weight: float | None = None,
        groups: Sequence[str] | int = (),
        **kwargs: Any,
    ) -> None:
        keras_arguments = inspect.signature(keras_class(type(self))).parameters
        if isinstance(groups, int) and "groups" in keras_arguments:
            kwargs["groups"], groups = groups, ()
        super().__init__(*args, **kwargs)
        self._add_posteriors(posterior, kl_weight, groups)

    def become_variational(
        self, posterior: Any, kl_weight: float | None
    ) -> None:
        """Do what the constructor and `build` do beyond those of Keras.

        This is for a built layer of Keras whose class has just changed.
        """
        self._add_posteriors(posterior, kl_weight, ())
        self._bind_posteriors(self)

    def _add_posteriors(
        self,
        posterior: Any,
        kl_weight: float | None,
        groups: Sequence[str] | int,
    ) -> None:
        self._check_supported()
        self.group_names = check_choices(
            "groups", groups, self._available_groups
        )
        for name, _ in self._posteriors():
            new = posteriors.instantiate(posterior, name, kl_weight)
            setattr(self, name, new)
        for group in self.group_names:
            name = f"{group}_group"
            new = posteriors.instantiate(posterior, name, kl_weight, True)
            setattr(self, name, new)
        self._hand_on_trainable()

    def _hand_on_trainable(self) -> None:
        """Freeze sub-layers if `trainable=False` was passed.

        Keras does so only when the attribute is assigned.
        """
        if not self.trainable:
            for layer in sublayers(self):
                layer.trainable = False

    def _check_supported(self) -> None:
        refuse_rematerialization(self)
        if self.variable_dtype == "float16":
            raise ValueError(
                f"Layer '{self.name}' cannot be trained in pure float16: its "
                "variances underflow. Argument `dtype` must be 'float32', "
                "'bfloat16', 'mixed_float16' or 'mixed_bfloat16'. Received: "
                f"dtype={self.dtype_policy.name!r}."
            )
        if getattr(self, "lora_rank", None):
            self._refuse("LoRA")
        # `quantize` is not called here, as Keras wraps it in its own checks.
        if self.quantization_mode is not None:
            self._refuse("Quantization")

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raise a ValueError: variational layers do not support LoRA."""
        self._refuse("LoRA")

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raise a ValueError: variational layers cannot be quantized."""
        self._refuse("Quantization")

    def _refuse(self, feature: str) -> None:
        raise ValueError(
            f"{feature} is not available for layer '{self.name}', whose kernel "
            "is the mean of a posterior. Convert the model first: "
            "`keras_vd.to_deterministic(model)`."
        )

    def _refuse_input_noise(self) -> None:
        """Raise a ValueError if the posterior puts its noise on the inputs.

        This is for layers that draw their weights rather than their outputs.
        """
        noise = getattr(self._template(), "noise", "weight")
        if noise != "weight":
            raise ValueError(
                f"Layer '{self.name}' draws its weights once per call: the "
                "posterior's `noise` must be 'weight'. Received: "
                f"noise={noise!r}."
            )

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self._bind_posteriors(self)

    def _bind_posteriors(self, owner: keras.layers.Layer) -> None:
        """Bind the posteriors to the weights that `owner` has built."""
        for name, weight in self._posteriors():
            groups = {}
            for group, (size, expand) in self._expansions(weight).items():
                variables = getattr(self, f"{group}_group")
                if not variables.built:
                    variables.bind_group(size, f"{self.name}/{group}")
                groups[group] = Group(variables, expand)
            is_only_one = len(self._posteriors()) == 1
            getattr(self, name).bind(
                Binding(
                    getattr(owner, weight),
                    self.name if is_only_one else f"{self.name}/{weight}",
                    self._kernel_axes(weight),
                    groups,
                )
            )

    def rebind_groups(self) -> None:
        """Spread group variables over weights whose sizes have changed."""
        for name, weight in self._posteriors():
            for group, (_, expand) in self._expansions(weight).items():
                variables = getattr(self, f"{group}_group")
                getattr(self, name).multiply_by(group, Group(variables, expand))

    def _posteriors(self) -> list[tuple[str, str]]:
        """List the attribute names of each posterior and of its weight."""
        return [
            (f"{name}_posterior", name) for name in self._variational_weights
        ]

    def _kernel_axes(self, weight: str) -> Axes:
        """Return what the axes of a weight mean."""
        raise NotImplementedError

    def _expansions(self, weight: str) -> dict[str, Expansion]:
        """Return the layer's groups that multiply `weight`, by their names."""
        raise NotImplementedError

    def inference_values(self) -> list[tuple[keras.Variable, Any]]:
        """List the variables that inference replaces, and what it uses instead.

        Returns:
            Pairs; the tensors have the variable's shape, and are float64 for a
            float64 variable, float32 otherwise.
        """
        found = [getattr(self, name) for name, _ in self._posteriors()]
        return [
            *((posterior.weight, posterior.mean()) for posterior in found),
            *self.inference_biases(),
        ]

    def inference_biases(self) -> list[tuple[keras.Variable, Any]]:
        """List such pairs for the biases that pruning changes."""
        return []

    def _template(self) -> posteriors.WeightPosterior:
        """Return a posterior with the options that the layer was given."""
        found: posteriors.WeightPosterior
        found = getattr(self, self._posteriors()[0][0])
        return found

    def _posterior_arguments(self) -> dict[str, Any]:
        """Return the arguments `posterior` and `kl_weight` for a config."""
        return posteriors.layer_arguments(self._template())

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), **self._posterior_arguments()}
        # Convolutions have an integer argument of that name, which is kept.
        if self.group_names or "groups" not in config:
            config["groups"] = list(self.group_names)
        return config


class LinearLayer(VariationalLayer):
    """Mixin of dense layers and convolutions: bias and activation come last.

    Group variables multiply all weights that read an input unit, or all that
    write an output unit; a pruned output unit becomes its activated bias.

    A subclass may define `_shared_op(squares, input_factors, unit_factors)`:
    `_linear_op` for a kernel that is the outer product of factors of the input
    units (or one for all) and factors of the output units. Both are tensors of
    the kernel's rank, of size 1 along all axes that are not theirs. Without
    it, variances that weights share take a product of their own.
    """

    _shared_op: SharedOp | None = None

    @property
    def _recipe(self) -> Any:
        """What is equal for layers whose linear operations do the same.

        None for classes of others, whose configs may not tell all.
        """
        if not type(self).__module__.startswith("keras_vd."):
            return None
        config = self.get_config()
        # Initializers, activations and the like have no part in it.
        numbers = {
            name: str(value)
            for name, value in config.items()
            if name != "name" and not isinstance(value, dict)
        }
        return type(self), tuple(sorted(numbers.items()))

    def _linear_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Apply the layer without noise, bias and activation."""
        raise NotImplementedError

    def _expansions(self, weight: str) -> dict[str, Expansion]:
        axes = self._kernel_axes(weight)
        shape = getattr(self, weight).shape
        along = {"input": axes.inputs, "output": axes.outputs}
        return {
            group: along_axes(shape, along[group]) for group in self.group_names
        }

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        outputs = self.kernel_posterior.project(
            self._linear_op, inputs, training, self._shared_op
        )
        return self._add_bias_and_activate(outputs)

    def _add_bias_and_activate(self, outputs: Tensor) -> Tensor:
        if self.bias is not None:
            bias = self.bias
            if getattr(self, "data_format", None) == "channels_first":
                bias = ops.reshape(bias, (-1,) + (1,) * self.rank)
            outputs = ops.add(outputs, bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs


def variational_form(layer: keras.layers.Layer) -> type | None:
    """Return the class that `to_variational` makes of a layer, if there is one.

    A subclass that only adapts the constructor counts as what it extends.
    """
    # KerasHub is optional: what extends its layers waits until it is loaded.
    if sys.modules.get("keras_hub"):
        importlib.import_module("keras_vd.layers.position_embedding")
    return COUNTERPARTS.get(computing_class(type(layer)))


def along_axes(shape: Sequence[int], axes: Sequence[int]) -> Expansion:
    """Give each index along some axes of a weight a group variable.

    Args:
        shape: Shape of the weight.
        axes: Axes that the group variables run over.

    Returns:
        Number of group variables, and a function that reshapes their values so
        that they broadcast to the weight.
    """
    along = [axis % len(shape) for axis in axes]
    spread = [size if i in along else 1 for i, size in enumerate(shape)]
    return math.prod(spread), lambda values: ops.reshape(values, spread)


def keras_class(cls: type) -> type:
    """Return the Keras layer that a variational layer class extends."""
    return next(
        base
        for base in cls.__mro__
        if issubclass(base, keras.layers.Layer)
        and not issubclass(base, VariationalLayer)
    )


def _extended_signature(cls: type) -> inspect.Signature:
    """Return the signature of the Keras layer with the added arguments.

    They stand before its `**kwargs`.
    """
    parameters = list(inspect.signature(keras_class(cls)).parameters.values())
    taken = {parameter.name for parameter in parameters}
    ours = [
        parameter
        for name, parameter in _own_parameters(cls).items()
        if name not in taken
    ]
    is_rest = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    position = len(parameters) - is_rest
    return inspect.Signature(
        [*parameters[:position], *ours, *parameters[position:]]
    )


def _own_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the keyword arguments that a layer's variational bases add."""
    found: dict[str, inspect.Parameter] = {}
    of_keras: set[str] = set()
    bases: list[Any] = [*reversed(cls.__mro__)]
    for base in bases:
        parameters = inspect.signature(base.__init__).parameters
        if not issubclass(base, VariationalLayer):
            of_keras.update(parameters)
            continue
        for name, parameter in parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                found[name] = parameter
    # An argument of a Keras layer further up is none of ours.
    hidden = of_keras - set(inspect.signature(VariationalLayer).parameters)
    return {k: x for k, x in found.items() if k not in hidden}
