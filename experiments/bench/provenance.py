"""Where a record comes from: device, driver, clocks, versions, sources, commit, date and command."""

import ast
import datetime
import functools
import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pallas_kernels", "tokenspeed", "experiments")


def collect(command: str, *modules: str) -> dict[str, Any]:
    """The fields of a record's origin but for the date, which `now` gives for each.

    Args:
        command: as records have it. modules: those that ran what the record says, by their dotted names.
    """
    return dict(
        device=device_name(),
        **_driver(),
        jax=jax.__version__,
        sources=source_digest(*modules),
        **commit(),
        command=command,
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
def source_digest(*modules: str) -> str:
    """12 hex digits over the sources of these modules and of all that they import of this project."""
    digest = hashlib.sha256()
    for path in sources_of(*modules):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def sources_of(*modules: str) -> list[Path]:
    """The files of these modules and of all that they import of this project, at any depth."""
    found: set[Path] = set()
    left = list(modules)
    while left:
        name = left.pop()
        for path in _files_of(name):
            if path not in found:
                found.add(path)
                left += _imports(path)
    return sorted(found)


def _files_of(name: str) -> list[Path]:
    """The file of a module, or of the module that a name is in, and those of the packages around it."""
    parts = name.split(".")
    candidates = [ROOT.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    candidates += [ROOT.joinpath(*parts[:i]).with_suffix(".py") for i in range(1, len(parts) + 1)]
    return [path for path in candidates if path.is_file()]


@functools.cache
def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] in PACKAGES]
