"""What makes a decode step fast, one thing at a time: how each is left out, and what it should give by arithmetic."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

import pallas_kernels as pk
from experiments.ablation import unfused
from experiments.bench import cases, kernels
from experiments.bench.compiling import LAUNCHED_ONE_BY_ONE
from experiments.bench.models import DTYPES
from experiments.bench.options import check_name
from experiments.bench.record import Record
from experiments.bench.recorded import OPS
from pallas_kernels import Device
from tokenspeed.models.config import ModelConfig

FUSION, MEMORY, SCHEDULING = "operator fusion", "memory access", "parallel scheduling"
LAUNCH_US = 2.5
"""What a small kernel of XLA's costs in a command buffer: 1.2 to 1.5 us of its own, the rest until the next begins."""
RAMP_US = 0.9
"""From one kernel's last load to the next one's first: a latency of memory to drain, and one to fill."""
HOST_STARTS_US = 0.8
"""More a launch, where the host starts each instead of a command buffer."""
HOST_CALL_US = 100.0
"""A call of a small compiled program and the copy of its result to the host."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The decode step: its model, batch, context and dtype, and the read ceiling in GB/s."""

    model: str
    config: ModelConfig
    batch: int
    context: int
    dtype: str
    ceiling_gbps: float
    device: Device
    sweep: Sequence[Record] = ()
    """Records of a sweep of this model on this device, where there are any."""

    @property
    def itemsize(self) -> int:
        return jnp.dtype(DTYPES[self.dtype]).itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What leaving it out should add to a step: bytes moved, launches, and microseconds; None is not known."""

    bytes: int = 0
    launches: int = 0
    us: float | None = None


def _launches(count: Callable[[Step], int], moved: Callable[[Step], int] = lambda step: 0):
    """The prediction of more launches that move more bytes."""

    def predict(step: Step) -> Prediction:
        launches, size = count(step), moved(step)
        return Prediction(bytes=size, launches=launches, us=launches * LAUNCH_US + size / step.ceiling_gbps / 1e3)

    return predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """One thing that the step does, and the step without it.

    Attributes:
        name: of the thing. strategy: what kind of thing it is.
        without: what the step does instead. predicted: what that should cost.
        tried: not a part of the shipped step but tried on top of it; then `without` says what it is, and what is
            measured is the step with it.
        implementation, deferred_norm, kernels: of the step that is measured, see `decode_step`; `kernels` makes the
            namespace for a device.
        hooks: left out of the kernels, see `pallas_kernels.without_hooks`.
        compiler_options: of XLA.
        host_loop: whether the host starts every step and takes its token.
    """

    name: str
    strategy: str
    without: str
    predicted: Callable[[Step], Prediction]
    tried: bool = False
    implementation: str = "triton"
    deferred_norm: bool | None = None
    kernels: Callable[[Device], Any] = lambda device: pk
    hooks: tuple[str, ...] = ()
    compiler_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    host_loop: bool = False

    def applied(self) -> contextlib.AbstractContextManager:
        """What is traced within it does without the hooks."""
        return pk.without_hooks(*self.hooks)


def _layers(step: Step) -> int:
    return step.config.num_layers


def _swept(step: Step, kept: Callable[[Any, Any], bool]) -> Prediction:
    """By the sweep: the fastest tile of those kept, against the fastest of all, op by op."""
    total = 0.0
    for op in OPS:
        case = cases.make(op, step.model, rows=step.batch, context=step.context, dtype=step.dtype)
        timed = [
            found for found in step.sweep
            if found["kind"] == "tile" and found["status"] == "ok"
            and all(found[name] == value for name, value in case.fields().items())
        ]  # fmt: skip
        left = [found["median_us"] for found in timed if kept(case, case.tiles(found["tiles"]))]
        if not left:
            return Prediction()
        times = 1 if op == "head" else _layers(step)
        total += times * (min(left) - min(found["median_us"] for found in timed))
    return Prediction(us=total)


def _by_default_tiles(step: Step) -> Prediction:
    return _swept(step, lambda case, tiles: tiles == case.known.default_tiles(case.shape, step.device))


def _without_ring(step: Step) -> Prediction:
    return _swept(step, lambda case, tiles: tiles.num_stages == 1 or case.op == "attention")


def _activations(width: Callable[[ModelConfig], int]) -> Callable[[Step], int]:
    """Written and read again in every layer, `width` values a row."""
    return lambda step: 2 * _layers(step) * step.batch * width(step.config) * step.itemsize


def _cache_twice(step: Step) -> int:
    """XLA's attention turns keys and values that lie in the cache into masked copies before it multiplies."""
    c = step.config
    return 4 * _layers(step) * step.batch * step.context * c.num_kv_heads * c.head_dim * step.itemsize


SHIPPED = Ablation(name="", strategy="", without="", predicted=lambda step: Prediction())
"""Nothing left out: the step as it is."""
ABLATIONS = (
    Ablation(
        name="control",
        strategy="control",
        without="the same step, compiled again",
        predicted=lambda step: Prediction(us=0.0),
    ),
    Ablation(
        name="norm + rotation + cache write in qkv",
        strategy=FUSION,
        without="norm, product, rotation and write apart",
        predicted=_launches(
            lambda step: 3 * _layers(step),
            _activations(lambda c: c.d_model + 2 * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim),
        ),
        kernels=lambda device: kernels.replaced(qkv=unfused.qkv),
    ),
    Ablation(
        name="norm + activation in gate_up",
        strategy=FUSION,
        without="norm, product and gated activation apart",
        predicted=_launches(lambda step: 2 * _layers(step), _activations(lambda c: c.d_model + 2 * c.d_ff)),
        kernels=lambda device: kernels.replaced(gate_up=unfused.gate_up),
    ),
    Ablation(
        name="residual adds in out and down",
        strategy=FUSION,
        without="both sums apart",
        predicted=_launches(lambda step: 2 * _layers(step), _activations(lambda c: 2 * c.d_model)),
        kernels=lambda device: kernels.replaced(out=unfused.out, down=unfused.down),
    ),
    Ablation(
        name="argmax in the head",
        strategy=FUSION,
        without="all logits to memory, then argmax",
        predicted=_launches(lambda step: 1, lambda step: 8 * step.batch * step.config.vocab_size),
        kernels=lambda device: kernels.replaced(head=unfused.head),
    ),
    Ablation(
        name="attention in one launch",
        strategy=FUSION,
        without="XLA's attention",
        predicted=_launches(lambda step: 3 * _layers(step), _cache_twice),
        kernels=lambda device: kernels.replaced(attention=unfused.attention),
    ),
    Ablation(
        name="all kernels",
        strategy=FUSION,
        without="XLA alone, the same weights and layouts",
        predicted=lambda step: Prediction(),
        implementation="xla",
    ),
    Ablation(
        name="deferred norm",
        strategy=FUSION,
        without="all of a norm where its rows are used",
        predicted=lambda step: Prediction(),
        deferred_norm=False,
    ),
    Ablation(
        name="tuned tiles",
        strategy=MEMORY,
        without="the heuristics' tiles",
        predicted=_by_default_tiles,
        kernels=kernels.with_default_tiles,
    ),
    Ablation(
        name="ring in shared memory",
        strategy=MEMORY,
        without="the same tiles, weights loaded straight into registers",
        predicted=_without_ring,
        hooks=("pipeline_loop",),
    ),
    Ablation(
        name="product and sum in one instruction",
        strategy=MEMORY,
        without="two",
        predicted=lambda step: Prediction(),
        hooks=("multiply_add",),
    ),
    Ablation(
        name="dependent launch",
        strategy=SCHEDULING,
        without="the next kernel starts when this one has ended",
        predicted=lambda step: Prediction(us=(5 * _layers(step) + 2) * RAMP_US),
        hooks=("launch_dependents",),
    ),
    Ablation(
        name="next weights into L2",
        strategy=SCHEDULING,
        without="no prefetch",
        predicted=lambda step: Prediction(us=5 * _layers(step) * RAMP_US / 2),
        hooks=("prefetch_l2",),
    ),
    Ablation(
        name="dependent launch + next weights into L2",
        strategy=SCHEDULING,
        without="neither",
        predicted=lambda step: Prediction(us=(5 * _layers(step) + 2) * RAMP_US * 1.5),
        hooks=("launch_dependents", "prefetch_l2"),
    ),
    Ablation(
        name="command buffers",
        strategy=SCHEDULING,
        without="the host starts every kernel",
        predicted=lambda step: Prediction(us=(5 * _layers(step) + 8) * HOST_STARTS_US),
        compiler_options=LAUNCHED_ONE_BY_ONE,
    ),
    Ablation(
        name="loop on the device",
        strategy=SCHEDULING,
        without="the host starts every step and takes its token",
        predicted=lambda step: Prediction(us=HOST_CALL_US),
        host_loop=True,
    ),
    Ablation(
        name="while loop in the command buffer",
        strategy=SCHEDULING,
        without="a graph's conditional node repeats the step, not the host",
        predicted=lambda step: Prediction(us=-2 * HOST_STARTS_US),
        tried=True,
        compiler_options=dict(xla_gpu_enable_command_buffer="FUSION,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,WHILE"),
    ),
)


def named(names: Sequence[str]) -> list[Ablation]:
    """The shipped step and the ablations of these names; a UsageError where there is none of a name."""
    for name in names:
        check_name("ablations", name, [one.name for one in ABLATIONS])
    return [SHIPPED, *(one for one in ABLATIONS if one.name in names)]
