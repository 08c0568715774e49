"""The layers of a model as the decode step runs them, without the head, chained on the device and timed."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import pallas_kernels as pk
from experiments.bench import cases, kernels
from experiments.bench.models import DTYPES, config_of
from experiments.bench.recorded import LAYER_OPS
from experiments.bench.workload import Decoder, Workload
from pallas_kernels import Device
from tokenspeed.engine import decode
from tokenspeed.engine.generation import Generation, Weights
from tokenspeed.measure.timing import Timing, time_calls

STEPS = 40
"""Passes over all layers in one timed call: the host's share of starting a call is then below 1%."""


class Layers:
    """The layers of a model on the device, and the time that one of them takes.

    Every pass is a decode step at the last position of the context; what it adds to a layer's time is an embedding.
    """

    def __init__(self, model: str, *, dtype: str = "bf16", context: int = 1024, batch: int = 1, page_size: int = 0):
        self.model, self.dtype, self.context, self.batch, self.page_size = model, dtype, context, batch, page_size
        decoder = Decoder(config_of(model), DTYPES[dtype], 0)
        self.weights = decoder.weights
        workload = Workload(decoder, batch=batch, context=context - 1, steps=1, page_size=page_size)
        self.rope, self.page_table, self.state = workload.rope, workload.page_table, workload.fresh(0)
        self.cases = {
            op: cases.make(op, model, rows=batch, context=context, dtype=dtype, page_size=page_size)
            for op in LAYER_OPS
        }  # fmt: skip

    @property
    def count(self) -> int:
        """How many layers."""
        return len(self.state.caches)

    @property
    def bytes(self) -> int:
        """That one layer must move."""
        return sum(case.cost.bytes for case in self.cases.values())

    def chosen_tiles(self, device: Device) -> dict[str, Any]:
        """By op, the tiles that the kernels choose by themselves on that device."""
        return {op: case.known.chosen_tiles(case.shape, device) for op, case in self.cases.items()}

    def launches(self, tiles: Mapping[str, Any]) -> int:
        """Of a layer with these tiles: one an op, and one more where it splits the reduction axis."""
        return len(tiles) + sum(op != "attention" and tile.splits > 1 for op, tile in tiles.items())

    def result(self, implementation: str, tiles: Mapping[str, Any] | None = None, prefetch: int = 0) -> jax.Array:
        """The residual stream after one pass, before the last norm's factor; the state is left as it is."""

        @jax.jit
        def once(weights, state, rope, page_table):
            namespace = kernels.with_tiles(tiles or {}, prefetch)
            x = _step(weights, state, rope, page_table, implementation, namespace)[0]
            return pk.to_floats(x.x) if isinstance(x, pk.DeferredNorm) else x

        return once(self.weights, self.state, self.rope, self.page_table)

    def compiled(self, implementation: str, tiles: Mapping[str, Any] | None = None, prefetch: int = 0) -> Callable:
        """The program that `time` takes; several may be compiled at once."""
        namespace = kernels.with_tiles(tiles or {}, prefetch)
        run = functools.partial(_passes, implementation=implementation, namespace=namespace)
        return jax.jit(run, donate_argnums=1).lower(self.weights, self.state, self.rope, self.page_table).compile()

    def time(self, program: Callable, samples: int = 7) -> Timing:
        """Of one layer."""

        def call():
            self.state = program(self.weights, self.state, self.rope, self.page_table)
            return self.state.token

        return time_calls(call, calls=STEPS * self.count, samples=samples)


def _step(weights: Weights, state: Generation, rope, page_table, implementation, namespace):
    return decode.decode_step(
        weights.model, state.caches, state.token[:, None], state.position[:, None], rope, page_table=page_table,
        counters=state.counters, implementation=implementation, kernels=namespace,
    )  # fmt: skip


def _passes(weights: Weights, state: Generation, rope, page_table, *, implementation, namespace) -> Generation:
    """`STEPS` passes, each of which needs the one before: its token is the same, but only if that came to an end."""

    def step(_, state):
        x, caches, counters = _step(weights, state, rope, page_table, implementation, namespace)
        last = x.squares if isinstance(x, pk.DeferredNorm) else x
        token = jnp.where(jnp.isfinite(last[:, 0]), state.token, 0)
        return dataclasses.replace(state, caches=caches, counters=counters, token=token)

    return lax.fori_loop(0, STEPS, step, state)


def relative_difference(x: jax.Array, y: jax.Array) -> float:
    """RMS of x - y over RMS of y."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return float(jnp.sqrt(jnp.mean((x - y) ** 2) / jnp.mean(y**2)))
