"""What all tests share: two virtual CPU devices, and hypothesis without surprises in time or in its draws."""

import contextlib
import gc
import os
import shutil
import signal
from pathlib import Path

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# To compile programs for the CPU takes most of the time of the tests. Half of it would go into XLA's newer emitters of
# fusions, and more into optimisations; a program in parts would be for cores that the workers leave none of. Before
# anything asks jax for a device; what tests start as processes compiles alike. The last two are not of the CPU alone,
# so they stay away where there is a GPU.
QUICK_TO_COMPILE = [
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if not shutil.which("nvidia-smi"):
    QUICK_TO_COMPILE += ["--xla_backend_optimization_level=1", "--xla_llvm_disable_expensive_passes=true"]
os.environ["XLA_FLAGS"] = " ".join([*QUICK_TO_COMPILE, os.environ.get("XLA_FLAGS", "")])

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


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """A context in which what another worker of this run has compiled is not compiled again."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "compiled"
    changed = dict(jax_compilation_cache_dir=str(folder), jax_persistent_cache_min_compile_time_secs=0.05)

    @contextlib.contextmanager
    def context():
        before = {name: getattr(jax.config, name) for name in changed}
        for settings in (changed, before):
            for name, value in settings.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()  # or they are looked at once in a process
            if settings is changed:
                yield

    return context


MAPPINGS = 20_000
"""Of a process's memory, of which Linux allows 65,530: every program that is compiled for a CPU takes some. With what
jax keeps beside the programs, so many go with three gigabytes."""


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
        gc.unfreeze()
        jax.clear_caches()
        gc.collect()


# Tracing makes many objects and hardly a cycle: collections every 700 of them find nothing.
gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def little_to_collect(room_for_programs):
    """A collection, which commands ask for after every case, looks at what a module made, not at jax's caches of all.

    These grow to millions of objects, of which one collection takes seconds.
    """
    gc.collect()
    gc.freeze()
