"""Compiles kernels ahead of time for a GPU that is not there, and says how each came out.

    python -m tests.pallas_kernels.aot h200 < cases.json

`cases.json` holds a list of cases, each the keyword arguments of `Case`. One line of JSON is printed per case:
{"shared_bytes": int, "fits": bool, "spills": bool, "error": str}. XLA's own CUDA pipeline runs, so the verdicts are
those of a machine with the GPU. It takes the CUDA plugin of the jax in use (installed, or in the folder named by
TOKENSPEED_CUDA_PLUGIN, `.cuda-plugin` by default) and libdevice of a CUDA toolkit (CUDA_HOME, or /usr/local/cuda).
"""

import dataclasses
import functools
import glob
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

_SM80 = dict(major=8, fpus_per_core=64, shared_memory_per_core=167936)
_SM90 = dict(major=9, fpus_per_core=128, shared_memory_per_core=233472)
_SM100 = dict(_SM90, major=10)
CHIPS = {
    "a100": dict(_SM80, l2_cache_size=40 << 20, device_memory_size=80 << 30),
    "h100": dict(_SM90, l2_cache_size=50 << 20, device_memory_size=80 << 30),
    "h200": dict(_SM90, l2_cache_size=60 << 20, device_memory_size=140 << 30),
    "b200": dict(_SM100, l2_cache_size=126 << 20, device_memory_size=180 << 30),
}
"""What XLA's description of a GPU has beyond `pallas_kernels.DEVICES`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel to compile: the arguments of `inputs.of_model`, and tiles."""

    model: str
    op: str
    rows: int
    tiles: dict[str, Any]
    dtype: str = "bfloat16"
    tokens: int | None = None
    kv_dtypes: list[str | None] | None = None


def plugin_folder() -> Path:
    return ROOT / os.environ.get("TOKENSPEED_CUDA_PLUGIN", ".cuda-plugin")


def cuda_folder() -> Path:
    return Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))


def missing() -> str:
    """What is not installed and how to install it, or the empty string."""
    import jax

    if not glob.glob(str(plugin_folder() / "jax_plugins/xla_cuda*")) and not _installed():
        wheels = f"jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}"
        return f"no CUDA plugin; run: pip install --no-deps --target .cuda-plugin {wheels}"
    if not (cuda_folder() / "nvvm/libdevice").is_dir():
        return "no CUDA toolkit (for libdevice and ptxas); set CUDA_HOME to one"
    return ""


def _installed() -> bool:
    try:
        return importlib.util.find_spec("jax_plugins.xla_cuda13") is not None
    except ModuleNotFoundError:
        return False


def _device(key: str, shared_memory_bytes: int):
    """XLA's compile-only device for a GPU, with any limit of shared memory per block."""
    from jax.experimental import topologies

    from pallas_kernels.common.devices import DEVICES

    device = DEVICES[key]
    chip = dict(CHIPS[key])
    facts = dict(
        threads_per_block_limit=1024,
        threads_per_warp=32,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=shared_memory_bytes,
        threads_per_core_limit=2048,
        core_count=device.num_sms,
        block_dim_limit_x=2**31 - 1,
        block_dim_limit_y=65535,
        block_dim_limit_z=65535,
        memory_bandwidth=int(device.datasheet_gbps * 1e9),
        clock_rate_ghz=1.98,
        registers_per_core_limit=65536,
        registers_per_block_limit=65536,
    )
    text = " ".join(f"{k}: {v}" for k, v in (facts | {k: v for k, v in chip.items() if k != "major"}).items())
    versions = " ".join(f'{k}: "13.0.0"' for k in ("driver_version", "runtime_version", "compile_time_toolkit_version"))
    config = (
        f"gpu_device_info {{ {text} {versions} cuda_compute_capability {{ major: {chip['major']} }} }} "
        f'platform_name: "CUDA" device_description_str: "{device.name}" '
        "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }"
    )
    topology = topologies.get_topology_desc(platform="cuda", topology_name=key, topology="1x1x1", target_config=config)
    return topology.devices[0]


class Compiler:
    """Compiles calls for one GPU."""

    def __init__(self, key: str):
        import jax

        from pallas_kernels.common import choose_tiles
        from pallas_kernels.common.devices import DEVICES

        facts = DEVICES[key]
        self.device_with = functools.cache(functools.partial(_device, key))
        self.device = self.device_with(facts.shared_memory_bytes)
        described = jax.sharding.AbstractDevice(device_kind=facts.name, num_cores=facts.num_sms, platform="gpu")
        self.mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=described)
        choose_tiles.resolve = lambda op, tiles, *args: tiles  # infeasible tiles are to be compiled too

    def error(self, call, tiles, device, **options) -> str:
        """Why the call does not compile, or the empty string."""
        import jax

        sharding = jax.sharding.SingleDeviceSharding(device)
        arrays = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), call.arrays)
        with jax.sharding.use_abstract_mesh(self.mesh):
            lowered = jax.jit(call.bind("triton", tiles)).trace(**arrays).lower(lowering_platforms=("cuda",))
        try:
            lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            return str(error).splitlines()[0]
        return ""

    def shared_bytes(self, call, tiles) -> int:
        """The most that one of the call's kernels asks for; only the first over the limit is named in an error."""
        need = 0
        while asked := re.search(r"requested (\d+)", self.error(call, tiles, self.device_with(max(need, 1)))):
            need = int(asked[1])
        return need

    def verdict(self, call, tiles) -> dict[str, Any]:
        error = self.error(call, tiles, self.device, xla_gpu_fail_ptx_compilation_on_register_spilling=True)
        spills = "register spilling" in error
        return dict(shared_bytes=self.shared_bytes(call, tiles), fits=spills or not error, spills=spills, error=error)


def start() -> None:
    """Makes the CUDA plugin known to jax on a machine without a GPU; before jax is first used."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # XLA's defaults, which the tests' flags in the environment are not: verdicts are of programs as users have them.
    defaults = "--xla_backend_optimization_level=3 --xla_llvm_disable_expensive_passes=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {defaults} --xla_gpu_cuda_data_dir={cuda_folder()}"
    if not _installed():
        sys.path.insert(0, str(plugin_folder()))
    from jax._src import xla_bridge

    xla_bridge.discover_pjrt_plugins()
    xla_bridge.discover_pjrt_plugins = lambda: None


def run_module(name: str, *arguments: str) -> None:
    """Runs a module in a process of its own, whose backend may be another; fails with what it said if it does."""
    command = [sys.executable, "-m", name, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


def main() -> None:
    start()
    import pallas_kernels as pk
    from tests.pallas_kernels import inputs

    compiler = Compiler(sys.argv[1])
    for case in json.load(sys.stdin):
        case = Case(**case)
        call = inputs.of_model(
            inputs.Shapes(), case.model, case.op, rows=case.rows, dtype=case.dtype, tokens=case.tokens,
            kv_dtypes=case.kv_dtypes,
        )  # fmt: skip
        kind = pk.AttentionTiles if case.op == "attention" else pk.Tiles
        print(json.dumps(compiler.verdict(call, kind(**case.tiles))), flush=True)


if __name__ == "__main__":
    main()
