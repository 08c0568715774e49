"""The version, also where nothing is installed."""

import importlib.metadata
import subprocess
import sys

from tokenspeed import version
from tokenspeed.version import VERSION


def test_version_is_that_of_the_distribution():
    assert importlib.metadata.version("tokenspeed-jax") == VERSION


def test_version_of_a_folder_that_is_not_installed():
    """As on a machine that was given the sources alone."""
    code = (
        "import importlib.metadata as m, runpy, sys\n"
        "def version(name): raise m.PackageNotFoundError(name)\n"
        "m.version = version\n"
        "print(runpy.run_path(sys.argv[1])['VERSION'])"
    )
    found = subprocess.run([sys.executable, "-c", code, version.__file__], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "(not installed)"
