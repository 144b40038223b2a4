"""Which models can be brought: converted, trained, shrunk and written."""
