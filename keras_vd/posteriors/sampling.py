"""When a pass draws weights: in training, or where someone asks for draws.

Monte Carlo predictions draw weights at inference: `training` is False there,
so that dropout stays off and batch normalization uses its moving statistics.
Every layer and gate of this package asks `Posterior.is_sampling` instead of
`training`. Such a draw is one sample of all weights and gates, the same for all
examples, positions and uses of a layer.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_AT_INFERENCE = contextvars.ContextVar("sampling_at_inference", default=False)


@contextlib.contextmanager
def sampling_at_inference() -> Iterator[None]:
    """Make layers draw at inference within this context, and add no KL losses.

    A function that is compiled in this context draws for good, so it has to be
    one that nothing else uses.
    """
    token = _AT_INFERENCE.set(True)
    try:
        yield
    finally:
        _AT_INFERENCE.reset(token)


def is_sampling_at_inference() -> bool:
    """Tell whether the caller is within `sampling_at_inference`."""
    return _AT_INFERENCE.get()
