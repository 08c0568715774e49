"""What a model is and what it takes, from its config alone, as the command line tells it."""

import dataclasses
from collections import Counter
from typing import Any

from tokenspeed.models import memory
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.kv_dtypes import KVDtypes


def report(
    config: ModelConfig, *, dtype: str, context: int, batch: int, device: str | None, kv: KVDtypes
) -> dict[str, Any]:
    """What `inspect --json` prints; the arguments and errors are those of `memory.plan`."""
    plan = memory.plan(config, dtype=dtype, context=context, batch=batch, device=device, kv=kv)
    return dict(
        architecture=dataclasses.asdict(config),
        parameters=config.num_parameters,
        dtype=dtype,
        weights_bytes=plan.weights_bytes,
        kv_dtypes=dataclasses.asdict(kv),
        kv_bytes_per_token=config.kv_bytes_per_token(*kv.itemsizes),
        decode_bytes_per_token=round(memory.decode_bytes(config, dtype=dtype, context=context, kv=kv)),
        context=context,
        batch=batch,
        device=device,
        memory=dataclasses.asdict(plan) | dict(total_bytes=plan.total_bytes, fits=plan.fits),
    )


def text(c: ModelConfig, found: dict[str, Any]) -> str:
    """A report in a few lines."""
    windows = sorted({layer.window for layer in c.layers if layer.window is not None})
    memory, context = found["memory"], found["context"]
    stored = _counted(c)
    lines = [
        f"{c.family}: {c.num_parameters / 1e9:.3f} B parameters, {c.num_layers} layers, D {c.d_model}, F {c.d_ff}, "
        f"{c.num_heads} query and {c.num_kv_heads} kv heads of {c.head_dim}, V {c.vocab_size}",
        f"RoPE {c.rope.kind}, theta {c.rope.theta:g}; positions {c.max_positions}; "
        f"window {', '.join(map(str, windows)) or 'none'}; tied embeddings {_yes(c.tied)}; "
        f"biases qkv {_yes(c.qkv_bias)}, out {_yes(c.out_bias)}, MLP {_yes(c.mlp_bias)}",
        *([f"quantised projections: {stored}"] if stored else []),
        f"in {found['dtype']}: weights {_size(found['weights_bytes'])}, KV {_size(found['kv_bytes_per_token'])} a "
        f"token, decode reads {_size(found['decode_bytes_per_token'])} a token at context {context}",
        f"device memory for {found['batch']} x {context}: weights {_size(memory['weights_bytes'])} + "
        f"KV {_size(memory['kv_bytes'])} + workspace {_size(memory['workspace_bytes'])} = "
        f"{_size(memory['total_bytes'])}",
    ]
    if memory["available_bytes"] is not None:
        verb = "fits" if memory["fits"] else "does NOT fit"
        lines.append(f"{verb} {found['device']}: {_size(memory['available_bytes'])} to use")
    return "\n".join(lines)


def _counted(config: ModelConfig) -> str:
    """How many projections are quantised, by how."""
    if config.quantisation is None or not config.quantisation.schemes:
        return ""
    schemes = [config.quantisation.scheme_of(name) for name, *_ in config.projections()]
    counts = Counter("none" if one is None else one.described for one in schemes)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _size(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.4g} {units[0]}"
