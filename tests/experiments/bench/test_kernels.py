"""Namespaces in the place of pallas_kernels: what is bound reaches the op, all else is as it was."""

import dataclasses
import functools
import re

import jax
import pytest

import pallas_kernels as pk
from experiments.bench import kernels
from tests.pallas_kernels import lowering

WIDTH = 64
ARGUMENTS = dict(
    x=jax.ShapeDtypeStruct((1, 160), "bfloat16"),
    weight=pk.DenseWeight(values=jax.ShapeDtypeStruct((WIDTH, 160), "bfloat16"), bias=None),
    residual=jax.ShapeDtypeStruct((1, WIDTH), "float32"),
    norm=jax.ShapeDtypeStruct((WIDTH,), "bfloat16"),
)
"""Of `out` with a deferred norm, whose squares come in a part for each of its tiles."""


@pytest.fixture
def default(device):
    return pk.OPS["out"].default_tiles(pk.OPS["out"].shape(**ARGUMENTS), device)


def block_of(namespace, op="out"):
    """The outputs of a tile that the op was called with."""
    call = functools.partial(getattr(namespace, op), implementation="interpret")
    deferred, _ = jax.eval_shape(lambda arguments: call(**arguments), ARGUMENTS)
    return WIDTH // deferred.squares.shape[1]


def test_tiles_are_those_that_are_bound(default):
    for block_n in (2, 8):
        namespace = kernels.with_tiles(dict(out=dataclasses.replace(default, block_n=block_n)))
        assert block_of(namespace) == block_n
        assert block_of(namespace, "down") == block_of(pk, "down"), "one that is not named chooses by itself"


def test_default_tiles_are_the_heuristics(default, device):
    namespace = kernels.with_default_tiles(device)
    assert block_of(namespace) == default.block_n
    assert set(vars(namespace)) == {*kernels.STEP_OPS, "fixed_point_bits"}


def prefetched_bytes(namespace, op):
    """What every program of the kernel asks for early; None where none asks."""
    following = pk.DenseWeight(values=jax.ShapeDtypeStruct((640, 640), "bfloat16"), bias=None)
    plain = {name: value for name, value in ARGUMENTS.items() if name != "norm"}

    def call(arguments, following):
        return getattr(namespace, op)(**arguments, prefetch=following, implementation="triton")

    with lowering.for_gpu("h200"):
        found = re.findall(r"num_bytes=(\d+)", str(jax.make_jaxpr(call)(plain, following)))
    return int(found[0]) if found else None


@pytest.mark.parametrize("op", ["out", "down"])
def test_kernels_prefetch_as_many_bytes_as_asked_for(op):
    asked = [prefetched_bytes(kernels.with_tiles({}, size), op) for size in (0, 4096, 8192)]
    assert asked[0] is None and 0 < asked[1] < asked[2]
    assert prefetched_bytes(kernels.with_tiles({}), op) == prefetched_bytes(pk, op) > asked[2]


def test_what_is_replaced_stands_in_and_the_rest_is_the_package():
    def out():
        pass

    namespace = kernels.replaced(out=out)
    assert namespace.out is out
    assert all(getattr(namespace, name) is getattr(pk, name) for name in kernels.STEP_OPS if name != "out")
