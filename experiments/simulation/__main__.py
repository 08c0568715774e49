"""What the engine would give under load if programs took as long as on an H200; no GPU is needed.

    python -m experiments.simulation [--concurrency=64,256] [--max_batched_tokens=0,4096,8192] [--input_tokens=1024]

The scheduler, the engine, its thread and the coroutines that read tokens are the real ones, in real time; the programs
of llama-3.1-8b are a clock (experiments/simulation/times.py). So it says what a change of the scheduler, or of Python,
is worth before a GPU does. The load is that of `experiments.throughput`: a new request for each that ends. Nothing is
recorded: these are no measurements of a device.
"""

import asyncio
import dataclasses
import itertools
import sys
import time

import jax.numpy as jnp
from flax import nnx

from experiments.bench import options as command_line
from experiments.bench import tables
from experiments.bench.errors import UsageError
from experiments.bench.models import config_of
from experiments.bench.options import check_least, check_some
from experiments.simulation.runner import SimulatedRunner
from experiments.simulation.times import MOST_POSITIONS
from experiments.throughput.client import closed_loop, counts, since, until_idle
from experiments.throughput.load import WARM_TOKENS, Load, figures
from tokenspeed import LLM
from tokenspeed.async_engine import AsyncEngine
from tokenspeed.engine.sizes import least_batched_tokens
from tokenspeed.llm import MOST_BATCH
from tokenspeed.models.decoder import Llama

MODEL = "llama-3.1-8b"
HEADER = (
    "concurrency", "tokens a step", "output tokens/s", "TTFT ms p50, p99", "ms between tokens p50, p99", "steps",
    "host ms a step", "device busy %", "idle ms",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is simulated.

    Attributes:
        concurrency: requests under way at a time. max_batched_tokens: of a step, see `LLM`; 0: as the engine chooses.
        input_tokens, output_tokens: of a request. rounds: requests of a case, by its concurrency.
        max_batch: sequences that the engine runs at a time.
    """

    concurrency: tuple[int, ...] = (1, 8, 32, 64)
    max_batched_tokens: tuple[int, ...] = (0, 8192)
    input_tokens: int = 1024
    output_tokens: int = 128
    rounds: int = 2
    max_batch: int = 256

    def __post_init__(self):
        check_some(self, "concurrency", "max_batched_tokens")
        check_least(self, concurrency=1, max_batched_tokens=0, input_tokens=1, output_tokens=2, rounds=1, max_batch=1)
        if (positions := self.input_tokens + self.output_tokens) > MOST_POSITIONS:
            raise UsageError(
                f"input_tokens, output_tokens: expected at most {MOST_POSITIONS} together, as far as the times of "
                f"programs are known, got {positions}"
            )
        if self.max_batch > MOST_BATCH:
            raise UsageError(f"max_batch: expected at most {MOST_BATCH}, got {self.max_batch}")
        least = least_batched_tokens(self.max_batch)
        if wrong := [tokens for tokens in self.max_batched_tokens if 0 < tokens < least]:
            raise UsageError(f"max_batched_tokens: expected 0, or {least} or more, got {wrong[0]}")


def simulated(options: Options, concurrency: int, max_batched_tokens: int) -> list[str]:
    """A line of the table."""
    o = options
    load = Load(
        concurrency=concurrency, requests=o.rounds * concurrency, input_tokens=o.input_tokens,
        output_tokens=o.output_tokens, seed=0,
    )  # fmt: skip
    config = config_of(MODEL)
    pages = -(-load.positions // 64)
    llm = LLM(
        nnx.eval_shape(lambda: Llama(config, jnp.bfloat16, rngs=nnx.Rngs(0))), max_context=load.positions,
        max_batch=o.max_batch, max_batched_tokens=max_batched_tokens or None, implementation="xla",
        kv_bytes=o.max_batch * pages * 64 * config.kv_bytes_per_token(2),
    )  # fmt: skip
    engine = AsyncEngine(llm, runner=SimulatedRunner)
    device = engine.engine.runner.device

    async def run() -> list[str]:
        await closed_loop(engine, load.of(config.vocab_size, 0, concurrency, WARM_TOKENS), concurrency)
        await until_idle(engine)
        requests = load.of(config.vocab_size, 1, load.requests, o.output_tokens)
        before, busy, idle, begun = counts(engine), device.busy_s, device.idle_s, time.perf_counter()
        await closed_loop(engine, requests, concurrency)
        seconds, found = time.perf_counter() - begun, figures(requests, since(engine, before))
        return [
            f"{concurrency}", f"{max_batched_tokens or 'default'}", f"{found['output_tokens_per_s']:.1f}",
            f"{found['ttft_ms_p50']:.1f}, {found['ttft_ms_p99']:.1f}",
            f"{found['itl_ms_p50']:.2f}, {found['itl_ms_p99']:.2f}", f"{found['steps']}",
            f"{found['host_ms_per_step']:.2f}", f"{100 * (device.busy_s - busy) / seconds:.1f}",
            f"{1e3 * (device.idle_s - idle):.0f}",
        ]  # fmt: skip

    try:
        return asyncio.run(run())
    finally:
        engine.close()


def run(options: Options, command: str) -> int:
    del command
    print(f"{MODEL}, as on one H200, {options.input_tokens} + {options.output_tokens} tokens; simulated.")
    cases = itertools.product(options.max_batched_tokens, options.concurrency)
    print(tables.text(HEADER, [simulated(options, concurrency, tokens) for tokens, concurrency in cases]))
    return 0


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.simulation", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
