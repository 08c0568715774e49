"""How close is close: every op's results against the float64 oracle."""

import jax
import numpy as np

from pallas_kernels.common.launch import guarded
from tests.pallas_kernels import oracle
from tests.pallas_kernels.inputs import Call

TOLERANCES = {
    # dtype: (RMS of the errors over the RMS of the results, largest error over 1 + |result|).
    # float32: sums of up to a few hundred terms of size 1; a hundred times less than what tf32 would give.
    "float32": (2e-6, 1e-5),
    # What is rounded to a dtype of unit roundoff u: the result, and before it the normed activations (tensor-core form
    # and reference) or the weights of the softmax. That is an RMS of at most u; the largest of 10^4 normal errors is
    # four times that, and a product of two projections (gate_up) may double it.
    "bfloat16": (2**-8, 2**-5),
    "float16": (2**-11, 2**-8),
}


def leaves(result) -> list[np.ndarray]:
    """The floating-point arrays of a result, float64; counters, which are int32, are left out."""
    return [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(result) if x.dtype.name[:3] != "int"]


def errors(result, expected) -> list[tuple[float, float]]:
    """Per array: RMS of the errors over the RMS of what is expected, and the largest error over 1 + |expected|."""
    out = []
    for got, want in zip(leaves(result), expected, strict=True):
        assert got.shape == want.shape
        if not np.array_equal(np.isnan(got), np.isnan(want)):
            raise AssertionError(
                f"NaN in {np.isnan(got).sum()} of {got.size} elements, {np.isnan(want).sum()} expected"
            )
        error = np.nan_to_num(np.abs(got - want))
        rms = np.sqrt(np.mean(error**2) / max(np.mean(np.nan_to_num(want) ** 2), 1e-30))
        out.append((float(rms), float(np.max(error / (1 + np.abs(np.nan_to_num(want)))))))
    return out


def assert_close(result, expected, dtype: str) -> None:
    rms_limit, largest_limit = TOLERANCES[dtype]
    for index, (rms, largest) in enumerate(errors(result, expected)):
        assert rms <= rms_limit, f"array {index}: RMS error {rms:.2e} of the result's RMS, at most {rms_limit:.2e}"
        assert largest <= largest_limit, f"array {index}: largest error {largest:.2e}, at most {largest_limit:.2e}"


def assert_right(call: Call, tiles, implementation: str = "interpret"):
    """The kernel, in guarded buffers, and the reference both agree with the oracle; returns the kernel's result."""
    expected = oracle.of(call)
    with guarded():
        result = call(implementation, tiles)
    assert_close(result, expected, call.shape.dtype)
    assert_close(call("xla"), expected, call.shape.dtype)
    return result


def assert_right_head(call: Call, tiles, implementation: str = "interpret") -> None:
    """The tokens of a call of `head`, in guarded buffers, are the oracle's, and so nearly are their logits.

    A dtype of fewer digits than float32 may prefer another token, if its logit is as high but for the errors of two.
    """
    with guarded():
        token, value = call(implementation, tiles)
    logits = oracle.head_logits(**call.arrays, **call.options)
    best, chosen = logits.max(axis=1), np.take_along_axis(logits, np.asarray(token)[:, None], axis=1)[:, 0]
    _, largest = TOLERANCES[call.shape.dtype]
    if call.shape.dtype == "float32":
        np.testing.assert_array_equal(token, logits.argmax(axis=1))
    assert (chosen >= best - 2 * largest * (1 + np.abs(best))).all()
    np.testing.assert_allclose(value, chosen, rtol=largest, atol=largest)


def assert_same_bits(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
