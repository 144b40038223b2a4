"""Adapters between the library, Keras and its backends, and shared helpers."""
