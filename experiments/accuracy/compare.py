"""How far the outputs of one model are from those of another on the same text, each token given the true ones before.

Figures are worked out in float64, from float32 logits.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.accuracy.forward import forward, logits_in_float64
from experiments.bench.numerics import divergence, log_softmax
from tokenspeed.models.decoder import Llama

TIE = 0.01
"""Nats between the reference's two best tokens, below which a position is a near tie."""


def compare(reference: Llama, model: Llama, rows: Sequence[np.ndarray]) -> dict[str, Any]:
    """The figures of a record.

    Args:
        reference, model: of one architecture, with float32 activations.
        rows: token ids int32 [T + 1] each: T positions, and the token after each.

    Raises:
        FloatingPointError: a model's logits are not finite.
    """
    kl, margins, same, same64, nll, streams = [], [], [], [], [], []
    for row in rows:
        tokens, targets = jnp.asarray(row[None, :-1]), row[1:]
        (true, true_x), (ours, ours_x) = (_outputs(one, tokens) for one in (reference, model))
        true64, ours64 = (logits_in_float64(one, tokens)[0] for one in (reference, model))
        kl.append(divergence(ours, true))
        best = np.partition(true, -2, axis=-1)[:, -2:]
        margins.append(best[:, 1] - best[:, 0])
        same.append(true.argmax(-1) == ours.argmax(-1))
        same64.append(true64.argmax(-1) == ours64.argmax(-1))
        nll.append([-one[np.arange(len(targets)), targets].mean() for one in (true, ours)])
        streams.append([((ours_x - true_x) ** 2).mean((1, 2)), (true_x**2).mean((1, 2))])
    kl, margins, same, same64 = (np.concatenate(one) for one in (kl, margins, same, same64))
    clear = margins >= TIE
    difference, size = np.mean(streams, axis=0)
    perplexity, perplexity_ours = np.exp(np.mean(nll, axis=0))
    return dict(
        positions=len(kl),
        kl_mean=float(max(kl.mean(), 0.0)),  # rounding may leave less than nothing
        kl_p99=float(max(np.percentile(kl, 99), 0.0)),
        top1=float(same.mean()),
        near_ties=float(1 - clear.mean()),
        top1_clear=float(same[clear].mean()) if clear.any() else None,
        top1_float64=float(same64.mean()),
        margin_differing=float(np.median(margins[~same])) if not same.all() else None,
        perplexity=float(perplexity_ours),
        perplexity_reference=float(perplexity),
        layer_errors=[float(error) for error in np.sqrt(difference / size)],
    )


def _outputs(model: Llama, tokens: jnp.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities float64 [T, V], residual streams float64 [L, T, D]) of one sequence."""
    logits, streams = forward(model, tokens)
    logits = np.asarray(logits[0], np.float64)
    if not np.isfinite(logits).all():
        raise FloatingPointError("the logits are not finite")
    return log_softmax(logits), np.asarray(streams[:, 0], np.float64)
