"""Commands for maintainers; run them from the root of the repository."""
