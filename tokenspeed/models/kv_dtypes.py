"""What the KV cache is stored in: the model's dtype, or 8 bits, of keys and of values each."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from pallas_kernels import FORMATS, KV_FORMATS, current_device
from tokenspeed.messages import shown

AUTO = "auto"
CHOICES = (AUTO, *KV_FORMATS)
FORM = "auto, fp8 or int8, or two of them for keys/values"
"""What an option may say, for messages and help."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVDtypes:
    """
    Attributes:
        k, v: names of dtypes.
    """

    k: str
    v: str

    @classmethod
    def of(cls, dtype: Any) -> "KVDtypes":
        """Keys and values of one dtype."""
        name = jnp.dtype(dtype).name
        return cls(k=name, v=name)

    @property
    def itemsizes(self) -> tuple[int, int]:
        """Bytes of a key's number, and of a value's."""
        return jnp.dtype(self.k).itemsize, jnp.dtype(self.v).itemsize

    @property
    def formats(self) -> tuple[str | None, str | None]:
        """Of keys and of values, 'fp8' or 'int8', or None where they are not quantised."""
        k, v = (
            next((name for name in KV_FORMATS if jnp.dtype(FORMATS[name]).name == dtype), None)
            for dtype in (self.k, self.v)
        )
        return k, v


def check(name: str, value: Any) -> str:
    """An option that says what keys and values are stored in, such as 'fp8' or 'auto/int8'.

    Raises:
        ValueError: it says something else.
    """
    if not isinstance(value, str) or len(parts := value.split("/")) > 2 or any(part not in CHOICES for part in parts):
        raise ValueError(f"{name}: expected {FORM}, got {shown(value)}")
    return value


def check_device(name: str, dtypes: KVDtypes, implementation: str) -> None:
    """Raises ValueError where kernels are to run on a GPU that has no 8-bit floats."""
    device = current_device()
    if implementation == "triton" and "fp8" in dtypes.formats and not device.has_fp8:
        raise ValueError(f"{name}: expected auto or int8 on {device.name}, which has no fp8")


def parse(name: str, value: str, dtype: Any) -> KVDtypes:
    """What an option says, for a model of that dtype; raises as `check`."""
    parts = check(name, value).split("/")
    k, v = (jnp.dtype(dtype if part == AUTO else FORMATS[part]).name for part in (parts[0], parts[-1]))
    return KVDtypes(k=k, v=v)
