"""Callbacks for `fit`: annealing of the KL divergence, and backups."""

from __future__ import annotations

from keras_vd.callbacks.annealing import KLAnnealing
from keras_vd.callbacks.backup import BackupAndRestore

__all__ = ["BackupAndRestore", "KLAnnealing"]
