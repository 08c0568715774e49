"""Each lever can be left out, and is back afterwards, with no cache to clear."""

import jax
import jax.extend
import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from pallas_kernels.common import devices, levers, tuned
from pallas_kernels.common.tiles import StreamShape
from pallas_kernels.qkv import tiles as qkv_tiles
from tests.lowering import for_gpu

HOOKS = ("pipeline_loop", "prefetch_l2", "launch_dependents")


def equations(jaxpr):
    """All of a jaxpr's, those of the jaxprs within it too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, jax.extend.core.Jaxpr):
                yield from equations(inner)


def primitives() -> set[str]:
    """Those of `down`'s kernel, by name."""
    s = jax.ShapeDtypeStruct
    weight = pk.DenseWeight(rows=s((4096, 14336), jnp.bfloat16))

    def run(x, weight):
        return pk.down(x, weight, prefetch=weight, implementation="triton")

    with for_gpu("h100"):
        jaxpr = jax.make_jaxpr(run)(s((1, 14336), jnp.bfloat16), weight).jaxpr
    return {equation.primitive.name for equation in equations(jaxpr)}


def test_each_can_be_left_out():
    whole = primitives()
    for hook in HOOKS:
        assert hook in whole
        with levers.without(hook):
            assert hook not in primitives()
        assert primitives() == whole


def test_two_at_once_and_nested():
    with levers.without("prefetch_l2"), levers.without("launch_dependents", "tuned_tiles"):
        assert levers.left_out() == {"prefetch_l2", "launch_dependents", "tuned_tiles"}
    assert not levers.left_out()


def test_an_unknown_one_is_refused():
    with pytest.raises(ValueError, match="levers: expected some of pipeline_loop"), levers.without("magic"):
        pass


def test_tuned_tiles():
    device = devices.DEVICES["h200"]
    entry = tuned.load("qkv", device.key)[0]
    shape = StreamShape(**entry["shape"])
    how = dict(
        kind=qkv_tiles.Tiles, default=qkv_tiles.default, feasible=qkv_tiles.feasible, stand_ins=qkv_tiles.stand_ins
    )
    assert tuned.choose("qkv", shape, device, **how) == qkv_tiles.Tiles(**entry["tiles"])
    with levers.without("tuned_tiles"):
        assert tuned.choose("qkv", shape, device, **how) == qkv_tiles.default(shape, device)
