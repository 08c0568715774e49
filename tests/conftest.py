"""What all tests share: two virtual CPU devices, and hypothesis without surprises in time or in its draws."""

import gc
import signal
from pathlib import Path

import hypothesis
import jax
import pytest

# For shard_map; before anything asks jax for a device. A GPU, if there is one, stays the default backend.
jax.config.update("jax_num_cpu_devices", 2)

# A shell has its background jobs ignore Control-C, and what they start would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Few examples and the same ones every time, since many of them compile.
hypothesis.settings.register_profile(
    "tests",
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("tests")

MAPPINGS = 30_000
"""Of a process's memory, of which Linux allows 65,530: every program that is compiled for a CPU takes some."""


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()
