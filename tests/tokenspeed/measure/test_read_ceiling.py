"""The kernels behind the read ceiling read what they say they read, and the figure is of this machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pallas_kernels.lowering import for_gpu
from tokenspeed.measure import read_ceiling
from tokenspeed.measure.read_ceiling import cpu_read_ceiling_gbps
from tokenspeed.measure.read_patterns import PATTERNS, TmaRead, TritonRead
from tokenspeed.measure.timing import Timing

TRITON = [pattern for pattern in PATTERNS if isinstance(pattern, TritonRead)]
RINGS = [*TRITON, TmaRead(block=512, slots=3)]


@pytest.mark.parametrize("pattern", RINGS, ids=str)
def test_every_element_once_a_pass(pattern):
    programs, passes = 2 * getattr(pattern, "each", 1), 3
    whole = 2 * programs * pattern.block
    read, moved = pattern.reader(whole + 17, passes, num_sms=2, interpret=True)
    assert moved == 2 * passes * whole
    # Powers of two of where a block lies: sums in float32 are exact, and a block read twice or not at all shows.
    blocks = np.repeat(2.0 ** np.arange(2 * programs), pattern.block)
    sums = read(jnp.asarray(np.append(blocks, np.full(17, np.nan)), jnp.bfloat16))
    assert sums.shape == (programs,)
    assert float(np.sum(np.asarray(sums, np.float64))) == passes * blocks.sum()
    runs = getattr(pattern, "runs", False)
    own = np.arange(2 * programs).reshape((programs, 2) if runs else (2, programs))
    expected = (2.0**own).sum(1 if runs else 0) * pattern.block * passes
    np.testing.assert_array_equal(np.asarray(sums), expected)


def lowered(pattern):
    read, _ = pattern.reader(2**28, 10, num_sms=132)
    with for_gpu("h200"):
        traced = jax.jit(read).trace(jax.ShapeDtypeStruct((2**28,), jnp.bfloat16))
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("pattern", TRITON, ids=str)
def test_the_ring_is_a_pipeline(pattern):
    assert ("tt.num_stages" in lowered(pattern)) == (pattern.num_stages > 1)


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if isinstance(pattern, TmaRead)], ids=str)
def test_tma_reads_the_array_in_place(pattern):
    text = lowered(pattern)
    assert "mosaic_gpu" in text
    assert "stablehlo.slice" not in text  # of the array, a copy of gibibytes in every call


def test_a_processors_ceiling_is_its_faster_read_on_a_quiet_machine(monkeypatch):
    read = []

    def time_calls(run, *, calls, samples):
        read.append(run().size)
        fast = 500.0 / len(read)  # the second read is the faster one
        return Timing(median_us=9e6, p10_us=fast, p90_us=9e6, samples=samples)

    monkeypatch.setattr(read_ceiling, "time_calls", time_calls)
    assert cpu_read_ceiling_gbps(4) == pytest.approx(4 * 2**20 / 250e-6 / 1e9)
    assert read == [1, 4 * 2**20 // 4 // 4096]
