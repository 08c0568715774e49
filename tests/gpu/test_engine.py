"""The engine on a GPU: requests that run together against each alone, and what a served model compiles."""

import asyncio

import jax
import pytest

from experiments.soak import __main__ as soak
from tokenspeed.async_engine import AsyncEngine
from tokenspeed.llm import LLM
from tokenspeed.sampling.params import SamplingParams


@pytest.mark.parametrize("mode", ["batch_invariant", "served"])
def test_together_as_alone(mode, tmp_path, compiled_once):
    with compiled_once():  # for the engine that runs each alone
        assert soak.main(["--requests=50", "--short=500", f"--results={tmp_path / 'soak.jsonl'}", f"--{mode}"]) == 0


def test_nothing_is_compiled_once_it_is_ready():
    engine, seen = AsyncEngine(LLM.from_pretrained("tiny", max_batch=4)), []
    assert engine.engine.runner.programs <= 40

    def listen(event, duration_secs, **_):
        if event.startswith("/jax/core/compile/"):
            seen.append(event)

    asked = [
        SamplingParams(temperature=0.0, max_tokens=9),
        SamplingParams(max_tokens=9, top_k=300, top_p=0.5, min_p=0.1, seed=1),
        SamplingParams(max_tokens=9, n=3, logprobs=20, prompt_logprobs=3, logit_bias={5: 2.0}, frequency_penalty=1.0),
    ]

    async def all_of_them():
        calls = [(list(range(3, 3 + length)), params) for length in (1, 17, 66, 300) for params in asked]
        return await asyncio.gather(*(engine.generate(i, *call) for i, call in enumerate(calls)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = asyncio.run(all_of_them())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        engine.close()
    assert not seen
    assert [len(one.samples) for one in found] == 4 * [1, 1, 3]
