"""Checkpoints with quantised projections: which entries have those in place of weights, and how they are read."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import QuantisedWeight, pack_int4, quantise
from tokenspeed.messages import listed
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.quantisation import HEAD, Scheme
from tokenspeed.weights import quantised
from tokenspeed.weights.entries import Entry, Part, entries
from tokenspeed.weights.shards import CheckpointError, Stored


@dataclasses.dataclass(frozen=True)
class Quantised:
    """A quantised projection and the tensors that it is made of.

    Attributes:
        path: of the module, which it replaces. scheme: of storage, the same for all of its modules.
        modules: (name in the checkpoint, outputs, inputs) of those that are packed together.
        dense: the entry of the weight that it is in place of; its `join` says how outputs are ordered.
    """

    path: tuple[str | int, ...]
    scheme: Scheme
    modules: tuple[tuple[str, int, int], ...]
    dense: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, as the kernels see it."""
        dense = (jax.ShapeDtypeStruct(part.shape, jnp.float32) for part in self.dense.parts)
        return jax.eval_shape(self.dense.join, *dense).shape

    @property
    def by_module(self) -> list[list[Part]]:
        return [
            [
                Part(f"{name}.{tensor.suffix}", tensor.shape, tensor.dtypes)
                for tensor in quantised.tensors_of(self.scheme, *sizes)
            ]
            for name, *sizes in self.modules
        ]

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for parts in self.by_module for part in parts)


def stored(config: ModelConfig) -> list[Entry | Quantised]:
    """The entries of a checkpoint of that config, with those that are quantised in place of their weights.

    Raises:
        CheckpointError: projections that are packed together are not quantised alike, or a scheme does not fit them.
    """
    found: list[Entry | Quantised] = list(entries(config))
    if config.quantisation is None:
        return found
    sizes = {name: (outputs, inputs) for name, outputs, inputs in config.projections()}
    for number, entry in enumerate(found):
        assert isinstance(entry, Entry)
        names = [part.name.removesuffix(".weight") for part in entry.parts]
        if names[0] not in sizes or not entry.parts[0].name.endswith(".weight"):
            continue
        schemes = [config.quantisation.scheme_of(name) for name in names]
        if len(set(schemes)) > 1:
            raise CheckpointError(f"{listed(names)}: expected them to be quantised alike, since they are one product")
        if (scheme := schemes[0]) is not None:
            for name in names:
                quantised.check(name, scheme, *sizes[name])
            modules = tuple((name, *sizes[name]) for name in names)
            found[number] = Quantised(entry.path[:-1], scheme, modules, entry)
    return found


def read(entry: Quantised, tensors: dict[str, Stored], dtype: Any) -> QuantisedWeight:
    """A quantised projection, on the device.

    Raises:
        CheckpointError: it holds what is not supported, or NaN.
    """
    modules = []
    for (name, *_), parts in zip(entry.modules, entry.by_module, strict=True):
        found = [tensors[part.name].read() for part in parts]
        quantised.check_values(name, entry.scheme, found)
        modules.append([jax.device_put(one) for one in found])
    sizes = tuple((outputs, inputs) for _, outputs, inputs in entry.modules)
    weight, finite = _packed(modules, _order(entry), entry.scheme, sizes, jnp.dtype(dtype))
    if not finite:  # the kernels would take NaN for a number
        names = listed(name for name, *_ in entry.modules)
        raise CheckpointError(f"{names}: expected finite numbers in fp8, got NaN")
    return weight


def tied_head(config: ModelConfig, table: jax.Array) -> QuantisedWeight | None:
    """The head of a tied model that reads a quantised copy of the embedding table [V, D]; None where it reads that."""
    if not (config.tied and config.has_own_head):
        return None
    assert config.quantisation is not None
    scheme = config.quantisation.scheme_of(HEAD)
    if scheme is None:
        raise CheckpointError(f"{HEAD}: expected a scheme, since the head of a tied model is to be quantised")
    return _rounded(table, scheme)


@functools.partial(jax.jit, static_argnames="scheme")
def _rounded(table, scheme):
    return quantise(
        table, scheme.format, group=scheme.group, symmetric=not scheme.zeros, scale_dtype=table.dtype, dtype=table.dtype
    )


def _order(entry: Quantised) -> jax.Array:
    """Which output of all modules is where: int32 [O] or [O, 2]."""
    ends = np.cumsum([outputs for _, outputs, _ in entry.modules])
    rows = [
        jnp.arange(end - outputs, end, dtype=jnp.float32)[:, None]  # exact: there are fewer than 2^24
        for end, (_, outputs, _) in zip(ends, entry.modules, strict=True)
    ]
    return entry.dense.join(*rows)[..., 0].astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("scheme", "sizes", "dtype"))
def _packed(modules, order, scheme, sizes, dtype):
    found = [quantised.decoded(scheme, tensors, *size) for tensors, size in zip(modules, sizes, strict=True)]
    values, scales = (jnp.concatenate([one[i] for one in found])[order] for i in (0, 1))
    zeros = jnp.concatenate([one[2] for one in found])[order] if scheme.zeros else None
    values = pack_int4(values) if scheme.format == "int4" else values
    finite = ~jnp.isnan(values).any() if scheme.format == "fp8" else True
    return QuantisedWeight(values=values, scales=scales, zeros=zeros, group=scheme.group, dtype=dtype), finite
