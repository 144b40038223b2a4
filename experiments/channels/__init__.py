"""Channels of a trained network: gates against magnitude, at equal MACs."""
