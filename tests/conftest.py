"""What all tests share: two virtual CPU devices, and hypothesis without surprises in time or in its draws."""

import signal

import hypothesis
import jax

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
