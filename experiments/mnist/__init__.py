"""Sparse networks on images, with a recipe for each method."""
