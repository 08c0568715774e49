"""Fused kernels of a LLaMA decode step, for any JAX model. Everything public is here; `help()` on each says the rest.

The ops, each one launch (two where tiles split the reduction axis), and what they take and return:
    qkv, attention, out, gate_up, down, head, head_logits, and rope_and_cache for a QKV product from elsewhere;
    top_k_top_p, of sampling
    DenseWeight, pack_* and unpack_*, QuantisedWeight, quantise, dequantise, FORMATS, ROUNDED_ACTIVATIONS,
    ACTIVATION_RUN, Weight, KVCache, KV_FORMATS, DeferredNorm, FixedPointRows, attention_counters
How an op runs:
    resolve_implementation, IMPLEMENTATIONS, DTYPES
What is known of an op: its tiles, whether a device can run them, which are chosen, what a call costs at least:
    OPS, Op, Tiles, AttentionTiles, StreamShape, AttentionShape, Verdict, Cost, Device, DEVICES, find_device,
    current_device, fixed_point_bits, makes_fixed_point
The same arithmetic in plain JAX, for prefill, training and references:
    project, rms_norm, activate, ACTIVATIONS, rotate, defer_norm, finish_norm, to_fixed_point, to_floats
For kernels of your own, what the Triton backend cannot say in public terms, and one way to launch:
    launch, pipeline_loop, multiply_add, prefetch_l2, launch_dependents, load_words, load_near, load_vectors,
    without_hooks, HOOKS
"""

from pallas_kernels.attention.api import attention, attention_counters
from pallas_kernels.attention.tiles import AttentionShape, AttentionTiles
from pallas_kernels.common.arithmetic import ACTIVATIONS, activate, project, rms_norm, rotate
from pallas_kernels.common.checks import DTYPES
from pallas_kernels.common.choose_tiles import current_device
from pallas_kernels.common.cost import Cost
from pallas_kernels.common.deferred_norm import DeferredNorm, defer_norm, finish_norm
from pallas_kernels.common.devices import DEVICES, Device
from pallas_kernels.common.devices import find as find_device
from pallas_kernels.common.eight_bits import KV_FORMATS
from pallas_kernels.common.fixed_point import FixedPointRows, to_fixed_point, to_floats
from pallas_kernels.common.hooks import (
    HOOKS,
    launch_dependents,
    load_near,
    load_vectors,
    load_words,
    multiply_add,
    pipeline_loop,
    prefetch_l2,
    without_hooks,
)
from pallas_kernels.common.implementation import IMPLEMENTATIONS
from pallas_kernels.common.implementation import resolve as resolve_implementation
from pallas_kernels.common.kv_cache import KVCache
from pallas_kernels.common.launch import launch
from pallas_kernels.common.quantised import (
    FORMATS,
    ROUNDED_ACTIVATIONS,
    QuantisedWeight,
    dequantise,
    pack_int4,
    quantise,
    unpack_int4,
)
from pallas_kernels.common.quantised import RUN as ACTIVATION_RUN
from pallas_kernels.common.stream_tiles import StreamShape, Tiles
from pallas_kernels.common.tile_space import Verdict
from pallas_kernels.common.weights import (
    DenseWeight,
    Weight,
    pack_gate_up,
    pack_linear,
    pack_qkv,
    unpack_gate_up,
    unpack_linear,
    unpack_qkv,
)
from pallas_kernels.gate_up.api import gate_up
from pallas_kernels.head.api import head, head_logits
from pallas_kernels.ops import OPS, Op, fixed_point_bits, makes_fixed_point
from pallas_kernels.projection.api import down, out
from pallas_kernels.qkv.api import qkv
from pallas_kernels.rope_and_cache.api import rope_and_cache
from pallas_kernels.selection.api import top_k_top_p

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_RUN",
    "DEVICES",
    "DTYPES",
    "FORMATS",
    "HOOKS",
    "IMPLEMENTATIONS",
    "KV_FORMATS",
    "OPS",
    "ROUNDED_ACTIVATIONS",
    "AttentionShape",
    "AttentionTiles",
    "Cost",
    "DeferredNorm",
    "DenseWeight",
    "Device",
    "FixedPointRows",
    "KVCache",
    "Op",
    "QuantisedWeight",
    "StreamShape",
    "Tiles",
    "Verdict",
    "Weight",
    "activate",
    "attention",
    "attention_counters",
    "current_device",
    "defer_norm",
    "dequantise",
    "down",
    "find_device",
    "finish_norm",
    "fixed_point_bits",
    "gate_up",
    "head",
    "head_logits",
    "launch",
    "launch_dependents",
    "load_near",
    "load_vectors",
    "load_words",
    "makes_fixed_point",
    "multiply_add",
    "out",
    "pack_gate_up",
    "pack_int4",
    "pack_linear",
    "pack_qkv",
    "pipeline_loop",
    "prefetch_l2",
    "project",
    "qkv",
    "quantise",
    "resolve_implementation",
    "rms_norm",
    "rope_and_cache",
    "rotate",
    "to_fixed_point",
    "to_floats",
    "top_k_top_p",
    "unpack_gate_up",
    "unpack_int4",
    "unpack_linear",
    "unpack_qkv",
    "without_hooks",
]
