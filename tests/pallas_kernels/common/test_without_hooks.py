"""Each hook can be left out, and is back afterwards, with no cache to clear."""

import jax
import jax.extend
import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from tests.pallas_kernels.lowering import for_gpu


def equations(jaxpr):
    """All of a jaxpr's, those of the jaxprs within it too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, jax.extend.core.Jaxpr):
                yield from equations(inner)


def primitives() -> set[str]:
    """Those of `down`'s kernels, by name: of a dense weight, and of one in integers with x as floats and without."""
    s = jax.ShapeDtypeStruct
    dense = pk.DenseWeight(values=s((4096, 14336), jnp.bfloat16))
    integers = pk.QuantisedWeight(values=s((4096, 14336), jnp.int8), scales=s((4096, 112), jnp.bfloat16), group=128)

    fixed = pk.FixedPointRows(
        numbers=s((1, 2, 14336), jnp.int8), runs=s((1, 896, 2), jnp.int32), dtype=jnp.dtype(jnp.bfloat16)
    )

    def run(x, fixed, *weights):
        calls = [(x, weights[0]), (x, weights[1]), (fixed, weights[1])]
        return [pk.down(x, weight, prefetch=weights[0], implementation="triton") for x, weight in calls]

    with for_gpu("h100"):
        jaxpr = jax.make_jaxpr(run)(s((1, 14336), jnp.bfloat16), fixed, dense, integers).jaxpr
    return {equation.primitive.name for equation in equations(jaxpr)}


@pytest.mark.parametrize("hook", pk.HOOKS)
def test_each_can_be_left_out(hook):
    whole = primitives()
    assert hook in whole
    with pk.without_hooks(hook):
        assert primitives() & set(pk.HOOKS) == set(pk.HOOKS) - {hook}
    assert primitives() == whole


def test_two_at_once_and_nested():
    with pk.without_hooks("prefetch_l2"), pk.without_hooks("launch_dependents", "pipeline_loop"):
        assert primitives() & set(pk.HOOKS) == {"multiply_add", "load_words", "load_near", "load_vectors"}
    assert set(pk.HOOKS) <= primitives()


def test_an_unknown_one_is_refused():
    with pytest.raises(ValueError, match="hooks: expected some of pipeline_loop"), pk.without_hooks("magic"):
        pass
