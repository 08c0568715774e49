"""What weights are held in where nobody asks for a dtype."""

import jax

from tokenspeed.measure.available_memory import available_bytes
from tokenspeed.models.config import ModelConfig

WORKSPACE = 1.25
"""Memory for a model and all around it, as a multiple of its weights."""


def default_dtype(config: ModelConfig, implementation: str) -> str:
    """The checkpoint's dtype; on a CPU float32 in place of a narrower one, if there is memory for it.

    XLA has no product of 16-bit matrices for a CPU: it makes each float32 first, again in every call.

    Args:
        implementation: 'triton', 'xla' or 'interpret'; 'interpret' tries the kernels out, in the checkpoint's dtype.
    """
    if implementation != "xla" or jax.default_backend() != "cpu":
        return config.dtype
    fits = WORKSPACE * config.weights_bytes(4) < available_bytes()
    return "float32" if fits else config.dtype
