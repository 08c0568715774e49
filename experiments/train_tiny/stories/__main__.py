"""python -m experiments.train_tiny.stories [--count=20]: some of the text, to read."""

import dataclasses
import sys

from experiments.bench import options as command_line
from experiments.bench.options import check_least
from experiments.train_tiny.stories.corpus import documents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How many documents."""

    count: int = 20

    def __post_init__(self):
        check_least(self, count=0)


def run(options: Options, _: str) -> None:
    for _, made in zip(range(options.count), documents(seed=0)):
        for role, text in made.messages:
            print(f"{role}: {text}" if role else text)
        print()


if __name__ == "__main__":
    sys.exit(command_line.main(run, Options, "experiments.train_tiny.stories", __doc__))
