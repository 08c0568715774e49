"""The engine with a clock in the place of the device."""

import time

import numpy as np
import pytest

from experiments.simulation import __main__ as simulation
from experiments.simulation import times
from experiments.simulation.device import Device, Later


def test_programs_end_one_after_the_other():
    device = Device()
    first, second = (device.run(0.05, 0.0) for _ in range(2))
    assert second - first == pytest.approx(0.05) and device.busy_s == pytest.approx(0.1) and device.idle_s == 0
    device.wait()
    assert time.perf_counter() >= second
    time.sleep(0.02)
    device.run(0.01, 0.0)
    assert device.idle_s >= 0.02, "nothing was started meanwhile"


def test_an_array_is_there_from_its_time_on():
    array = Later(np.array([3, 4]), time.perf_counter() + 0.05)
    assert not array.is_ready()
    assert np.asarray(array).tolist() == [3, 4] and array.is_ready()


def test_a_program_takes_the_time_of_the_next_size():
    assert times.step_s(9) == times.step_s(16) < times.step_s(17)
    assert times.chunk_s(1, 200) == times.chunk_s(1, 256)
    assert 3 * times.chunk_s(1, 1024) < times.chunk_s(4, 1024) < 4 * times.chunk_s(1, 1024)


def test_a_load_takes_what_its_programs_do(capsys):
    """Two requests of 64 tokens, at least: a chunk for both, then 15 steps."""
    arguments = ["--concurrency=2", "--max_batched_tokens=0", "--input_tokens=64", "--output_tokens=16", "--rounds=1"]
    assert simulation.main([*arguments, "--max_batch=4"]) == 0
    heading, _, _, line = capsys.readouterr().out.rstrip().split("\n")
    assert heading.endswith("64 + 16 tokens; simulated.")
    concurrency, step, rate, *_ = line.split()
    least_s = times.chunk_s(1, 64) + 15 * times.step_s(2)
    assert (concurrency, step) == ("2", "default") and 0 < float(rate) <= 32 / least_s


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--max_batched_tokens=64", "max_batched_tokens: expected 0, or 319 or more, got 64"),
        ("--max_batch=300", "max_batch: expected at most 256, got 300"),
        ("--input_tokens=2000", "input_tokens, output_tokens: expected at most 2048 together"),
        ("--output_tokens=1", "output_tokens: expected 2 or more, got 1"),
        ("--concurrency=", "concurrency: expected at least one"),
    ],
)
def test_what_cannot_be_simulated_is_refused(argument, message, capsys):
    assert simulation.main([argument]) == 2
    assert message in capsys.readouterr().err
