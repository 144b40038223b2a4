"""Callbacks for `fit`: annealing, targets, backups, pruning, shrinking."""

from __future__ import annotations

from keras_vd.callbacks.annealing import KLAnnealing
from keras_vd.callbacks.backup import BackupAndRestore
from keras_vd.callbacks.magnitude import MagnitudePruning
from keras_vd.callbacks.shrinking import ShrinkWhileTraining
from keras_vd.callbacks.target import KLTarget

__all__ = [
    "BackupAndRestore",
    "KLAnnealing",
    "KLTarget",
    "MagnitudePruning",
    "ShrinkWhileTraining",
]
