"""Who may import whom: each package what stands below it, and of pallas_kernels nothing but the package itself."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

import pallas_kernels

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pallas_kernels", "tokenspeed", "experiments")
HOOKS = tuple(
    ROOT / path
    for path in (
        "pallas_kernels/common/hooks.py", "tokenspeed/models/flash_attention.py", "experiments/persistent/polls.py",
    )
)  # fmt: skip
"""The files that may reach into JAX, one for each package that must."""
INTERNALS = ("jax._src", "jax.extend", "jaxlib")
USERS = ("tokenspeed", "experiments", "configs", "tests/tokenspeed", "tests/experiments", "tests/notebooks")
"""What stands outside pallas_kernels. The tests of its own parts, on a GPU too, may import them."""
BENCH = "experiments.bench"


def imports_of(source: str, where: str) -> set[str]:
    """The dotted names that a program imports, at any depth of it; `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(source, where)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports(path: Path) -> set[str]:
    return imports_of(path.read_text(), str(path))


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def modules(package: str) -> set[str]:
    """The dotted names of a package's modules and packages."""
    found = (path.relative_to(ROOT).with_suffix("") for path in files(package))
    return {".".join(path.parts).removesuffix(".__init__") for path in found}


def notebook_imports() -> Iterator[tuple[str, set[str]]]:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        lines = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
        yield path.name, imports_of("\n".join(line for line in lines if not line.startswith(("%", "!"))), path.name)


def inside(names: set[str], packages: tuple[str, ...]) -> set[str]:
    return {name for name in names if name.startswith(tuple(f"{one}." for one in packages)) or name in packages}


@pytest.mark.parametrize("package", [*PACKAGES, *USERS])
def test_there_are_files(package):
    assert files(package)


@pytest.mark.parametrize("path", files("pallas_kernels"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_import_jax_numpy_and_themselves(path):
    allowed = {"jax", "numpy", "pallas_kernels", *sys.stdlib_module_names}
    assert not {name for name in imports(path) if name.split(".")[0] not in allowed}


ABOVE = {"pallas_kernels": ("tokenspeed", "experiments", "tests"), "tokenspeed": ("experiments", "tests")}


@pytest.mark.parametrize("package, above", ABOVE.items())
def test_packages_import_what_is_below_them(package, above):
    for path in files(package):
        assert not inside(imports(path), above), path


def reached(names: set[str]) -> set[str]:
    """The names in or below pallas_kernels that are not public."""
    allowed = {"pallas_kernels", *(f"pallas_kernels.{name}" for name in pallas_kernels.__all__)}
    return {name for name in inside(names, ("pallas_kernels",)) - allowed if not name.endswith("__")}


@pytest.mark.parametrize("folder", USERS)
def test_of_the_kernels_only_the_package_is_public(folder):
    for path in files(folder):
        attributes = {
            f"pallas_kernels.{node.attr}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pk"
        }
        assert not reached(imports(path) | attributes), path


def test_of_the_kernels_only_the_package_is_public_in_notebooks():
    for name, found in notebook_imports():
        assert not reached(found), name


def test_what_is_public_is_there():
    assert all(hasattr(pallas_kernels, name) for name in pallas_kernels.__all__)


def test_bench_serves_the_experiments_and_knows_none():
    others = tuple(name for name in modules("experiments") if name != "experiments" and not name.startswith(BENCH))
    for path in files("experiments/bench"):
        assert not inside(imports(path), others), path


def test_the_report_is_read_by_none():
    for path in files("experiments"):
        if path.parent.name != "report":
            assert not inside(imports(path), ("experiments.report",)), path


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_do_not_import_in_circles(package):
    graph = {}
    known = modules(package)
    for path in files(package):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not name.endswith("__init__"):
            parents = {one for found in imports(path) for one in (found, found.rpartition(".")[0])}
            graph[name] = {one for one in parents if one in known and one != name}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("package", PACKAGES)
def test_only_hooks_reaches_into_jax(package):
    for path in files(package):
        if path not in HOOKS:
            assert not inside(imports(path), INTERNALS), path


def test_only_the_drivers_of_peers_import_them():
    for path in files("experiments"):
        found = inside(imports(path), ("torch", "vllm"))
        assert not found or path.name.endswith("_driver.py"), f"{path} imports {found}"
