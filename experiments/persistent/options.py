"""What the skeleton's command is told."""

import dataclasses

from experiments.bench.options import check_least, check_name, check_some
from experiments.persistent.variants import VARIANTS
from experiments.persistent.workloads import WORKLOADS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which variants are measured.

    Attributes:
        variants: names in `variants.VARIANTS`, in the order in which they are measured on the first workload.
        workloads: names in `workloads.WORKLOADS`; on the others than the first, the bounds and the fastest variants.
        best: how many of these. samples: slopes that a median is of.
        seconds: after which no variant is begun any more. hang_seconds: after which one hangs, and the command ends.
        results: the file that records are appended to.
    """

    variants: tuple[str, ...] = tuple(VARIANTS)
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    best: int = 2
    samples: int = 11
    seconds: int = 105
    hang_seconds: int = 20
    results: str = "out/persistent-{device}.jsonl"

    def __post_init__(self):
        check_some(self, "variants", "workloads")
        for name in self.variants:
            check_name("variants", name, VARIANTS)
        for name in self.workloads:
            check_name("workloads", name, WORKLOADS)
        check_least(self, best=0, samples=3, seconds=1, hang_seconds=1)
