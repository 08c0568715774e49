"""Server soak: many clients of the small model's server, some of which leave, stall or never finish what they send.

    python -m experiments.server_soak [--clients=1000] [--seconds=60] [--one_token=20000] [--seed=0]

A server of its own is started at 127.0.0.1, batch invariant, with an empty cache of compiled programs. Clients stream
from it, and a share of them leaves; then more come than it takes, slow readers and half-open connections are there
while others ask, many requests of one token follow, and it is killed and started again. Nothing may fail but what is
told to come again (429), every stream that ended must be the text of the same request alone, all pages must be free
afterwards and memory as it was. A record ('server_soak' of experiments/bench/served_kinds.py) says what was found; the
exit status is 1 where something is wrong.

Half an hour on 2 cores; `--clients=200 --seconds=15 --one_token=1000 --half_open=200` takes some minutes.
"""

import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx2

from experiments.bench import options as command_line
from experiments.bench import provenance, record
from experiments.bench.device import in_path
from experiments.bench.errors import UsageError
from experiments.bench.log import Log
from experiments.server_soak.options import Options
from experiments.server_soak.phases import Soak
from experiments.server_soak.process import Server
from tokenspeed.messages import one_line

MEASURING = ("experiments.server_soak.phases", "tokenspeed.server.serve", "tokenspeed.llm")
SPARE_FILES = 500
"""Beside those of connections."""


def allow_files(count: int) -> None:
    """Lets this process, and those that it starts, have so many open.

    Raises:
        UsageError: the system does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise UsageError(f"clients, half_open: they take {count} open files, and the limit is {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def run(options: Options, command: str) -> int:
    allow_files(max(2 * options.clients, options.half_open + options.clients) + SPARE_FILES)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is the server's, and only named here
    with Log(in_path(options.results)) as log:
        origin = provenance.collect(command, *MEASURING)
        fields = soaked(options)
        log.append(record.new("server_soak", **fields, **origin, date=provenance.now()))
    print(*(f"{name}: {value}" for name, value in fields.items()), sep="\n")
    print(f"Records: {log.path}")
    return 0 if fields["status"] == "ok" else 1


def soaked(options: Options) -> dict[str, Any]:
    """The fields of a record."""
    arguments = ["--batch-invariant", f"--max-num-seqs={options.batch}", f"--max-concurrent={options.clients}"]
    soak = Soak(options)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) if options.restart else None
        start = lambda: Server(arguments, Path(folder) / "server.log", cache)
        try:
            with start() as server:
                soak.run(server)
                if options.restart:
                    soak.killed(server)
            if options.restart:
                with start() as server:
                    soak.restarted(server)
        except (RuntimeError, httpx2.HTTPError) as error:  # what was found until then is kept
            soak.problems.insert(0, one_line(error) or type(error).__name__)
    problems = soak.problems
    status = "ok" if not problems else f"{len(problems)} wrong: {'; '.join(problems[:3])}"
    return soak.fields | dict(status=status)


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.server_soak", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
