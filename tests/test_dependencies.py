"""Who may import whom."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INTERNALS = ("jax._src", "jaxlib")


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports, at any depth of it; `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_packages_are_there():
    assert files("pallas_kernels") and files("tokenspeed")


@pytest.mark.parametrize("path", files("pallas_kernels"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_import_jax_numpy_and_themselves(path):
    allowed = {"jax", "numpy", "pallas_kernels", *sys.stdlib_module_names}
    if path == ROOT / "pallas_kernels/common/hooks.py":
        allowed.add("jaxlib")
    assert not {name for name in imports(path) if name.split(".")[0] not in allowed}


@pytest.mark.parametrize("package, forbidden", [("tokenspeed", "experiments"), ("pallas_kernels", "tokenspeed")])
def test_dependencies_point_one_way(package, forbidden):
    for path in files(package):
        assert not {name for name in imports(path) if name.split(".")[0] in (forbidden, "experiments", "tests")}, path


@pytest.mark.parametrize("package", ["pallas_kernels", "tokenspeed", "experiments"])
def test_only_hooks_reaches_into_jax(package):
    for path in files(package):
        if path != ROOT / "pallas_kernels/common/hooks.py":
            found = {name for name in imports(path) if name.startswith(tuple(f"{i}." for i in INTERNALS))}
            assert not found, f"{path} imports {found}"
