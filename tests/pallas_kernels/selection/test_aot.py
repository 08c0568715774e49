"""The kernel of top-k and top-p compiles for an H200 that need not be here, without spilling."""

import sys

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from tests.pallas_kernels import aot

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(bool(aot.missing()), reason=aot.missing()),
]


def main() -> None:
    aot.start()
    compiler = aot.Compiler(sys.argv[1])
    sharding = jax.sharding.SingleDeviceSharding(compiler.device)
    described = lambda *shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    how = described(8, dtype=jnp.int32), described(8, dtype=jnp.float32)
    for vocabulary in (128_256, 32_000):
        with jax.sharding.use_abstract_mesh(compiler.mesh):
            traced = jax.jit(pk.top_k_top_p).trace(described(8, vocabulary, dtype=jnp.float32), *how)
            lowered = traced.lower(lowering_platforms=("cuda",))
        compiled = lowered.compile(compiler_options=dict(xla_gpu_fail_ptx_compilation_on_register_spilling=True))
        assert "top_k_top_p" in compiled.as_text()


def test_it_compiles_without_spilling():
    aot.run_module(__name__, "h200")


if __name__ == "__main__":
    main()
