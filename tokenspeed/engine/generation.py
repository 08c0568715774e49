"""Generation on the device: the token that follows a prompt, then steps of decode, without the host between them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import pallas_kernels as pk
from pallas_kernels import KVCache, resolve_implementation
from tokenspeed.engine import decode
from tokenspeed.models.decoder import Llama
from tokenspeed.sampling.sample import RUNNING, Logprobs, finished, sample
from tokenspeed.sampling.state import SamplingState

FEW_TOKENS = 256
"""Of prompts: up to so many, a pass over the weights takes about as long whatever their number."""
ENDED, BROKEN = -1, -2
"""In the place of a token: the sequence had ended, or its logits were not finite, which ends it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """A model as a list of its arrays: Flax walks a model in Python at every call, a list passes at once."""

    arrays: list[jax.Array]
    tree: Any = dataclasses.field(metadata=dict(static=True))

    @classmethod
    def of(cls, model: Llama) -> "Weights":
        return cls(*jax.tree.flatten(model))

    @property
    def model(self) -> Llama:
        """The model; under jit its arrays are traced."""
        return jax.tree.unflatten(self.tree, self.arrays)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """B sequences under way; a pytree, donated from call to call.

    Attributes:
        caches: of each layer, a pool of pages; contiguous where steps get no page table: page i is that of sequence i.
        counters: of attention, int32 [B, K].
        hidden: float32 [B, D], the residual stream of the last token of each prompt.
        token: int32 [B], drawn last, not yet in the cache; of no meaning once the sequence has ended.
        position: int32 [B], where that token will stand; -1 when the sequence has ended or its row is not in use.
        step: int32 [B], how many tokens were drawn.
        max_tokens: int32 [B], how many tokens each may draw.
        sampling: how each draws them.
    """

    caches: list[KVCache]
    counters: jax.Array
    hidden: jax.Array
    token: jax.Array
    position: jax.Array
    step: jax.Array
    max_tokens: jax.Array
    sampling: SamplingState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a few steps drew. Of the host: no later call is given these arrays.

    Attributes:
        tokens: int32 [steps, B]; ENDED or BROKEN where there is none.
        reason: int32 [B], why a sequence ended in these steps (`sampling.finished`), RUNNING if it did not.
        logprobs: of the tokens, stacked, or None.
    """

    tokens: jax.Array
    reason: jax.Array
    logprobs: Logprobs | None


def draw_first(
    weights: Weights, state: Generation, *, logprobs: int | None, implementation: str | None
) -> tuple[Generation, Drawn]:
    """Draws the first token of each sequence, from the end of its prompt; `Drawn` of one step. To be compiled.

    Args:
        weights: of the model. state: behind its prompts. logprobs: how many of the most likely tokens to report, see
            `sample`. implementation: of the kernels.
    """
    token, found, sampling = _draw(
        weights.model, state.sampling, state.hidden, state.step, state.position >= 0, logprobs, implementation
    )
    return _after(dataclasses.replace(state, sampling=sampling), token[None], jax.tree.map(lambda x: x[None], found))


def decode_steps(
    weights: Weights,
    state: Generation,
    rope: tuple[jax.Array, jax.Array],
    *,
    steps: int,
    logprobs: int | None,
    implementation: str | None,
    page_table: jax.Array | None = None,
    deferred_norm: bool | None = None,
    kernels: Any = pk,
) -> tuple[Generation, Drawn]:
    """`steps` steps of every sequence that has not ended; `Drawn` of that many steps. To be compiled.

    What a step passes to the next is one array of tokens, and all else is worked out from it: whether a sequence goes
    on, where it stands, and, behind the loop, why it ended. Each array more would be a launch more at every step.

    Args:
        weights: of the model. state: as `draw_first` or this left it. rope: from `Llama.rope_tables`.
        steps: how many. logprobs: as in `draw_first`.
        page_table: int32 [B, pages of a sequence], where the caches are pools of pages; None for contiguous ones.
        implementation, deferred_norm, kernels: as in `decode.decode_step`.
    """
    model = weights.model

    def step(i, carry):
        caches, counters, sampling, tokens, all_found = carry
        last = tokens[i]
        drawn = state.step + i  # by those that have not ended
        ended, _ = finished(last, drawn - 1, sampling.ends, state.max_tokens)
        position = jnp.where((last >= 0) & ~ended, state.position + i, -1)
        with jax.named_scope("decode_step"):
            x, caches, counters = decode.decode_step(
                model, caches, last[:, None], position[:, None], rope, page_table=page_table, counters=counters,
                implementation=implementation, deferred_norm=deferred_norm, kernels=kernels,
            )  # fmt: skip
        token, found, sampling = _draw(model, sampling, x, drawn, position >= 0, logprobs, implementation, kernels)
        tokens = decode.with_row(tokens, i + 1, token)
        return caches, counters, sampling, tokens, jax.tree.map(lambda a, b: decode.with_row(a, i, b), all_found, found)

    running = state.position >= 0
    before = jnp.where(running, state.token, ENDED)
    tokens = jnp.concatenate([before[None], jnp.full((steps, *before.shape), ENDED, jnp.int32)])
    shapes = jax.eval_shape(
        lambda: _draw(model, state.sampling, state.hidden, state.step, running, logprobs, implementation)[1]
    )
    nothing = jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), shapes)
    carry = state.caches, state.counters, state.sampling, tokens, nothing
    caches, counters, sampling, tokens, found = lax.fori_loop(0, steps, step, carry)
    return _after(dataclasses.replace(state, caches=caches, counters=counters, sampling=sampling), tokens[1:], found)


def _draw(model, sampling, x, step, running, logprobs, implementation, kernels=pk):
    """(int32 [B], Logprobs or None, sampling): a token of each running sequence from the residual stream [B, D]."""
    with jax.named_scope("draw"):
        if logprobs is None and sampling.plan.argmax:
            token, value = decode.greedy(model, x, implementation, kernels)
            found, finite = None, jnp.isfinite(value)
        else:
            logits = decode.logits(model, x, implementation, kernels)
            # Where the other kernels are interpreted this one is not: it would take seconds a row.
            chosen = "triton" if resolve_implementation(implementation) == "triton" else "xla"
            token, finite, found, new = sample(logits, sampling, step, logprobs=logprobs, implementation=chosen)
            if new.counts is not None:
                counts = jnp.where(running[:, None], new.counts, sampling.counts)
                sampling = dataclasses.replace(sampling, counts=counts)
        return jnp.where(running, jnp.where(finite, token, BROKEN), ENDED), found, sampling


def _after(state, tokens, logprobs):
    """(the state after these tokens [steps, B], Drawn)."""
    steps = tokens.shape[0]
    count = (tokens >= 0).sum(axis=0, dtype=jnp.int32)
    last = jnp.take_along_axis(tokens, jnp.maximum(count - 1, 0)[None], axis=0)[0]
    ended, reason = finished(last, state.step + count - 1, state.sampling.ends, state.max_tokens)
    after = dataclasses.replace(
        state,
        token=last,
        position=jnp.where((tokens[-1] >= 0) & ~ended, state.position + steps, -1),
        step=state.step + count,
    )
    return after, Drawn(tokens=tokens, reason=jnp.where(count > 0, reason, RUNNING), logprobs=logprobs)
