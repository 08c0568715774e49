"""The command measures what it is told, keeps what failed and ends where a launch hangs; without a GPU it lowers."""

import itertools
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from experiments.bench import log
from experiments.bench.device import DeviceLost
from experiments.persistent import __main__ as command
from experiments.persistent import measure, watchdog
from experiments.persistent.measure import Measured
from experiments.persistent.variants import VARIANTS
from experiments.persistent.workloads import WORKLOADS
from tokenspeed.measure.timing import Timing


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on which every variant takes as many microseconds as its name has letters; 'five-flags' fails."""
    measured = []

    def lower(variant, workload):
        if variant == VARIANTS["five-read"]:
            raise NotImplementedError("no such primitive")
        return jax.jit(lambda: 0).lower()

    def measure(program, variant, workload, weights, samples):
        (name,) = (name for name, one in VARIANTS.items() if one == variant)
        measured.append((workload, name))
        if name == "five-flags":
            raise RuntimeError("an illegal access")
        us = float(len(name)) * workload.layers
        return Measured(timing=Timing(us, us - 1, us + 1, samples), poll_cycles=(10.0, 5.0, 20.0))

    monkeypatch.setattr(command, "gpu_here", lambda: pk.DEVICES["h200"])
    monkeypatch.setattr(command, "gpu_read_ceiling_gbps", lambda: 4500.0)
    monkeypatch.setattr(command, "multiprocessors", lambda: 132)
    monkeypatch.setattr(command, "weights_of", lambda shape: jnp.zeros((len(measured),), jnp.int32))
    monkeypatch.setattr(command, "lower", lower)
    monkeypatch.setattr(command, "measure", measure)
    return measured


def call(tmp_path, *arguments):
    path = tmp_path / "records.jsonl"
    status = command.main([*arguments, f"--results={path}"])
    return status, log.read(path)


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--variants=fiv", "variants: unknown 'fiv'; did you mean five?"),
        ("--variants=", "variants: expected at least one"),
        ("--workloads=1b", "workloads: unknown '1b'; expected one of 1b-bf16, 1b-int8"),
        ("--samples=2", "samples: expected 3 or more, got 2"),
        ("--best=-1", "best: expected 0 or more, got -1"),
        ("--layers=2", "config: unknown 'layers'; expected one of variants, workloads"),
        ("model", "unexpected argument 'model'"),
    ],
)
def test_options_are_refused_by_name(argument, message, capsys):
    assert command.main([argument]) == 2
    assert message in capsys.readouterr().err


def test_every_variant_of_the_first_workload_and_the_fastest_of_others(gpu, tmp_path, capsys):
    status, records = call(tmp_path, "--variants=none,late,five-trace,three,slack", "--workloads=1b-bf16,8b-int4")
    assert status == 0
    first, other = WORKLOADS["1b-bf16"], WORKLOADS["8b-int4"]
    assert gpu == [(first, name) for name in ("none", "late", "five-trace", "three", "slack")] + [
        (other, name) for name in ("none", "none-128", "five", "three", "slack")
    ], "late is no decode step, none has no barriers"
    assert [one["variant"] for one in records] == [name for _, name in gpu]
    assert all(one["kind"] == "persistent" and one["status"] == "ok" for one in records)
    slack = records[4]
    assert slack["achieved_gbps"] == round(first.bytes / 80.0 / 1e3, 1) and slack["bytes"] <= slack["streamed_bytes"]
    assert (slack["structure"], slack["barriers"], slack["copier"]) == ("slack", "poll", "inline")
    assert (slack["poll_cycles"], slack["poll_cycles_least"], slack["poll_cycles_most"]) == (10.0, 5.0, 20.0)
    shown = capsys.readouterr().out
    assert "80.0 (79.0 to 81.0)" in shown and "16.0" in shown, "the time, and how much of it is barriers"


def test_what_fails_is_a_record_and_the_others_are_measured(gpu, tmp_path):
    status, records = call(tmp_path, "--variants=five-flags,five-read,five", "--workloads=1b-bf16")
    assert status == 0
    assert [one["status"] for one in records] == [
        "RuntimeError: an illegal access",
        "NotImplementedError: no such primitive",
        "ok",
    ]


def test_where_nothing_ran_the_status_says_so(gpu, tmp_path):
    status, (found,) = call(tmp_path, "--variants=five-flags", "--workloads=1b-bf16")
    assert status == 1 and found["status"] != "ok"


def test_programs_that_would_wait_for_others_that_cannot_run_are_refused(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "multiprocessors", lambda: 114)
    assert command.main([f"--results={tmp_path / 'records.jsonl'}", "--variants=none-128,five"]) == 2
    assert "variants: none-128 has 128 programs, and this GPU 114 multiprocessors" in capsys.readouterr().err


def test_a_lost_device_ends_it(gpu, tmp_path, monkeypatch, capsys):
    def lost():
        raise DeviceLost("no context")

    monkeypatch.setattr(command, "probe_device", lost)
    status, records = call(tmp_path, "--variants=five,five-flags,three", "--workloads=1b-bf16")
    assert status == 1 and [one["variant"] for one in records] == ["five", "five-flags"]
    assert "does not answer any more: no context" in capsys.readouterr().out


@pytest.mark.parametrize("seconds, measured", [(1, 0), (40, 1), (70, 2), (10_000, 3)])
def test_no_more_is_begun_after_its_time(seconds, measured, gpu, tmp_path, monkeypatch, capsys):
    """The clock goes on by ten seconds whenever somebody looks at it."""
    now = itertools.count(0, 10)
    monkeypatch.setattr(command, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    names = ["five", "three", "slack"]
    _, records = call(tmp_path, f"--variants={','.join(names)}", "--workloads=1b-bf16", f"--seconds={seconds}")
    assert [one["variant"] for one in records] == names[:measured]
    left = [f"1b-bf16 {name}: not measured, its time is over" for name in names[measured:]]
    assert [line for line in capsys.readouterr().out.splitlines() if "not measured" in line] == left


def test_a_launch_that_hangs_ends_the_process_after_its_record():
    script = (
        "import time; from experiments.persistent.watchdog import watching\n"
        "with watching(0.2, lambda: print('recorded')): time.sleep(60)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert (run.returncode, run.stdout) == (watchdog.HUNG, "recorded\n")


def test_it_is_left_alone_in_time():
    with watchdog.watching(60, lambda: pytest.fail("it did not hang")):
        pass


def test_without_a_gpu_variants_are_lowered(monkeypatch, capsys):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert command.main(["--variants=five,slack", "--workloads=1b-int4"]) == 0
    assert capsys.readouterr().out == (
        "There is no GPU here: every variant is lowered for an H200, none is run.\nfive: lowered\nslack: lowered\n"
    )


class Device:
    """Programs whose results are given, and a clock that runs 6 ms in a call and 1 ms between two waits."""

    def __init__(self, variant, workload, weights):
        design = variant.design
        self.results = jnp.zeros((design.programs, 3), jnp.int32).at[:, 2].set(24)
        sums = measure.checksums(weights, programs=design.programs, apart=design.apart, whole=design.whole)
        self.results = self.results.at[:, 0].set(sums * measure.LAUNCHES)
        self.now, self.trace = 0.0, None

    def __call__(self, given, weights):
        self.now += 6e-3
        return self.results, self.trace

    def clock(self):
        self.now += 1e-3
        return self.now


@pytest.fixture
def small():
    variant, workload = VARIANTS["five"], WORKLOADS["1b-bf16"]
    weights = measure.weights_of((2 * 132, variant.design.rows, 128))
    return variant, workload, weights, Device(variant, workload, weights)


def test_the_slope_over_calls_is_timed(small, monkeypatch):
    variant, workload, weights, device = small
    monkeypatch.setattr(measure.time, "perf_counter", device.clock)
    found = measure.measure(device, variant, workload, weights, 5)
    assert (
        found.status == "ok"
        and found.timing is not None
        and found.timing.median_us == pytest.approx(6e3 / measure.LAUNCHES)
    )
    assert found.poll_cycles == (2.0, 2.0, 2.0)


def test_a_trace_tells_how_long_each_wait_of_a_layer_is_and_how_long_for_the_last(small):
    variant, workload, weights, device = small
    cycles = jnp.zeros((workload.layers, 2, 132), jnp.int32).at[0].set(9999)
    cycles = cycles.at[1:, 0].set(jnp.arange(132) + 50).at[1:, 1].set(7)
    device.trace = cycles.reshape(-1, 132)
    found = measure.measure(device, variant, workload, weights, 5)
    assert found.wait_cycles == [50 + 131 / 2, 7] and found.wait_cycles_of_last == [50, 7], "without the first layer"


def test_wrong_words_and_polls_that_gave_up_have_no_time(small):
    variant, workload, weights, device = small
    right = device.results
    device.results = right.at[7, 0].add(1)
    found = measure.measure(device, variant, workload, weights, 5)
    assert found.timing is None and found.status == "wrong: 1 of 132 programs read other words, or in another order"
    device.results = right.at[:, 1].set(1)
    found = measure.measure(device, variant, workload, weights, 5)
    assert found.timing is None and found.status == measure.GAVE_UP
