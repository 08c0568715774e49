"""Every notebook runs top to bottom without a GPU, and is kept without outputs."""

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest

nbclient = pytest.importorskip("nbclient")
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources=dict(metadata=dict(path=str(tmp_path))))
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert " right" in text and "wrong: " not in text
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert not re.search(r"/(home|root|tmp|work|Users|usr)/", path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_follows_words(path):
    kinds = [cell.cell_type for cell in nbformat.read(path, as_version=4).cells]
    assert kinds[0] == "markdown"
    assert all(before == "markdown" for before, kind in itertools.pairwise(kinds) if kind == "code")


def install_cell(path) -> str:
    (source,) = [cell.source for cell in nbformat.read(path, as_version=4).cells if "REPOSITORY =" in cell.source]
    return source


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("gpu", [False, True])
def test_the_install_cell_asks_for_what_the_project_offers(path, gpu, not_installed, monkeypatch):
    asked = []
    monkeypatch.setenv("REPOSITORY", "https://example.org/project")
    monkeypatch.setattr(shutil, "which", lambda name: name if gpu else None)
    monkeypatch.setattr(subprocess, "run", lambda words, **_: asked.append(words) or subprocess.CompletedProcess([], 0))
    exec(install_cell(path), {})
    ((*_, requirement),) = asked
    found = re.fullmatch(r"(\S+)\[(\S+)\] @ git\+https://example.org/project", requirement)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found[1] == project["name"] and set(found[2].split(",")) <= set(project["optional-dependencies"])
    assert ("cuda" in found[2]) == gpu


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_install_cell_says_what_is_missing(path, not_installed, monkeypatch):
    monkeypatch.delenv("REPOSITORY", raising=False)
    with pytest.raises(SystemExit, match="tokenspeed-jax is not installed: set REPOSITORY"):
        exec(install_cell(path), {})
    monkeypatch.setenv("REPOSITORY", "https://example.org/project")
    failed = subprocess.CompletedProcess([], 1, stderr="ERROR: not found")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=r"pip could not install tokenspeed-jax.*\nERROR: not found"):
        exec(install_cell(path), {})


def test_there_is_one():
    assert NOTEBOOKS
