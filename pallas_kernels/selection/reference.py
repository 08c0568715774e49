"""The XLA implementation and the oracle: a radix selection over the bits of the logits, without sorting.

What is kept is always a beginning of the order by (logit, descending; id, ascending), so its last member, as a
(logit, id), is all that has to be found. Each pass over [B, V] fixes DIGIT more of its bits, from the highest: it
measures how many logits, or how much of their mass, lie at or above each of the values that the next digit can give.
The passes are the same for every top-k and top-p, and what they add up are integers, so their order does not round.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.selection import masses

DIGIT = 4
"""Bits that a pass fixes: it measures 2**DIGIT - 1 values at once."""


def top_k_top_p(options, *, scaled, top_k, top_p):
    """As `api.top_k_top_p`."""
    del options
    vocabulary = scaled.shape[1]
    keys = _key(scaled)
    # The last one kept has the key `last`, and is one of `ties` equals that are kept; here, of all.
    last, ties = jnp.zeros_like(keys[:, :1]), jnp.full_like(keys[:, :1], vocabulary)
    if top_k is not None:
        last, ties = _top_k(keys, top_k[:, None].astype(jnp.uint32))
    if top_p is not None:
        last, ties = _top_p(keys, scaled, top_p[:, None], last, ties)
    ids = jnp.arange(vocabulary, dtype=jnp.uint32)
    before = lambda bounds: _sums([[(keys == last) & (ids < bound)] for bound in bounds])
    token, _ = _search(before, lambda _, count: count[0] < ties, (vocabulary - 1).bit_length(), last)
    return (keys > last) | ((keys == last) & (ids <= token))


def _top_k(keys, top_k):
    """The key of the last one kept, and how many of those that equal it are kept: uint32 [B, 1] both."""
    counts = lambda bounds: _sums([[keys >= bound] for bound in bounds])
    last, (above,) = _search(counts, lambda _, count: count[0] >= top_k, 32, top_k)
    return last, top_k - above


def _top_p(keys, scaled, top_p, least, ties):
    """As `_top_k`, of those above the key `least` and `ties` of those that equal it."""
    vocabulary = keys.shape[1]
    id_bits = (vocabulary - 1).bit_length()
    bits = masses.digit_bits(vocabulary)

    first = keys.max(axis=-1, keepdims=True)  # of the logits, XLA on a CPU may pass over NaN
    largest = _logit(first)

    digits = lambda logits: masses.digits(logits, largest, bits)
    mass = lambda sums: masses.mass(sums, bits)
    own = [jnp.where(keys > least, part, 0) for part in digits(scaled)]
    above_or_equal = lambda bounds: _sums([[jnp.where(keys >= bound, part, 0) for part in own] for bound in bounds])
    # No logit has key 0, so that where `least` is 0 there is nothing to add.
    equals = jnp.where(least > 0, ties, 0)
    enough = top_p * mass(masses.plus(above_or_equal([least])[0], equals, digits(_logit(least))))
    reaches = lambda bound, parts: (bound <= least) | ~(mass(parts) < enough)
    last, above = _search(above_or_equal, reaches, 32, least)
    # Where no mass is enough, because top-p or all masses are 0, the bound is above all keys.
    last = jnp.minimum(last, first)
    each = digits(_logit(last))
    more = lambda counts: [masses.plus(above, count, each) for count in counts]
    short, _ = _search(more, lambda _, parts: mass(parts) < enough, id_bits, least, digit=1)
    on = top_p < 1
    return jnp.where(on, last, least), jnp.where(on, short + 1, ties)


def _search(measure, holds, bits, like, digit=DIGIT):
    """The largest number below 2**bits of which something holds that holds of all before it, and of 0.

    Args:
        measure: of a list of numbers, uint32 as `like`: for each a list of measures, uint32 as `like`.
        holds: of a number and its measures: whether it holds; where not, it does not hold of larger ones.
        like: an array of the shape.
        digit: how many bits are found at a time, of 2**digit - 1 numbers measured. Of numbers from 2**bits on it must
            not hold either.

    Returns:
        The number, and the largest of each measure among the numbers tried of which it does not hold, or 0: where
        measures decrease, those of the next number.
    """
    rounds = -(-bits // digit)

    def search(i, carry):
        found, beyond = carry
        shift = jnp.uint32((rounds - 1 - i) * digit)
        numbers = [found + (jnp.uint32(step) << shift) for step in range(1, 2**digit)]
        for number, measures in zip(numbers, measure(numbers)):
            held = holds(number, measures)
            found = jnp.where(held, number, found)
            beyond = [jnp.maximum(old, jnp.where(held, 0, one)) for old, one in zip(beyond, measures)]
        return found, beyond

    nothing = [jnp.zeros(one.shape, one.dtype) for one in jax.eval_shape(measure, [like])[0]]
    carry = jnp.zeros_like(like), nothing
    if jax.default_backend() == "cpu":  # which compiles it in a fifth of the time; a GPU would wait between rounds
        return jax.lax.fori_loop(0, rounds, search, carry)
    for i in range(rounds):
        carry = search(i, carry)
    return carry


def _sums(columns):
    """The sum over V of each array [B, V] of a list of lists: uint32 [B, 1] in their place."""
    flat = [column.astype(jnp.uint32) for group in columns for column in group]
    # One reduction of many results: of as many reductions XLA would fuse a few at a time, and read [B, V] for each.
    add = lambda left, right: tuple(a + b for a, b in zip(left, right))
    sums = iter(jax.lax.reduce(tuple(flat), (jnp.uint32(0),) * len(flat), add, (1,)))
    return [[next(sums)[:, None] for _ in group] for group in columns]


def _key(values):
    """uint32 in the order of float32 values, more than 0; -0.0 as 0.0, NaN as the largest."""
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.uint32)
    key = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    return jnp.where(jnp.isnan(values), jnp.uint32(2**32 - 1), key)


def _logit(key):
    """The value of a key."""
    return jax.lax.bitcast_convert_type(jnp.where(key >> 31 == 1, key ^ jnp.uint32(1 << 31), ~key), jnp.float32)
