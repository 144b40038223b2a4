"""When a pass draws weights: in training, or where someone asks for draws.

Monte Carlo predictions draw weights at inference: `training` is False there,
so that dropout stays off and batch normalization uses its moving statistics.
Every layer and gate of this package asks `Posterior.is_sampling` instead of
`training`.
Such a draw is about the weights: one sample of them, and of the gates, for all
examples, positions and uses of a layer.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_AT_INFERENCE = contextvars.ContextVar("sampling_at_inference", default=False)


@contextlib.contextmanager
def sampling_at_inference() -> Iterator[None]:
    """Context in which layers draw at inference, without KL in the losses.

    A function that is compiled in it stays so for good: it has to be one that
    nobody else uses.
    """
    token = _AT_INFERENCE.set(True)
    try:
        yield
    finally:
        _AT_INFERENCE.reset(token)


def is_sampling_at_inference() -> bool:
    """Whether the caller is within `sampling_at_inference`."""
    return _AT_INFERENCE.get()
