"""What a compression shall reach."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_vd._backend.keras_internals import is_better_when_larger
from keras_vd.callbacks import KLTarget
from keras_vd.callbacks.sizes import SizeCourse
from keras_vd.callbacks.wishes import NAMES, TOLERANCE, Wish, units_of
from keras_vd.shrinking.report import ShrinkReport
from keras_vd.sparsity import SparsityReport

# Without a wish: how much worse than the plain network the metric may be. A
# share of its value where it shall be small, since losses have any scale.
POINTS, SHARE = 0.01, 0.05


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a compression shall reach.

    Attributes:
        name: A wish of `KLTarget`.
        value: Its value; None: a default budget.
        monitor: Name of the metric that is watched, as `evaluate` calls it.
        is_larger_better: Whether it shall be large.
    """

    name: str
    value: float | None
    monitor: str
    is_larger_better: bool

    @property
    def is_budget(self) -> bool:
        """Whether it is about a quality, and not a size."""
        return self.name == "budget"

    @property
    def logged(self) -> str:
        """Name of the metric in the logs of `fit`."""
        return f"val_{self.monitor}"

    def budget(self, reference: float) -> float:
        """Return the budget, for the value of the metric before."""
        if self.value is not None:
            return self.value
        return POINTS if self.is_larger_better else SHARE * abs(reference)

    def limit(self, reference: float) -> float:
        """Return the worst value of the metric that is within the budget."""
        sign = -1.0 if self.is_larger_better else 1.0
        return reference + sign * self.budget(reference)

    def callback(
        self, num_examples: int, reference: float, verbose: int
    ) -> KLTarget:
        """Return the callback that reaches it.

        Args:
            num_examples: Number of training examples.
            reference: The metric of the plain network.
            verbose: 0 or 1.
        """
        if not self.is_budget:
            size: Any = {self.name: self.value}
            return KLTarget(num_examples, verbose=verbose, **size)
        return KLTarget(
            num_examples,
            budget=self.budget(reference),
            monitor=self.logged,
            reference=reference,
            verbose=verbose,
        )

    def check(self, model: keras.Model) -> None:
        """Raise a ValueError if a variational model cannot have this size."""
        if not self.is_budget:
            SizeCourse(self._size).begin(model, 0, 2)

    @property
    def _size(self) -> Wish:
        assert self.value is not None
        return Wish(self.name, self.value)

    def outcome(
        self,
        reference: float,
        metric: float,
        pruned: SparsityReport,
        shrunk: ShrinkReport,
    ) -> tuple[dict[str, Any], float, bool]:
        """Tell what was wished for, what was reached, and whether that is it.

        Args:
            reference: The metric of the plain network.
            metric: That of the small one.
            pruned: The report of the pruned model.
            shrunk: The report of the small one.
        """
        if self.is_budget:
            limit, budget = self.limit(reference), self.budget(reference)
            wish = {"budget": budget, "monitor": self.monitor, "limit": limit}
            is_met = (
                metric >= limit if self.is_larger_better else metric <= limit
            )
            return wish, metric, is_met
        whole, size = {
            "nonzero_ratio": pruned.entries,
            "n_active": units_of(pruned),
            "parameters": (shrunk.parameters, shrunk.kept_parameters),
            "macs": (shrunk.macs or 0, shrunk.kept_macs or 0),
        }[self.name]
        is_met = abs(size / self._size.most(whole) - 1.0) <= TOLERANCE
        return (
            {self.name: self.value},
            self._size.figure(whole, size),
            is_met,
        )


def find_wish(*values: Any) -> tuple[str, float | None]:
    """Return the name and the value of the one wish that is given.

    Without one it is a budget, of a value that depends on the metric.

    Args:
        values: One for each of `NAMES`, or None.

    Raises:
        TypeError: if its value is of the wrong type.
        ValueError: if there are several, or its value is out of range.
    """
    named = dict(zip(NAMES, values, strict=True))
    given = {k: v for k, v in named.items() if v is not None}
    if len(given) > 1:
        raise ValueError(
            f"Arguments {', '.join(f'`{x}`' for x in NAMES)} are wishes, of "
            f"which there can be one. Received: {given}."
        )
    if not given:
        return "budget", None
    ((name, value),) = given.items()
    # It checks the value.
    KLTarget(1, **{name: value})
    return name, value


def find_goal(
    model: keras.Model,
    metrics: dict[str, float],
    monitor: str | None,
    wish: tuple[str, float | None],
) -> Goal:
    """Return the goal, once the metrics of the model are known.

    Args:
        model: A model that was evaluated.
        metrics: What `evaluate` has returned for it, by name.
        monitor: Name of a metric, also with `val_` before it. None: the first
            metric by name of which Keras knows whether it shall be large or
            small, or else the loss.
        wish: Name and value of the wish.

    Raises:
        ValueError: if there is no such metric, or it has no direction.
    """
    if monitor is not None:
        name = monitor.removeprefix("val_")
        if name not in metrics:
            raise ValueError(
                "Argument `monitor` must be a metric that `model` is compiled "
                f"with. Received: monitor={monitor!r}, and {sorted(metrics)}."
            )
        larger = is_better_when_larger(model, f"val_{name}")
        return Goal(*wish, name, larger)
    for name in sorted(set(metrics) - {"loss"}):
        try:
            larger = is_better_when_larger(model, f"val_{name}")
        except ValueError:
            continue
        return Goal(*wish, name, larger)
    return Goal(*wish, "loss", False)
