"""Random requests: prompts that overlap, ways of drawing that differ, some of which are left or come before others."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from tokenspeed.sampling.params import SamplingParams

TEXT = (
    "Once upon a time there was a little dog who lived in a house in a town . One day , a girl named Lily went to the "
    "park and saw a big tree . The cat sat on it and the bird was sad"
)
WORDS = TEXT.split()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt with what is done to it.

    Attributes:
        prompt: token ids. params: of one sample. sample: which of the prompt's. seed: where params have none.
        priority: lower runs first. after: steps that the request before it has had when it comes.
        cancel_after: steps until it is cancelled; None: it is left to end.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    sample: int
    seed: int
    priority: int
    after: int
    cancel_after: int | None


def requests(encode, *, count: int, max_context: int, seed: int) -> Iterator[Request]:
    """So many requests.

    Args:
        encode: from a text to its token ids. max_context: of prompt and output together.
        seed: the same one gives the same requests.
    """
    draw = np.random.default_rng(seed)
    pick = functools.partial(draw.choice, size=1)
    longest = 3 * max_context // 4
    beginnings = [tuple(encode(" ".join(draw.choice(WORDS, longest))))[: longest - 8] for _ in range(6)]
    made = 0
    while made < count:
        if draw.random() < 0.6:  # of a beginning that others have too
            whole = beginnings[draw.integers(len(beginnings))]
            whole = whole[: int(draw.integers(1, len(whole) + 1))] + tuple(draw.integers(3, 100, draw.integers(0, 8)))
        else:
            whole = tuple(encode(" ".join(draw.choice(WORDS, draw.integers(1, 12)))))
        prompt = tuple(int(token) for token in whole)
        greedy = draw.random() < 0.4
        params = SamplingParams(
            temperature=0.0 if greedy else float(draw.uniform(0.5, 1.3)),
            top_k=int(pick([0, 5, 50])[0]),
            top_p=float(pick([1.0, 0.9])[0]),
            min_p=float(pick([0.0, 0.0, 0.05])[0]),
            max_tokens=int(min(draw.integers(1, 80), max_context - len(prompt))),
            ignore_eos=bool(draw.random() < 0.5),
            stop=("sad",) if draw.random() < 0.2 else None,
            seed=int(draw.integers(2**32)),
            logprobs=2 if draw.random() < 0.2 else None,
            prompt_logprobs=0 if draw.random() < 0.05 else None,
            frequency_penalty=0.5 if draw.random() < 0.15 else 0.0,
            logit_bias={int(draw.integers(3, 100)): 3.0} if draw.random() < 0.1 else None,
        )
        samples = 1 if greedy else int(pick([1, 1, 1, 3])[0])
        priority, after = int(pick([0, 0, 0, 1, -1])[0]), int(pick([0, 0, 1, 5])[0])
        cancel = int(draw.integers(0, 30)) if draw.random() < 0.15 else None
        for sample in range(samples):
            yield Request(
                prompt=prompt, params=params, sample=sample, seed=0, priority=priority, after=0 if sample else after,
                cancel_after=cancel,
            )  # fmt: skip
        made += samples
