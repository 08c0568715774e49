"""Where a row comes from: device, driver, clocks, versions, commit, date and command."""

import datetime
import functools
import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[1]
MEASURING = ("experiments/cases.py", "experiments/numerics.py", "experiments/gpu.py", "tokenspeed/measure.py")
"""Files of this package that decide what a time means."""


def collect(command: Sequence[str]) -> dict[str, Any]:
    """The fields of provenance but for the date, which `now` gives for each row."""
    return dict(
        device=device_name(),
        **_driver(),
        jax=jax.__version__,
        kernels=source_digest(),
        **commit(),
        command=shown_command(command),
    )


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def device_name() -> str:
    """jax's name for the device, which for a processor is followed by the model it calls itself."""
    device = jax.devices()[0]
    return device.device_kind if device.platform == "gpu" else f"cpu {_processor()}".strip()


@functools.cache
def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else ""


def _driver() -> dict[str, Any]:
    """The driver's version and the clocks at this moment; null where there is no nvidia-smi."""
    none = dict(driver=None, clocks=None)
    if jax.default_backend() != "gpu":
        return none
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        driver, *clocks = [part.strip() for part in out.splitlines()[0].split(",")]
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return none
    names = ("sm_mhz", "memory_mhz", "max_sm_mhz", "max_memory_mhz")
    return dict(driver=driver, clocks={n: int(c) if c.isdigit() else None for n, c in zip(names, clocks)})


def commit() -> dict[str, Any]:
    """The commit of this repository, and whether tracked files differ from it.

    Without a repository: TOKENSPEED_COMMIT, in which a trailing '-dirty' may stand for that, else null.
    """
    named = os.environ.get("TOKENSPEED_COMMIT", "")
    if named:
        return dict(commit=named.removesuffix("-dirty"), dirty=named.endswith("-dirty"))
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            raise OSError("a repository around this one")
        return dict(commit=_git("rev-parse", "HEAD"), dirty=bool(_git("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return dict(commit=None, dirty=None)


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    return run.stdout.strip()


@functools.cache
def source_digest() -> str:
    """12 hex digits over the sources of the kernels and of what measures them: rows of other sources are not reused."""
    digest = hashlib.sha256()
    measuring = [ROOT / name for name in MEASURING]
    for path in [*sorted((ROOT / "pallas_kernels").rglob("*.py")), *measuring]:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def shown_command(command: Sequence[str]) -> str:
    """The command as typed, but for absolute paths, of which only the last part is kept."""
    return " ".join(re.sub(r"(^|(?<==))/\S*/", "", argument) for argument in command)
