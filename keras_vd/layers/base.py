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
    # Whether layers of this kind may have a bias, and whether it is their own.
    _knows_biases: bool = True
    _owns_bias: bool = True

    bias_posterior: posteriors.WeightPosterior | None

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
        bias_posterior: Any = None,
        **kwargs: Any,
    ) -> None:
        keras_arguments = inspect.signature(keras_class(type(self))).parameters
        if isinstance(groups, int) and "groups" in keras_arguments:
            kwargs["groups"], groups = groups, ()
        super().__init__(*args, **kwargs)
        self._add_posteriors(posterior, kl_weight, groups, bias_posterior)

    def become_variational(
        self,
        posterior: Any,
        kl_weight: float | None,
        bias_posterior: Any = None,
    ) -> None:
        """Do what the constructor and `build` do beyond those of Keras.

        This is for a built layer of Keras whose class has just changed.
        """
        self._add_posteriors(posterior, kl_weight, (), bias_posterior)
        self._bind_posteriors(self)

    def _add_posteriors(
        self,
        posterior: Any,
        kl_weight: float | None,
        groups: Sequence[str] | int,
        bias_posterior: Any,
    ) -> None:
        self._check_supported()
        self.group_names = check_choices(
            "groups", groups, self._available_groups
        )
        if bias_posterior is not None:
            self._check_bias()
            bias_posterior = posteriors.get_for_bias(bias_posterior)
        for weight in self._kernels():
            name = f"{weight}_posterior"
            new = posteriors.instantiate(posterior, name, kl_weight)
            setattr(self, name, new)
        self.bias_posterior = None
        if bias_posterior is not None and self._owns_bias:
            # Layers have one KL weight, which the posterior may have brought.
            kl_weight = self._template().initial_kl_weight
            self.bias_posterior = posteriors.instantiate(
                bias_posterior, "bias_posterior", kl_weight
            )
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

    def _check_bias(self) -> None:
        if not has_bias(self):
            raise ValueError(
                f"Argument `bias_posterior` of layer '{self.name}' must be "
                "None, as the layer has no bias."
            )

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
        for weight in self._kernels():
            groups = {}
            for group, (size, expand) in self._expansions(weight).items():
                variables = getattr(self, f"{group}_group")
                if not variables.built:
                    variables.bind_group(size, f"{self.name}/{group}")
                groups[group] = Group(variables, expand)
            is_only_one = len(self._kernels()) == 1
            getattr(self, f"{weight}_posterior").bind(
                Binding(
                    getattr(owner, weight),
                    self.name if is_only_one else f"{self.name}/{weight}",
                    self._kernel_axes(weight),
                    groups,
                )
            )
        if self.bias_posterior is not None:
            bias = owner.bias
            axes = Axes(inputs=(), outputs=tuple(range(len(bias.shape))))
            self.bias_posterior.bind(
                Binding(bias, f"{self.name}/bias", axes, is_bias=True)
            )

    def rebind_groups(self) -> None:
        """Spread group variables over weights whose sizes have changed."""
        for weight in self._kernels():
            posterior = getattr(self, f"{weight}_posterior")
            for group, (_, expand) in self._expansions(weight).items():
                variables = getattr(self, f"{group}_group")
                posterior.multiply_by(group, Group(variables, expand))

    def _kernels(self) -> tuple[str, ...]:
        """List the names of the weights with a posterior, but for the bias."""
        return self._variational_weights

    def _posteriors(self) -> dict[str, posteriors.WeightPosterior]:
        """Return the posterior of each weight, by the weight's name."""
        found = {x: getattr(self, f"{x}_posterior") for x in self._kernels()}
        if self.bias_posterior is not None:
            found["bias"] = self.bias_posterior
        return found

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
        found = [getattr(self, f"{name}_posterior") for name in self._kernels()]
        return [
            *((posterior.weight, posterior.mean()) for posterior in found),
            *self.inference_biases(),
        ]

    def inference_biases(self) -> list[tuple[keras.Variable, Any]]:
        """List such pairs for the biases that pruning changes."""
        posterior = self.bias_posterior
        return (
            [] if posterior is None else [(posterior.weight, posterior.mean())]
        )

    def _template(self) -> posteriors.WeightPosterior:
        """Return a posterior with the options that the layer was given."""
        found: posteriors.WeightPosterior
        found = getattr(self, f"{self._kernels()[0]}_posterior")
        return found

    def _posterior_arguments(self) -> dict[str, Any]:
        """Return the arguments about posteriors for a config."""
        arguments = posteriors.layer_arguments(self._template())
        if self._knows_biases:
            given = self.bias_posterior
            arguments["bias_posterior"] = given and posteriors.serialize(given)
        return arguments

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
        return self._add_bias_and_activate(outputs, training)

    def _add_bias_and_activate(
        self, outputs: Tensor, training: bool | None
    ) -> Tensor:
        if self.bias is not None:
            outputs = ops.add(outputs, self._bias_of(outputs, training))
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def _bias_of(self, outputs: Tensor, training: bool | None) -> Tensor:
        """Return the bias, broadcastable to `outputs`.

        Where it has a posterior, it is a weight whose input is 1: in training
        each example has a draw of its own, the same at all positions.
        """
        posterior = self.bias_posterior
        if posterior is None:
            return self._spread_bias(self.bias)
        is_sampling = posterior.is_sampling(training)
        examples = ops.shape(outputs)[0] if is_sampling else 1
        shape = (examples,) + (1,) * (len(outputs.shape) - 1)
        return posterior.project(
            self._bias_op, ops.ones(shape, outputs.dtype), training
        )

    def _bias_op(self, ones: Tensor, bias: Tensor) -> Tensor:
        return ops.multiply(ones, self._spread_bias(bias))

    def _spread_bias(self, bias: Tensor) -> Tensor:
        if getattr(self, "data_format", None) == "channels_first":
            return ops.reshape(bias, (-1,) + (1,) * self.rank)
        return bias


def has_bias(layer: keras.layers.Layer) -> bool:
    """Tell whether a dense, convolutional, recurrent or attention layer does.

    The projections of attention have it. Other layers have none.
    """
    if hasattr(layer, "bias_axes"):
        return layer.bias_axes is not None
    return bool(getattr(layer, "use_bias", False))


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


def _extended_signature(cls: Any) -> inspect.Signature:
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
    if not cls._knows_biases:
        ours = [x for x in ours if x.name != "bias_posterior"]
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
