"""Trained Keras models, converted, made sparse, shrunk and deployed."""
