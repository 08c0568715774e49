"""The textbook LLaMA on the tensors of a checkpoint, in numpy, all positions at once, in any precision."""

import numpy as np

from tokenspeed.models.config import ModelConfig
from tokenspeed.models.rope import tables
from tokenspeed.weights import shards


def tensors(folder) -> dict[str, np.ndarray]:
    with shards.opened(folder) as found:
        return {name: np.asarray(stored.read(), np.float32) for name, stored in found.items()}


def logits(weights: dict[str, np.ndarray], config: ModelConfig, tokens: np.ndarray, dtype=np.float32) -> np.ndarray:
    """float32 [B, T, V]; weights, and the activations between the operations, are rounded to `dtype`."""

    def cast(x):
        return np.asarray(x, np.float32).astype(dtype).astype(np.float32)

    def times(name, x):
        y = x @ cast(weights[f"{name}.weight"]).T
        return cast(y + cast(weights[f"{name}.bias"]) if f"{name}.bias" in weights else y)

    def norm(name, x):
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + config.eps)
        return cast(x / scale * cast(weights[f"{name}.weight"]))

    def turn(x):
        a, b = np.split(x, 2, axis=-1)
        return cast(np.concatenate([a * cos - b * sin, b * cos + a * sin], -1))

    batch, length = tokens.shape
    cos, sin = (np.asarray(t)[:, None] for t in tables(config.rope, config.head_dim, length))
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    x = cast(weights["model.embed_tokens.weight"])[tokens]
    for i, kind in enumerate(config.layers):
        layer = f"model.layers.{i}"
        h = norm(f"{layer}.input_layernorm", x)
        heads = [times(f"{layer}.self_attn.{n}_proj", h).reshape(batch, length, -1, config.head_dim) for n in "qkv"]
        q, k, v = turn(heads[0]), turn(heads[1]), heads[2]
        k, v = (np.repeat(z, config.num_heads // config.num_kv_heads, axis=2) for z in (k, v))
        seen = (distance >= 0) & (distance < (kind.window or length))
        scores = np.einsum("btnh,bsnh->bnts", q, k, optimize=True) * config.head_dim**-0.5
        scores = np.where(seen, scores, -np.inf)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        weight = cast(weight / weight.sum(-1, keepdims=True))
        mixed = cast(np.einsum("bnts,bsnh->btnh", weight, v, optimize=True))
        x = cast(x + times(f"{layer}.self_attn.o_proj", mixed.reshape(batch, length, -1)))
        h = norm(f"{layer}.post_attention_layernorm", x)
        gate, up = times(f"{layer}.mlp.gate_proj", h), times(f"{layer}.mlp.up_proj", h)
        x = cast(x + times(f"{layer}.mlp.down_proj", cast(gate / (1 + np.exp(-gate)) * up)))
    head = "model.embed_tokens" if config.tied else "lm_head"
    return norm("model.norm", x) @ cast(weights[f"{head}.weight"]).T
