"""Which projections of a model are quantised, and how their tensors are stored in its checkpoint."""

import dataclasses
import re

PACKED, INTEGERS, FLOATS = "pack-quantized", "int-quantized", "float-quantized"
"""Layouts of compressed-tensors."""
AWQ, GPTQ, GPTQ_V2, FP8 = "awq", "gptq", "gptq_v2", "fp8"
"""Those of others."""
PATTERN, HEAD = "re:", "lm_head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one projection is stored.

    Attributes:
        layout: of its tensors: one of the names above.
        format: 'int8', 'fp8' or 'int4', see `pallas_kernels.FORMATS`.
        group: inputs that share a scale, or None where each output has one. Of FP8 the block's inputs.
        zeros: whether there are zero points.
        outputs: outputs that share a scale: 1, those of a block, or 0 where the whole weight does.
    """

    layout: str
    format: str
    group: int | None = None
    zeros: bool = False
    outputs: int = 1

    @property
    def described(self) -> str:
        """In a few words."""
        if self.group is not None:
            share = f"groups of {self.group}" if self.outputs == 1 else f"blocks of {self.outputs} x {self.group}"
        else:
            share = "a scale an output" if self.outputs == 1 else "one scale"
        return f"in {self.format}, {share}{', zero points' if self.zeros else ''} ({self.layout})"

    def groups(self, inputs: int) -> int:
        """How many scales an output of so many inputs has; the last group may be shorter."""
        return 1 if self.group is None else -(-inputs // self.group)

    def nbytes(self, outputs: int, inputs: int) -> int:
        """Of a weight of that many outputs and inputs on the device, about: scales may have 2 or 4 bytes."""
        scale = (4 if self.layout == FP8 else 2) + self.zeros
        return outputs * (inputs * (4 if self.format == "int4" else 8) // 8 + self.groups(inputs) * scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
    """Which modules of a checkpoint are quantised, and how.

    Attributes:
        schemes: (targets, scheme). A target is a module's name, 're:' and a regular expression that matches from its
            beginning, or 'Linear', which is all; names come before expressions, and these before 'Linear'.
        ignored: targets of modules that are not quantised. parts: whether any part of a name may be one of them.
        kv: 'fp8' or 'int8' where the checkpoint has scales for keys and values in that format, else None.
        head: whether 'Linear' holds for the head too. tied_head: whether the head of a tied model is a quantised copy
            of the table, by the scheme of its name.
    """

    schemes: tuple[tuple[tuple[str, ...], Scheme], ...]
    ignored: tuple[str, ...] = ()
    parts: bool = False
    head: bool = False
    kv: str | None = None
    tied_head: bool = False

    def scheme_of(self, module: str) -> Scheme | None:
        """That of a projection by its name in the checkpoint; None where it is not quantised."""
        if any(_names(target, module) or _describes(target, module) for target in self.ignored):
            return None
        if self.parts and any(target in module for target in self.ignored):
            return None
        linear = lambda target, module: target == "Linear" and (self.head or module != HEAD)
        for fits in (_names, _describes, linear):  # the closest first
            for targets, scheme in self.schemes:
                if any(fits(target, module) for target in targets):
                    return scheme
        return None


def _names(target: str, module: str) -> bool:
    return target == module


def _describes(target: str, module: str) -> bool:
    return target.startswith(PATTERN) and re.match(target.removeprefix(PATTERN), module) is not None
