"""What the comparisons of layouts share: a chain passes over all its arrays, and a record says what a call took."""

import jax.numpy as jnp
import pytest

from experiments.bench import log
from experiments.layouts import cold_reads
from tokenspeed.measure.timing import Timing


@pytest.mark.parametrize("call_bytes", [1_000_000, 8_400_000, 235_000_000, 900_000_000])
def test_a_chain_is_cold_and_long(call_bytes):
    count, passes = cold_reads.lengths(call_bytes)
    assert count * call_bytes > cold_reads.COLD_BYTES
    assert count * passes * (call_bytes / 4e6 + 3) >= cold_reads.CHAIN_US, "at 4 TB/s and 3 us a launch"


def test_every_array_is_read_in_every_pass():
    run = cold_reads.chained(lambda before, w: before + w.sum(), jnp.zeros(()), [jnp.ones(3), 10 * jnp.ones(3)], 4)
    assert float(run()) == 4 * 33


@pytest.mark.parametrize(
    "kind, case", [("cache_layout", dict(context=9, page_size=3)), ("weight_layout", dict(op="x"))]
)
def test_a_record_says_what_a_call_took(tmp_path, kind, case):
    fields, origin = case | dict(model="m", layout="tiles"), dict(device="d", jax="0.11.2", sources="0123456789ab")
    with log.Log(tmp_path / "records.jsonl") as results:
        cold_reads.append(results, kind, fields, Timing(10.0, 9.0, 11.0, 5), 40_000_000, origin)
    (one,) = log.read(tmp_path / "records.jsonl")
    assert one.pop("date") and {name: value for name, value in one.items() if value is not None} == fields | dict(
        kind=kind, status="ok", median_us=10.0, p10_us=9.0, p90_us=11.0, samples=5, bytes=40_000_000,
        achieved_gbps=4000.0, **origin,
    )  # fmt: skip
