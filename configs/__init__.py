"""ml_collections files: each has `get_config()`, and a docstring with the command, its minutes and its result."""
