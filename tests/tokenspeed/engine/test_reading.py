"""Reading: which steps are timed, from when on, and what they read."""

import pytest

from tests.tokenspeed.models.test_hf_config import LLAMA
from tokenspeed.engine.metrics import RECENT, Metrics
from tokenspeed.engine.reading import Reading
from tokenspeed.engine.sequence import Chunk, Plan, Sequence
from tokenspeed.models import hf_config, memory
from tokenspeed.models.kv_dtypes import KVDtypes

CONFIG = hf_config.from_dict(LLAMA)


def read_by(keys: float, batch: int) -> float:
    return memory.decode_bytes(CONFIG, dtype="bfloat16", context=keys, batch=batch)


def decode(*keys: int, steps: int = 1) -> Plan:
    sequences = [Sequence(id=i, prompt=[0] * count, max_tokens=100) for i, count in enumerate(keys)]
    for sequence, count in zip(sequences, keys):
        sequence.computed = count
    return Plan(decodes=tuple(sequences), chunks=(), preempted=(), steps=steps)


def prefill(length: int, *, of: int, beside: Plan | None = None) -> Plan:
    sequence = Sequence(id="new", prompt=[0] * of, max_tokens=9)
    sequence.prefill_end = of
    decodes = () if beside is None else beside.decodes
    return Plan(decodes=decodes, chunks=(Chunk(sequence, 0, length),), preempted=())


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def reading(metrics):
    return Reading(metrics, CONFIG, "bfloat16", KVDtypes.of("bfloat16"))


def test_a_step_lasts_from_the_end_of_the_one_before(reading, metrics):
    reading.begun(prefill(8, of=8), 0.0)
    reading.begun(decode(8), 1.0)
    reading.ended(2.0)
    reading.begun(decode(9, 99, steps=4), 2.5)
    reading.ended(3.0)
    assert (metrics.decode_steps, metrics.decode_s) == (1, 1.0) and metrics.decode_bytes == read_by(9, 1)
    reading.ended(5.0)
    assert (metrics.decode_steps, metrics.decode_s) == (5, 3.0)
    assert metrics.decode_bytes == pytest.approx(read_by(9, 1) + sum(read_by(55 + i, 2) for i in range(4)))
    assert metrics.read_bytes_per_s == pytest.approx(metrics.decode_bytes / 3)


def test_where_the_device_had_nothing_to_do_from_its_begin(reading, metrics):
    for begin, end in ((0.0, 1.0), (10.0, 10.5)):
        reading.begun(decode(8), begin)
        reading.ended(end)
    assert (metrics.decode_steps, metrics.decode_s) == (1, 0.5), "of the first nobody knows what was before"


@pytest.mark.parametrize("length, of", [(8, 8), (8, 16)])
def test_steps_with_prefill_are_left_out(length, of, reading, metrics):
    reading.begun(decode(8), 0.0)
    reading.begun(prefill(length, of=of, beside=decode(9)), 0.5)
    reading.ended(1.0)
    reading.ended(2.0)
    assert metrics.decode_steps == 0 and metrics.read_bytes_per_s is None


def test_a_step_behind_a_chunk_lasts_from_its_end(reading, metrics):
    reading.begun(decode(8), 0.0)
    reading.begun(prefill(8, of=16), 0.5)
    reading.begun(decode(8), 0.6)
    for end in (1.0, 4.0, 9.0):
        reading.ended(end)
    assert (metrics.decode_steps, metrics.decode_s) == (1, 5.0)


def test_what_is_forgotten_is_not_timed(reading, metrics):
    reading.begun(decode(8), 0.0)
    reading.ended(1.0)
    reading.begun(decode(8), 1.0)
    reading.forget()
    reading.begun(decode(8), 5.0)
    reading.ended(6.0)
    assert metrics.decode_steps == 0


def test_the_rate_is_that_of_the_last_steps(metrics):
    metrics.decoded(1, 1.0, 1e6)
    for _ in range(RECENT):
        metrics.decoded(1, 1.0, 5.0)
    assert metrics.read_bytes_per_s == 5.0 and metrics.decode_bytes > 1e6
