"""Which version this is."""

import importlib.metadata

try:
    VERSION = importlib.metadata.version("tokenspeed-jax")
except importlib.metadata.PackageNotFoundError:  # used from a folder, as it can be
    VERSION = "(not installed)"
