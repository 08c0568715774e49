"""Teacher-forced decode by one implementation and how far it is from float32; for the tests on CPU and GPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels as pk
from tokenspeed import LLM
from tokenspeed.engine import decode
from tokenspeed.models.config import LayerConfig, ModelConfig, Rope
from tokenspeed.models.decoder import Llama
from tokenspeed.weights import checkpoint
from tokenspeed.weights.random import random_model
from tokenspeed.weights.tiny import TINY

CONFIG = ModelConfig(
    family="llama", vocab_size=1031, d_model=128, d_ff=320, num_heads=4, num_kv_heads=2, head_dim=32,
    max_positions=256, eps=1e-5, rope=Rope(theta=10000.0), layers=(LayerConfig(),) * 2, dtype="bfloat16",
)  # fmt: skip
TEXTS = (
    "Once upon a time there was a little fox who lived near the river.",
    "Question: what color is the sky? Answer:",
    "One day, Tom went to the market with his sister and",
    'The owl said to the rabbit: "Let us go',
)


@functools.cache
def random_weights() -> Llama:
    """In bfloat16, at a scale at which the layers matter."""
    model = random_model(CONFIG, jnp.bfloat16, 0)
    return jax.tree.map(lambda x: (4 * x.astype(jnp.float32)).astype(x.dtype) if x.ndim > 1 else x, model)


@functools.cache
def trained_weights() -> Llama:
    return checkpoint.load(TINY, dtype="bfloat16")


def draws(name: str, batch: int, length: int) -> tuple[Llama, np.ndarray]:
    """A model in bfloat16, and token ids int32 [batch, length] for it: random ones, or text that it was trained on."""
    if name == "random":
        model = random_weights()
        return model, np.random.default_rng(0).integers(0, CONFIG.vocab_size, (batch, length)).astype(np.int32)
    llm = LLM.from_pretrained(TINY, implementation="xla")
    ids = [token for text in TEXTS for token in llm.encode(text)]
    rows = [np.roll(ids, -7 * i)[:length] for i in range(batch)]
    return trained_weights(), np.stack(rows).astype(np.int32)


def widened(model: Llama) -> Llama:
    return jax.tree.map(lambda x: x.astype(jnp.float32), model)


# Plain bfloat16 is to be rounded where it says so: XLA may leave that out, and one version does so more than another.
@functools.partial(jax.jit, static_argnames="implementation", compiler_options={"xla_allow_excess_precision": False})
def forced(model: Llama, tokens: jax.Array, implementation: str) -> jax.Array:
    """float32 [B, T, V]: the logits of decode, token by token, each step given the true token."""
    batch, length = tokens.shape
    c = model.config
    empty = jnp.full((batch, c.num_kv_heads, length, c.head_dim), jnp.nan, model.dtype)
    caches = [pk.KVCache(k=empty, v=empty) for _ in range(c.num_layers)]
    rope = model.rope_tables(length)

    def step(carry, token):
        caches, counters, position = carry
        x, caches, counters = decode.decode_step(
            model, caches, token[:, None], position[:, None], rope, counters=counters, implementation=implementation
        )
        return (caches, counters, position + (position >= 0)), decode.logits(model, x, implementation)

    counters = pk.attention_counters(batch, c.num_kv_heads)
    begin = caches, counters, jnp.where(tokens[:, 0] >= 0, 0, -1)
    _, logits = jax.lax.scan(step, begin, jnp.maximum(tokens, 0).T)
    return jnp.moveaxis(logits, 0, 1)


@dataclasses.dataclass(frozen=True)
class Drift:
    """Of logits from the truth: RMS over the draws of each draw's divergence (KL) and of its largest difference."""

    kl: float
    largest: float


def drift(logits: jax.Array, truth: jax.Array) -> Drift:
    """Of logits [B, T, V]; a draw is a position of a sequence."""
    logits, truth = np.asarray(logits, np.float64), np.asarray(truth, np.float64)
    ours, true = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, truth))
    kl = (np.exp(true) * (true - ours)).sum(-1)
    largest = np.abs(logits - truth).max(-1)
    return Drift(kl=float(np.sqrt(np.mean(kl**2))), largest=float(np.sqrt(np.mean(largest**2))))


def check_drift(name: str, implementation: str, batch: int, length: int) -> None:
    """The fused path is no further from float32 than 1.5 times the plain bfloat16 path, and draws the same tokens."""
    model, tokens = draws(name, batch, length)
    truth = forced(widened(model), tokens, "xla")
    plain, fused = (drift(forced(model, tokens, how), truth) for how in ("xla", implementation))
    assert fused.kl <= 1.5 * plain.kl, (fused, plain)
    assert fused.largest <= 1.5 * plain.largest, (fused, plain)
    found = np.asarray(forced(model, tokens, implementation))
    two = np.sort(np.asarray(truth), axis=-1)[..., -2:]
    # A logit may be off by a few times the RMS of the draws' largest errors; twice that, for two of them.
    sure = two[..., 1] - two[..., 0] > 6 * plain.largest
    assert sure.mean() > 0.1
    np.testing.assert_array_equal(found.argmax(-1)[sure], np.asarray(truth).argmax(-1)[sure])


def check_bits(implementation: str, length: int) -> None:
    """Twice the same bits; and those of row 0 do not depend on what the other 15 rows of the program are."""
    model, tokens = draws("random", 16, length)
    together = np.asarray(forced(model, tokens, implementation))
    np.testing.assert_array_equal(together, np.asarray(forced(model, tokens, implementation)))
    alone = np.where(np.arange(16)[:, None] == 0, tokens, -1)  # -1: the row is not in use
    np.testing.assert_array_equal(together[0], np.asarray(forced(model, alone, implementation))[0])
    others = np.concatenate([tokens[:1], np.roll(tokens[1:], 5, axis=1)])
    np.testing.assert_array_equal(together[0], np.asarray(forced(model, others, implementation))[0])
