"""Recipes, tables and the harness behind the results of `docs/results.md`.

Run them from the root of the repository, `python -m experiments.NAME`.
"""
