"""Lowering kernels for an NVIDIA GPU on a machine that has none."""

import sys
import types
import warnings

import jax

from pallas_kernels.common.devices import DEVICES
from tests.pallas_kernels.inputs import Call

# For every operation of Triton's dialect the bindings of MLIR look for a Python module of it, which jaxlib does not
# have: a quarter of the time that lowering takes. They look once for one that is there.
sys.modules.setdefault("jaxlib.mlir.dialects.tt", types.ModuleType("jaxlib.mlir.dialects.tt"))


def for_gpu(key: str = "h100"):
    """A context in which kernels are lowered for that GPU."""
    device = DEVICES[key]
    described = jax.sharding.AbstractDevice(device_kind=device.name, num_cores=device.num_sms, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=described))


def lower(call: Call, tiles=None, key: str = "h100", donate: tuple[str, ...] = ()) -> str:
    """The lowered module's text; a kernel's own module is in it as bytecode, with its strings readable."""
    with for_gpu(key), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jitted = jax.jit(call.bind("triton", tiles), donate_argnames=donate)
        return jitted.trace(**call.arrays).lower(lowering_platforms=("cuda",)).as_text()
