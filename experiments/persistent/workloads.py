"""What is streamed: the layers of a model, by the bytes of their weights."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.bench.models import config_of
from experiments.persistent import kernel
from experiments.persistent.consumer import RESULTS
from experiments.persistent.stages import STRUCTURES, Stage, chunk_counts, weight_bytes
from experiments.persistent.variants import Variant

BITS = dict(bf16=16, int8=8, int4=4)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A name of configs/models, and what its weights are stored in (scales are not counted)."""

    model: str
    weights: str

    @property
    def layers(self) -> int:
        return config_of(self.model).num_layers

    @property
    def bytes(self) -> int:
        """Of all layers' weights."""
        return self.layers * sum(weight_bytes(self.model, BITS[self.weights]).values())

    def stages(self, variant: Variant) -> tuple[Stage, ...]:
        design = variant.design
        sizes = weight_bytes(self.model, BITS[self.weights])
        return STRUCTURES[variant.structure](chunk_counts(sizes, design.programs, design.kib * 1024))

    def shape(self, variant: Variant) -> tuple[int, ...]:
        """Of the weights as that variant streams them: int32 [chunks of all programs, rows, words]."""
        return kernel.weights_shape(variant.design, self.stages(variant), self.layers)

    def arguments(self, variant: Variant) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Of a launch: what it adds its results to, and the weights."""
        given = jax.ShapeDtypeStruct((variant.design.programs, RESULTS), jnp.int32)
        return given, jax.ShapeDtypeStruct(self.shape(variant), jnp.int32)

    def launch(self, variant: Variant):
        """As `kernel.build` has it."""
        return kernel.build(variant.design, self.stages(variant), self.layers)


WORKLOADS = {
    "1b-bf16": Workload("llama-3.2-1b", "bf16"),
    "1b-int8": Workload("llama-3.2-1b", "int8"),
    "1b-int4": Workload("llama-3.2-1b", "int4"),
    "8b-int4": Workload("llama-3.1-8b", "int4"),
}


def program_chunks(weights, programs: int, apart: bool):
    """int32 [chunks of a program, programs, rows, words] of the weights, in the order in which each streams them."""
    if apart:
        return weights.reshape(programs, -1, *weights.shape[1:]).swapaxes(0, 1)
    return weights.reshape(-1, programs, *weights.shape[1:])
