"""Recipes, tables and the harness behind the results of the README.

Run them from the root of the repository, `python -m experiments.NAME`.
"""
