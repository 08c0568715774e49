"""Names of how weights are quantised: 'int8', 'fp8', 'int4-g128', 'int4-g32-asym'."""

import dataclasses
import re

import pallas_kernels as pk
from experiments.bench.errors import UsageError
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.quantisation import FLOATS, HEAD, PACKED, Quantisation, Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One of `pallas_kernels.FORMATS`, inputs that share a scale (None: all of an output's), and whether about 0."""

    format: str
    group: int | None = None
    symmetric: bool = True

    @property
    def name(self) -> str:
        group = "" if self.group is None else f"-g{self.group}"
        return f"{self.format}{group}{'' if self.symmetric else '-asym'}"

    @property
    def scheme(self) -> Scheme:
        """As a checkpoint would have it."""
        layout = FLOATS if self.format == "fp8" else PACKED
        return Scheme(layout=layout, format=self.format, group=self.group, zeros=not self.symmetric)


def parsed(name: str, field: str = "formats") -> Format:
    """The format of a name.

    Raises:
        UsageError: there is no such format.
    """
    match = re.fullmatch(rf"({'|'.join(pk.FORMATS)})(?:-g([1-9]\d{{0,5}}))?(-asym)?", name)
    if match is None:
        known = ", ".join(pk.FORMATS)
        raise UsageError(f"{field}: expected one of {known}, then -gN for groups of N, then -asym, got {name!r}")
    format, group, asymmetric = match.groups()
    if format == "fp8" and asymmetric:
        raise UsageError(f"{field}: {name}: fp8 has no zero points")
    return Format(format=format, group=int(group) if group else None, symmetric=not asymmetric)


def quantised(config: ModelConfig, format: Format) -> ModelConfig:
    """The config of a model with all projections in a format, and the head, which is int8 with int4."""
    head = Format(format="int8") if format.format == "int4" else format
    schemes = (((HEAD,), head.scheme), (("Linear",), format.scheme))
    return dataclasses.replace(config, quantisation=Quantisation(schemes=schemes, tied_head=True))
