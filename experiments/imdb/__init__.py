"""Sentiment of texts: which words, units and gates are needed."""
