"""What all variational layers share; each layer adds its linear operation."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_vd import posteriors

# A mixin has the attributes of the Keras layer that is listed after it.
if TYPE_CHECKING:
    from keras.layers import Layer as _Mixin
else:
    _Mixin = object


class VariationalLayer(_Mixin):
    """Mixin that gives a Keras layer a posterior for each of its weights.

    To be listed before the Keras layer. A subclass names its weights and
    implements `_kernel_axes` and, with a single kernel, `_linear_op`.
    """

    _variational_weights: tuple[str, ...] = ("kernel",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, keras.layers.Layer):
            cls.__signature__ = _extended_signature(cls)

    def __init__(
        self,
        *args: Any,
        posterior: Any = "sparse_vd",
        kl_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._check_supported()
        for weight in self._variational_weights:
            name = f"{weight}_posterior"
            setattr(
                self, name, posteriors.instantiate(posterior, name, kl_weight)
            )

    def _check_supported(self) -> None:
        if self.variable_dtype == "float16":
            raise ValueError(
                f"Layer '{self.name}' cannot be trained in pure float16: its "
                "variances underflow. Argument `dtype` must be 'float32', "
                "'bfloat16', 'mixed_float16' or 'mixed_bfloat16'. Received: "
                f"dtype={self.dtype_policy.name!r}."
            )
        if getattr(self, "lora_rank", None):
            self._refuse("LoRA")
        # Not through `quantize`, which Keras wraps in checks of its own.
        if self.quantization_mode is not None:
            self._refuse("Quantization")

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Not for variational layers: see the error."""
        self._refuse("LoRA")

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Not for variational layers: see the error."""
        self._refuse("Quantization")

    def _refuse(self, feature: str) -> None:
        raise ValueError(
            f"{feature} is not available for layer '{self.name}', whose kernel "
            "is the mean of a posterior. Convert the model first: "
            "`keras_vd.to_deterministic(model)`."
        )

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        for posterior, weight in self._posteriors():
            getattr(self, posterior).bind(
                getattr(self, weight), **self._kernel_axes(weight)
            )

    @classmethod
    def _posteriors(cls) -> list[tuple[str, str]]:
        """Attribute names: of the posterior, of the weight it belongs to."""
        return [
            (f"{name}_posterior", name) for name in cls._variational_weights
        ]

    def _kernel_axes(self, weight: str) -> dict[str, Any]:
        """Arguments of `WeightPosterior.bind`: which axis means what."""
        raise NotImplementedError

    def _linear_op(self, inputs: Any, kernel: Any) -> Any:
        """The layer without noise, bias and activation."""
        raise NotImplementedError

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        outputs = self.kernel_posterior.project(
            self._linear_op, inputs, training
        )
        return self._add_bias_and_activate(outputs)

    def _add_bias_and_activate(self, outputs: Any) -> Any:
        if self.bias is not None:
            bias = self.bias
            if getattr(self, "data_format", None) == "channels_first":
                bias = ops.reshape(bias, (-1,) + (1,) * self.rank)
            outputs = ops.add(outputs, bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def get_config(self) -> dict[str, Any]:
        posterior = getattr(self, self._posteriors()[0][0])
        return {
            **super().get_config(),
            "posterior": posteriors.serialize(posterior),
            "kl_weight": posterior.initial_kl_weight,
        }


def keras_class(cls: type) -> type:
    """The Keras layer that a variational layer class extends."""
    return next(
        base
        for base in cls.__mro__
        if issubclass(base, keras.layers.Layer)
        and not issubclass(base, VariationalLayer)
    )


def _extended_signature(cls: type) -> inspect.Signature:
    """Signature of the Keras layer, with ours before its `**kwargs`."""
    parameters = list(inspect.signature(keras_class(cls)).parameters.values())
    all_ours = inspect.signature(VariationalLayer.__init__).parameters
    ours = [all_ours["posterior"], all_ours["kl_weight"]]
    is_rest = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    position = len(parameters) - is_rest
    return inspect.Signature(
        [*parameters[:position], *ours, *parameters[position:]]
    )
