"""Variants lowered for a GPU that is not there."""

import jax

from experiments.bench.device import reason_of
from experiments.persistent.variants import VARIANTS
from experiments.persistent.workloads import Workload
from pallas_kernels import DEVICES

DEVICE = "h200"


def lower(name: str, workload: Workload):
    """The variant's launch as JAX lowers it: Pallas's Mosaic GPU module is made and verified."""
    variant, device = VARIANTS[name], DEVICES[DEVICE]
    described = jax.sharding.AbstractDevice(device_kind=device.name, num_cores=device.num_sms, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=described)):
        return workload.launch(variant).trace(*workload.arguments(variant)).lower(lowering_platforms=("cuda",))


def show(name: str, workload: Workload) -> bool:
    """Prints how it came out; whether it was lowered."""
    try:
        lower(name, workload)
        print(f"{name}: lowered", flush=True)
        return True
    except Exception as error:  # of any layer of the compiler
        print(f"{name}: {reason_of(error)}", flush=True)
        return False
