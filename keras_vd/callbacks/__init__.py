"""Callbacks for `fit`: annealing, backups, pruning, removal of what is dead."""

from __future__ import annotations

from keras_vd.callbacks.annealing import KLAnnealing
from keras_vd.callbacks.backup import BackupAndRestore
from keras_vd.callbacks.magnitude import MagnitudePruning
from keras_vd.callbacks.shrinking import ShrinkWhileTraining

__all__ = [
    "BackupAndRestore",
    "KLAnnealing",
    "MagnitudePruning",
    "ShrinkWhileTraining",
]
