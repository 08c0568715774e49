"""Where records say they come from."""

import re
import subprocess
import sys

import jax
import pytest

from experiments.bench import provenance, record
from experiments.sweep import __main__ as sweep


def test_fields_are_those_of_a_record():
    found = provenance.collect("python -m experiments.sweep --config=tiles.py", *sweep.MEASURING)
    assert set(found) | {"date"} == set(record.ORIGIN)
    assert found["jax"] == jax.__version__ and found["device"]
    assert found["command"] == "python -m experiments.sweep --config=tiles.py"
    assert re.fullmatch("[0-9a-f]{12}", found["sources"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", provenance.now())
    record.new("tile", op="out", model="ragged", status="ok", date=provenance.now(), **found)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes sources of a project that stands in for this one; returns its folder."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    provenance.source_digest.cache_clear()
    files = {
        "experiments/__init__.py": "",
        "experiments/first.py": "import os\nfrom experiments.inner import second\n",
        "experiments/inner/__init__.py": "",
        "experiments/inner/second.py": "def f():\n    import pallas_kernels.third as t\n    return t.x\n",
        "experiments/unrelated.py": "import experiments.first\n",
        "pallas_kernels/__init__.py": "from pallas_kernels.third import x\n",
        "pallas_kernels/third.py": "x = 1\n",
        "pallas_kernels/unused.py": "",
        "tokenspeed/__init__.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield tmp_path
    provenance.source_digest.cache_clear()


def test_sources_are_all_that_a_module_imports_at_any_depth(project):
    def names(*modules):
        return [str(path.relative_to(project)) for path in provenance.sources_of(*modules)]

    third = ["pallas_kernels/__init__.py", "pallas_kernels/third.py"]
    first = [f"experiments/{name}" for name in ("__init__.py", "first.py", "inner/__init__.py", "inner/second.py")]
    assert names("pallas_kernels.third") == third
    assert names("experiments.first") == [*first, *third]
    assert names("experiments.first", "experiments.unrelated") == sorted([*first, "experiments/unrelated.py", *third])


@pytest.mark.parametrize(
    "name, other",
    [
        ("experiments/first.py", True), ("experiments/inner/second.py", True), ("pallas_kernels/third.py", True),
        ("pallas_kernels/__init__.py", True), ("experiments/unrelated.py", False), ("pallas_kernels/unused.py", False),
    ],
)  # fmt: skip
def test_the_digest_is_another_where_a_source_is(project, name, other):
    before = provenance.source_digest("experiments.first")
    (project / name).write_text((project / name).read_text() + "# another\n")
    provenance.source_digest.cache_clear()
    assert (provenance.source_digest("experiments.first") != before) == other


@pytest.mark.slow
@pytest.mark.parametrize("modules", [sweep.MEASURING, ("experiments.decode.__main__",)], ids=["sweep", "decode"])
def test_sources_are_what_python_imports(modules):
    """What a measurement needs is among its sources: none of this project's modules that it loads is left out."""
    program = f"import sys, {', '.join(modules)}\nprint(*(getattr(m, '__file__', None) for m in sys.modules.values()))"
    run = [sys.executable, "-c", program]
    loaded = subprocess.run(run, cwd=provenance.ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    folders = tuple(f"{provenance.ROOT / name}/" for name in provenance.PACKAGES)
    own = {path for path in loaded.split() if path.startswith(folders)}
    assert len(own) > 20 and own <= set(map(str, provenance.sources_of(*modules)))


def test_commit_by_environment(monkeypatch):
    monkeypatch.setenv("TOKENSPEED_COMMIT", "abc123")
    assert provenance.commit() == dict(commit="abc123", dirty=False)
    monkeypatch.setenv("TOKENSPEED_COMMIT", "abc123-dirty")
    assert provenance.commit() == dict(commit="abc123", dirty=True)


def test_commit_without_a_repository(monkeypatch, tmp_path):
    monkeypatch.delenv("TOKENSPEED_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == dict(commit=None, dirty=None)


def test_commit_of_a_repository_and_not_of_one_around_it(monkeypatch, tmp_path):
    monkeypatch.delenv("TOKENSPEED_COMMIT", raising=False)

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    found = provenance.commit()
    assert re.fullmatch("[0-9a-f]{40}", found["commit"]) and found["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert provenance.commit()["dirty"] is True
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "inside")
    assert provenance.commit() == dict(commit=None, dirty=None)
