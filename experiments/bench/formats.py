"""Names of how weights are quantised: 'int8', 'fp8', 'int4-g128', 'int4-g32-asym', 'int8-a8'."""

import dataclasses
import re

import pallas_kernels as pk
from experiments.bench.errors import UsageError
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.quantisation import FLOATS, HEAD, PACKED, Quantisation, Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One of `pallas_kernels.FORMATS`, inputs that share a scale (None: all of an output's), and whether about 0.

    Attributes:
        activations: 'int8' where these are rounded too, see `QuantisedWeight`.
    """

    format: str
    group: int | None = None
    symmetric: bool = True
    activations: str | None = None

    @property
    def name(self) -> str:
        group = "" if self.group is None else f"-g{self.group}"
        return f"{self.format}{group}{'' if self.symmetric else '-asym'}{'-a8' if self.activations else ''}"

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
    match = re.fullmatch(rf"({'|'.join(pk.FORMATS)})(?:-g([1-9]\d{{0,5}}))?(-asym)?(-a8)?", name)
    if match is None:
        known = ", ".join(pk.FORMATS)
        raise UsageError(
            f"{field}: expected one of {known}, then -gN for groups of N, then -asym, then -a8, got {name!r}"
        )
    format, group, asymmetric, eight = match.groups()
    if format == "fp8" and asymmetric:
        raise UsageError(f"{field}: {name}: fp8 has no zero points")
    if format == "fp8" and eight:
        raise UsageError(f"{field}: {name}: activations of 8 bits go with int8 and int4")
    return Format(
        format=format, group=int(group) if group else None, symmetric=not asymmetric,
        activations="int8" if eight else None,
    )  # fmt: skip


def quantised(config: ModelConfig, format: Format) -> ModelConfig:
    """The config of a model with all projections in a format, and the head, which is int8 with int4."""
    head = dataclasses.replace(format, format="int8", group=None, symmetric=True) if format.format == "int4" else format
    schemes = (((HEAD,), head.scheme), (("Linear",), format.scheme))
    quantisation = Quantisation(schemes=schemes, tied_head=True, activations=format.activations)
    return dataclasses.replace(config, quantisation=quantisation)
