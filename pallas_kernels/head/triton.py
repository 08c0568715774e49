"""The Triton kernels of the head: stream the vocabulary; keep each block's best token, then the best of those."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.common import fixed_point
from pallas_kernels.common.arithmetic import cap
from pallas_kernels.common.blocks import Span, gather, load, scatter
from pallas_kernels.common.launch import launch
from pallas_kernels.common.prenorm import Norm, prenorm
from pallas_kernels.common.stream import Stream, blocks_of, programs_of
from pallas_kernels.common.weight_block import streamed, weight_refs

NO_TOKEN = 2**31 - 1
LARGEST = float(jnp.finfo(jnp.float32).max)
ARGMAX_BLOCK, ARGMAX_WARPS = 16384, 32
"""All that the blocks of a vocabulary of 128k leave, in one go: 3 us a step less than two blocks of 8 warps."""


def head_logits(options, *, x, norm, weight):
    """As `api.head_logits`."""
    shape = options.shape

    def finish(block, rows, mask, columns, logits, y_ref):
        scatter(y_ref, rows[:, None], columns[None, :], value=logits, mask=mask, interpret=options.interpret)

    outputs = [jax.ShapeDtypeStruct((shape.rows, shape.outputs), jnp.float32)]
    return _vocabulary(options, "head_logits", finish, outputs, x, norm, weight)[0]


def head(options, *, x, norm, weight):
    """As `api.head`."""
    shape = options.shape
    blocks = blocks_of(shape, options.tiles)

    def finish(block, rows, mask, columns, logits, value_ref, token_ref):
        token, value = _best(logits, columns[None, :], mask)
        for ref, best in ((value_ref, value), (token_ref, token)):
            scatter(ref, rows, block.index, value=best, mask=rows < shape.rows, interpret=options.interpret)

    outputs = [jax.ShapeDtypeStruct((shape.rows, blocks), dtype) for dtype in (jnp.float32, jnp.int32)]
    values, tokens = _vocabulary(options, "head", finish, outputs, x, norm, weight)
    return _argmax(values, tokens, interpret=options.interpret)


def _rank(logits):
    """What logits are compared by: themselves, but NaN above infinity."""
    return jnp.where(logits != logits, jnp.inf, jnp.minimum(logits, LARGEST))


def _best(logits, tokens, mask):
    """Per row the token of the largest logit, the lowest among equals, and the logit; NaN counts as the largest."""
    keys = jnp.where(mask, _rank(logits), -jnp.inf)
    best = jnp.max(keys, axis=1)
    tokens = jnp.broadcast_to(tokens, keys.shape)
    token = jnp.min(jnp.where(mask & (keys == best[:, None]), tokens, NO_TOKEN), axis=1)
    value = jnp.sum(jnp.where(mask & (tokens == token[:, None]), logits, 0.0), axis=1)
    return token, value


def _vocabulary(options, name, finish, outputs, x, norm, weight):
    shape, tiles = options.shape, options.tiles
    fused = Norm(eps=options.eps, offset=options.norm_offset)
    activations = prenorm(fused, x, norm, tiles, shape, interpret=options.interpret)

    def kernel(refs, *out_refs):
        stream = Stream(
            x_ref=fixed_point.refs_of(refs), norm_ref=refs.norm, weight=weight_refs(refs), shape=shape, tiles=tiles,
            norm=activations.norm,
            interpret=options.interpret, squares_ref=refs.squares,
        )  # fmt: skip

        def end(block, group, sums):
            (rows, valid), (logits,) = group, sums
            columns = block.first + jnp.arange(tiles.block_n, dtype=jnp.int32)
            mask = valid[:, None] & (columns < shape.outputs)[None, :]
            if refs.bias is not None:
                logits += gather(refs.bias, columns[None, :], mask=mask)
            finish(block, rows, mask, columns, cap(logits, options.soft_cap), *out_refs)

        stream.run(end)

    return launch(
        kernel,
        name=name,
        grid=(programs_of(shape, tiles),),
        inputs=activations.inputs() | streamed(weight) | dict(bias=weight.bias),
        outputs=outputs,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=options.interpret,
    )


def _argmax(values, tokens, *, interpret):
    """The best of the blocks' bests: values, tokens [B, blocks] to (token [B], value [B])."""
    batch, blocks = values.shape
    block = max(16, min(pl.next_power_of_2(blocks), ARGMAX_BLOCK))

    def kernel(refs, token_ref, value_ref):
        row = pl.program_id(0)

        def step(j, carry):
            best_key, best_token, best_value = carry
            span = Span(j * block, block, blocks)
            inside = span.indices() < blocks
            value = load(refs.values, row, span, interpret=interpret)
            token = jnp.where(inside, load(refs.tokens, row, span, interpret=interpret), NO_TOKEN)
            key = jnp.where(inside, _rank(value), -jnp.inf)
            better = (key > best_key) | ((key == best_key) & (token < best_token))
            return (
                jnp.where(better, key, best_key),
                jnp.where(better, token, best_token),
                jnp.where(better, value, best_value),
            )

        carry = (jnp.full((block,), -jnp.inf), jnp.full((block,), NO_TOKEN, jnp.int32), jnp.zeros((block,)))
        key, token, value = lax.fori_loop(0, pl.cdiv(blocks, block), step, carry)
        best = jnp.min(jnp.where(key == jnp.max(key), token, NO_TOKEN))
        token_ref[row] = best
        value_ref[row] = jnp.sum(jnp.where(token == best, value, 0.0))

    token, value = launch(
        kernel,
        name="head_argmax",
        grid=(batch,),
        inputs=dict(values=values, tokens=tokens),
        outputs=[jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((batch,), jnp.float32)],
        num_warps=ARGMAX_WARPS,
        num_stages=1,
        interpret=interpret,
    )
    return token, value
