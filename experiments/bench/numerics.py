"""How far a tile's result is from the truth, and how far it may be.

The truth is the reference on operands cast to float32. The yardstick is the reference on the operands as they are
(XLA, unfused): a tile passes with at most 1.5 times its error.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels as pk
from experiments.bench import cases
from experiments.bench.recorded import Recorded

Tree = Any
FACTOR = 1.5
TINY = 1e-5
"""Allowed in any case: float32 sums in another order."""
FIXED_POINT = 3e-5
"""Allowed instead where activations are 16-bit fixed point (`StreamShape.in_integers`): each is off by up to 2^-16 of
the largest of 16 neighbours, evenly spread, which for normal ones is 1.8e-5 of their RMS; and there are sums."""
TOKEN_FACTOR = 5.0
"""For head, whose error is that of a single number a row and not a mean over many: five standard deviations."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A result's error, XLA's on the same draw, and what is wrong ('' where nothing is)."""

    error: float
    error_xla: float
    reason: str


def widen(tree: Tree) -> Tree:
    """With every floating-point leaf as float32, quantised weights for such activations, and fixed point and caches of
    what they stand for."""

    def is_quantised(x):
        return isinstance(x, pk.QuantisedWeight | pk.KVCache | pk.FixedPointRows)

    def leaf(x):
        if isinstance(x, pk.QuantisedWeight):
            return dataclasses.replace(x, dtype=jnp.dtype(jnp.float32))
        if isinstance(x, pk.FixedPointRows):
            return _floats(x)
        if isinstance(x, pk.KVCache):
            return pk.KVCache(k=_stands_for(x.k, x.k_scale), v=_stands_for(x.v, x.v_scale))
        return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, tree, is_leaf=is_quantised)


def _stands_for(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Keys or values [P, K, Z, H] in float32."""
    return stored.astype(jnp.float32) * (1.0 if scale is None else scale[:, None, None])


def judged(call: Recorded, result: Tree) -> Tree:
    """What is judged of a call's result: all of it, but of a deferred norm's squares, whose parts follow the tiles, the
    root of their sum, by which the next op divides. Fixed point as float32, of which it loses nothing."""
    if call.op in ("out", "down") and call.arguments.get("norm") is not None:
        deferred, total = result
        return _floats(deferred.x), jnp.sqrt(jnp.sum(deferred.squares, axis=1)), total
    if call.op == "attention":
        out = _floats(result[0])
        return out.reshape(out.shape[0], -1)  # in fixed point heads lie side by side
    return jax.tree.map(_floats, result, is_leaf=_is_fixed)


def _is_fixed(x: Any) -> bool:
    return isinstance(x, pk.FixedPointRows)


def _floats(x: Any) -> Any:
    return pk.to_floats(dataclasses.replace(x, dtype=jnp.dtype(jnp.float32))) if _is_fixed(x) else x


class Oracle:
    """Judges results of one call; compiled once, called for every tile with its own draw."""

    def __init__(self, call: Recorded):
        self.call, self.head = call, call.op == "head"

        unrounded = {name: value for name, value in call.arguments.items() if name != "fixed_point"}
        exact = dataclasses.replace(call, arguments=unrounded)

        def reference(call, state, streamed):
            if self.head:  # the token and its logit are judged by all logits
                return cases.run(dataclasses.replace(call, op="head_logits"), state, streamed, None, "xla")
            return judged(call, cases.run(call, state, streamed, None, "xla"))

        self._narrow = jax.jit(lambda state, streamed: reference(call, state, streamed))
        self._wide = jax.jit(lambda state, streamed: reference(exact, widen(state), widen(streamed)))

    def judge(self, result: Tree, state: Tree, streamed: Tree) -> Verdict:
        """Of what the call returned for this state and what it streamed."""
        truth, yardstick = self._wide(state, streamed), self._narrow(state, streamed)
        if self.head:
            return judge_head(*map(np.asarray, (*result, truth, yardstick)))
        pairs = list(zip(*map(jax.tree.leaves, (judged(self.call, result), truth, yardstick)), strict=True))
        errors, yardsticks = [relative_rms(r, t) for r, t, _ in pairs], [relative_rms(y, t) for _, t, y in pairs]
        return judge(errors, yardsticks, tiny_of(self.call.shape))


def relative_rms(result: Any, truth: Any) -> float:
    """RMS of the difference over RMS of the truth, worked out where they are: a cache of many rows is slow to copy."""
    return float(_relative_rms(result, truth))


@jax.jit
def _relative_rms(result, truth):
    result, truth = result.astype(jnp.float32), truth.astype(jnp.float32)
    size = jnp.sqrt(jnp.mean(truth * truth))
    return jnp.sqrt(jnp.mean(jnp.square(result - truth))) / jnp.maximum(size, 1e-30)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(ours: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Kullback-Leibler, in nats [...], of log-probabilities [..., V] from the true ones."""
    return (np.exp(true) * (true - ours)).sum(-1)


def tiny_of(shape: Any) -> float:
    """What is allowed in a call of that shape where the yardstick has no error."""
    return FIXED_POINT if getattr(shape, "in_integers", False) else TINY


def judge(errors: list[float], yardsticks: list[float], tiny: float = TINY) -> Verdict:
    """Array by array."""
    reason = ""
    for error, yardstick in zip(errors, yardsticks, strict=True):
        limit = FACTOR * yardstick + tiny
        if not error <= limit:  # NaN is not
            reason = f"wrong: relative RMS error {error:.2g}, at most {limit:.2g} allowed"
    return Verdict(float(np.max(errors)), max(yardsticks), reason)


def judge_head(tokens: np.ndarray, values: np.ndarray, truth: np.ndarray, yardstick: np.ndarray) -> Verdict:
    """Of tokens and their logits [B]: the right token, or one whose logit is as large within the margin of error."""
    size = float(np.sqrt(np.mean(truth.astype(np.float64) ** 2)))
    error_xla = relative_rms(yardstick, truth)
    limit = TOKEN_FACTOR * error_xla + TINY
    if ((tokens < 0) | (tokens >= truth.shape[1])).any():
        return Verdict(float("nan"), error_xla, f"wrong: token {tokens.tolist()} of {truth.shape[1]}")
    chosen = np.take_along_axis(truth, tokens[:, None], axis=1)[:, 0].astype(np.float64)
    error = float(np.max(np.abs(values - chosen))) / size
    shortfall = float(np.max(truth.max(axis=1) - chosen)) / size
    reason = ""
    if not error <= limit:
        reason = f"wrong: logit off by {error:.2g} of the logits' RMS, at most {limit:.2g} allowed"
    elif not shortfall <= 2 * limit:
        reason = f"wrong: token {tokens.tolist()}, whose logit is {shortfall:.2g} of the logits' RMS below the largest"
    return Verdict(error, error_xla, reason)
