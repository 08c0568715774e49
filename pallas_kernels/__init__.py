"""Fused kernels of a LLaMA decode step, for any JAX model: `help()` on each gives shapes, dtypes and sources."""

from pallas_kernels.attention.api import attention, attention_counters
from pallas_kernels.common.kv_cache import KVCache
from pallas_kernels.common.weighted import Weighted
from pallas_kernels.common.weights import (
    DenseWeight,
    pack_gate_up,
    pack_linear,
    pack_qkv,
    unpack_gate_up,
    unpack_linear,
    unpack_qkv,
)
from pallas_kernels.gate_up.api import gate_up
from pallas_kernels.head.api import head, head_logits
from pallas_kernels.projection.api import down, out
from pallas_kernels.qkv.api import qkv

__all__ = [
    "DenseWeight",
    "KVCache",
    "Weighted",
    "attention",
    "attention_counters",
    "down",
    "gate_up",
    "head",
    "head_logits",
    "out",
    "pack_gate_up",
    "pack_linear",
    "pack_qkv",
    "qkv",
    "unpack_gate_up",
    "unpack_linear",
    "unpack_qkv",
]
