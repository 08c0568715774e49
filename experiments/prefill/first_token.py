"""The time to the first token: wall time of `LLM.generate` with one token of each of a batch of prompts."""

import itertools
import time

import numpy as np

from experiments.bench.compiling import counted
from experiments.bench.device import reason_of
from experiments.prefill.found import Found, check_counting
from experiments.prefill.options import Case
from tokenspeed import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
Prompts = list[list[int]]


def batches_of(llm: LLM, case: Case, count: int, seed: int) -> list[Prompts]:
    """`count` batches of random prompts, as ids."""
    draw = np.random.default_rng((seed, case.batch, case.tokens))
    shape = count, case.batch, case.tokens
    return draw.integers(0, llm.model.config.vocab_size, shape).tolist()


def timed(llm: LLM, prompts: Prompts) -> tuple[list[int], float]:
    """The first token of each prompt, and the seconds from the call to its return."""
    begin = time.perf_counter()
    completions = llm.generate(prompts, PARAMS)
    seconds = time.perf_counter() - begin
    return [completion.token_ids[0] for completion in completions], seconds


def measure(llm: LLM, case: Case, *, samples: int, sequences: int, seed: int, check_up_to: int) -> Found:
    """`samples` calls of `sequences` batches of prompts in turn.

    Void where a prompt's first token is not the same every time or something was compiled while it was timed. Where the
    prompts have at most `check_up_to` tokens, the first tokens are compared with those by XLA's attention.
    """
    found = Found()
    try:
        batches = batches_of(llm, case, sequences, seed)
        check_counting()
        for _ in range(2):  # the first compiles everything, and the second finds it loaded
            drawn = {0: timed(llm, batches[0])[0]}
        with counted() as compiled:
            for sequence in itertools.islice(itertools.cycle(range(sequences)), samples):
                tokens, seconds = timed(llm, batches[sequence])
                found.ms.append(1e3 * seconds)
                if drawn.setdefault(sequence, tokens) != tokens:
                    found.void("the first tokens of two runs of a prompt differ")
        if compiled:
            found.void("something was compiled during timing")
        found.tokens_checked = sum(len(tokens) for tokens in drawn.values())
    except Exception as error:
        found.failure = f"running failed: {reason_of(error)}"
        return found
    if llm.prefill_backend != "xla" and case.tokens <= check_up_to:
        try:
            found.tokens_agree = agreeing(llm, batches, drawn)
        except Exception as error:
            found.void(f"the comparison with XLA's attention failed: {reason_of(error)}")
    return found


def agreeing(llm: LLM, batches: list[Prompts], drawn: dict[int, list[int]]) -> int:
    """How many of the first tokens, by batch, the same model draws with XLA's attention in prefill."""
    other = LLM(
        llm.model, max_context=llm.max_context, max_batch=llm.options.max_batch, prefix_caching=False,
        implementation=llm.implementation, prefill_backend="xla",
    )  # fmt: skip
    return sum(
        one == another
        for sequence, tokens in drawn.items()
        for one, another in zip(tokens, timed(other, batches[sequence])[0], strict=True)
    )
