"""What the posteriors of weights and of gates have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    model_in_training_step,
    own_variables,
)
from keras_vd._backend.seeds import SeedGenerator
from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_number
from keras_vd.posteriors.kl_weight import NO_KL_WEIGHT, KLWeight
from keras_vd.posteriors.sampling import is_sampling_at_inference

NO_NOISE = (
    "'{name}' draws no noise in the training step of '{model}' (of type "
    "{type}), and adds no KL divergence to its losses: the layers inside were "
    "not told that this is training. Give the `call` of '{model}' an argument "
    "`training=None` and hand it on to the layers inside, and pass "
    "`training=True` where a `train_step` of your own calls it or a part of "
    "it. Pass `training=False` there if it shall stay as it is, or give the "
    "layer `trainable=False`."
)


class Posterior(keras.layers.Layer):
    """A random quantity with a KL in the loss and a mask of what is kept.

    A frozen one (`trainable=False`, usually together with its layer) does in
    training what it does at inference, like Keras' batch normalization: it has
    no noise, and adds no KL to the losses.

    Args:
        kl_scale: Float >= 0: factor of this KL on top of the KL weight.
        kl_weight: Float >= 0 or None: initial multiplier of the KL in nats,
            normally 1 / (number of training examples).

    Attributes:
        kl_weight: Scalar variable, float32.
        keep_mask: Bool variable; False is pruned.
        label: Name in reports and messages.
        has_drawn: Whether it ever drew noise for training.

    Example:
    >>> layer = keras_vd.layers.VDDense(2, kl_weight=1e-4)
    >>> layer.build((None, 3))
    >>> posterior = layer.kernel_posterior
    >>> isinstance(posterior, keras_vd.posteriors.Posterior)
    True
    >>> tuple(posterior.keep_mask.shape)
    (3, 2)
    """

    label: str

    def __init__(
        self,
        kl_scale: float = 1.0,
        kl_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kl_scale = check_number("kl_scale", kl_scale, 0.0)
        if kl_weight is not None:
            kl_weight = check_number("kl_weight", kl_weight, 0.0)
        self.initial_kl_weight = kl_weight
        self.seed_generator = SeedGenerator()
        self.has_drawn = False

    def is_sampling(self, training: bool | None) -> bool:
        """Tell whether a pass draws weights and gates.

        Args:
            training: Bool or None, never a tensor.

        Raises:
            ValueError: if it does not, although it is part of the training of a
                model that does not tell the layers inside.
        """
        if training or is_sampling_at_inference():
            return True
        if self.trainable:
            model = model_in_training_step()
            if model is not None:
                raise ValueError(
                    NO_NOISE.format(
                        name=self.label,
                        model=model.name,
                        type=type(model).__name__,
                    )
                )
        return False

    @property
    def is_frozen(self) -> bool:
        """Whether this one draws no noise even in a pass that draws."""
        return not (self.trainable or is_sampling_at_inference())

    def _note_draw(self) -> None:
        if not (self.has_drawn or is_sampling_at_inference()):
            self.has_drawn = True

    def _add_state(self, shape: tuple[int, ...]) -> None:
        """Create `keep_mask` and `kl_weight`."""
        self.keep_mask = self.add_weight(
            name="keep_mask",
            shape=shape,
            initializer="ones",
            dtype="bool",
            trainable=False,
        )
        self.kl_weight = KLWeight(self.initial_kl_weight)

    def kl_divergence(self) -> Tensor:
        """Sum the KL of the posterior to its prior over what is not pruned.

        Neither `kl_weight` nor `kl_scale` is applied.

        Returns:
            Float32 scalar, in nats.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `kl_divergence`."
        )

    def own_mean(self) -> Tensor:
        """Return the mean at inference, without that of other posteriors.

        Returns:
            Tensor of the shape of `keep_mask`; 0 where pruned or below the
            threshold.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `own_mean`."
        )

    def revive(self, is_wanted: np.ndarray) -> None:
        """Give entries less noise, so that none of them counts as zero.

        What is far from the threshold stays as it is, and so does a posterior
        that cannot lower its noise. Entries that share noise share the change.

        Args:
            is_wanted: Bool array of the shape of `keep_mask`.
        """

    def margin(self) -> Tensor:
        """Tell how far each entry is from being zero, to compare them.

        It is the log of the signal-to-noise power (of gates that know no
        noise, of the gate) over what the threshold asks for. With Bayesian
        model reduction it is twice what the log evidence loses without the
        entry. Entries that are zero already may have any value.

        Returns:
            Float32 tensor of the shape of `keep_mask`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `margin`."
        )

    @property
    def has_added_kl(self) -> bool:
        """Whether the KL is among the losses of the running pass already.

        It counts once, however often a layer is called in a pass. Keras
        forgets all losses when the call of an outermost layer begins.
        """
        return bool(self.losses)

    def _is_kl_due(self) -> bool:
        """Tell whether the KL is still to be added to the losses of this pass.

        Raises:
            ValueError: if it is and the KL weight was never set.
        """
        if is_sampling_at_inference() or self.has_added_kl:
            return False
        if not self.kl_weight.is_set:
            raise ValueError(NO_KL_WEIGHT.format(name=self.label))
        return True

    @contextlib.contextmanager
    def _one_draw(self) -> Iterator[None]:
        """Let all uses of a layer in one draw at inference share their noise.

        A draw at inference is one sample of the weights for all uses of a
        layer, so the seed is put back after each use. In training each use has
        noise of its own.
        """
        if not is_sampling_at_inference():
            yield
            return
        state = self.seed_generator.state
        start = ops.convert_to_tensor(state) * 1  # a copy
        try:
            yield
        finally:
            state.assign(start)

    def _add_kl_loss(self, divergence: Tensor) -> None:
        weight = ops.convert_to_tensor(self.kl_weight)
        loss = weight * self.kl_scale * divergence
        # Keras adds up losses in this type, and TensorFlow does not cast them.
        self.add_loss(ops.cast(loss, keras.config.floatx()))

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        # Keras saves no seeds, but a resumed run has to go on with the same
        # noise.
        store["seed_state"] = self.seed_generator.state

    def load_own_variables(self, store: Any) -> None:
        variables = {str(i): x for i, x in enumerate(own_variables(self))}
        variables["seed_state"] = self.seed_generator.state
        label = getattr(self, "label", self.name)
        # Checked before any array is read, as arrays may be of any size.
        if set(store.keys()) != set(variables):
            raise ValueError(
                f"The file does not fit '{label}', {type(self).__name__}: it "
                f"must hold {sorted(variables)}. It holds "
                f"{sorted(store.keys())}."
            )
        for key, variable in variables.items():
            value = store[key]
            if np.shape(value) != tuple(variable.shape):
                raise ValueError(
                    f"The file does not fit '{label}', {type(self).__name__}: "
                    f"'{variable.name}' must have the shape "
                    f"{tuple(variable.shape)}. It has {np.shape(value)}."
                )
            variable.assign(value)
