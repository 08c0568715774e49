"""Options and rows for the tests of the sweep, and a machine that times nothing."""

import dataclasses
import itertools

import pytest

from experiments import gpu, options
from pallas_kernels.common.devices import DEVICES
from tokenspeed.measure import Timing


@pytest.fixture
def device():
    return DEVICES["h200"]


@pytest.fixture
def make_options(tmp_path):
    """Options of configs/tiles.py made small, with overrides."""

    def make(**overrides) -> options.Options:
        small = dict(
            ops=("out",),
            models=("tiny",),
            contexts=(80,),
            calls=2,
            passes=1,
            max_tiles=4,
            compile_workers=2,
            interpret_rows=(1,),
            interpret_tiles=2,
            lower_tiles=2,
            cpu_models=("tiny",),
            results=str(tmp_path / "rows.jsonl"),
            plots="",
        )
        return dataclasses.replace(
            options.from_config(options.load(options.config_path("tiles.py"))), **(small | overrides)
        )

    return make


@pytest.fixture
def make_machine():
    """A machine whose kernels are XLA's and whose times are given; the last goes on for ever."""

    def make(times=(10.0,), implementation="xla", before=lambda number: None) -> gpu.Machine:
        given = itertools.chain(times, itertools.repeat(times[-1]))
        number = itertools.count()

        def time_calls(run, *, calls, samples, sample_seconds):
            before(next(number))
            run()
            us = next(given)
            return Timing(us, 0.9 * us, 1.1 * us, samples)

        return gpu.Machine(implementation=implementation, ceiling_gbps=lambda: 4000.0, time_calls=time_calls)

    return make


@pytest.fixture
def make_row():
    """A row as the sweep writes it on an H200."""

    def make(**fields) -> dict:
        row = dict(
            mode="gpu", op="out", model="tiny", rows=1, context=None, dtype="bf16",
            tiles=dict(block_n=4, block_k=256, num_warps=4, num_stages=1, mma=False),
            status="ok", error=0.001, error_xla=0.001, feasible=None, median_us=10.0, p10_us=9.5, p90_us=10.5,
            samples=15, calls=64, bytes=10_000_000, achieved_gbps=1000.0, ceiling_gbps=4000.0, percent_of_ceiling=25.0,
            xla_us=20.0, compile_s=1.0, device="NVIDIA H200", driver="580.1", clocks=None, jax="0.11.2",
            kernels="0123456789ab", commit="c" * 40, dirty=False, command="python -m experiments.sweep",
            date="2026-01-02T03:04:05Z",
        )  # fmt: skip
        unknown = set(fields) - set(row)
        assert not unknown, unknown
        return row | fields

    return make
