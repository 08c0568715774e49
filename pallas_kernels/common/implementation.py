"""Which implementation runs, and how it is differentiated."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax

from pallas_kernels.common import checks, fixed_point, hooks, launch

IMPLEMENTATIONS = ("triton", "xla", "interpret")
"""The fused kernels, the reference compiled by XLA, and the fused kernels run by Pallas's interpreter."""


@functools.cache
def _has_nvidia_gpu() -> bool:
    try:
        return jax.default_backend() == "gpu" and "NVIDIA" in jax.devices()[0].device_kind
    except RuntimeError:
        return False


def _lowering_for_nvidia() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return device is not None and "NVIDIA" in device.device_kind


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def resolve(implementation: str | None) -> str:
    """The implementation that a call with this argument runs.

    Args:
        implementation: one of `IMPLEMENTATIONS`, or None for 'triton' on an NVIDIA GPU (or where one is lowered for)
            and 'xla' elsewhere, which a warning says once.

    Raises:
        ValueError: the name is unknown, or is 'triton' where there is no NVIDIA GPU: a named one never falls back.
    """
    available = _has_nvidia_gpu() or _lowering_for_nvidia()
    if implementation is None:
        if not available:
            _say_once("pallas_kernels: no NVIDIA GPU here, so the XLA implementation runs")
        return "triton" if available else "xla"
    if not isinstance(implementation, str) or implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation: expected None or one of {', '.join(IMPLEMENTATIONS)}, got "
            f"{checks.described(implementation)}"
        )
    if implementation == "triton" and not available:
        raise ValueError("implementation: 'triton' needs an NVIDIA GPU; here 'xla' and 'interpret' run")
    return implementation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _differentiable(kernel, reference, options, operands):
    del reference
    return kernel(options, **operands)


def _forward(kernel, reference, options, operands):
    del reference
    result = kernel(options, **operands)
    fixed_point.refuse_gradient(result)
    return result, operands


def _backward(kernel, reference, options, operands, cotangent):
    del kernel
    _, vjp = jax.vjp(lambda o: reference(options, **o), operands)
    return vjp(cotangent)


_differentiable.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _call(kernel, reference, options, modes, operands):
    del modes  # only a part of the cache key
    return _differentiable(kernel, reference, options, operands)


def call(kernel: Callable, reference: Callable, options: Any, operands: dict[str, Any]):
    """Calls `kernel(options, **operands)`, compiled once per options and shapes; gradients are the reference's."""
    return _call(kernel, reference, options, (launch.is_guarded(), hooks.disabled_hooks()), operands)
