"""The nine regression data sets of UCI, as the field compares methods."""
