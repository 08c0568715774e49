"""Where rows say they come from."""

import re
import subprocess

import jax

from experiments import provenance


def test_fields():
    found = provenance.collect(["python -m experiments.sweep", "--config=tiles.py"])
    assert set(found) == {"device", "driver", "clocks", "jax", "kernels", "commit", "dirty", "command"}
    assert found["jax"] == jax.__version__ and found["device"]
    assert re.fullmatch("[0-9a-f]{12}", found["kernels"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", provenance.now())


def test_absolute_paths_are_shortened():
    command = ["sweep", "--config=/a/b/tiles.py", "--config.results=out/rows.jsonl", "--config.plots", "/c/d"]
    assert (
        provenance.shown_command(command) == "sweep --config=tiles.py --config.results=out/rows.jsonl --config.plots d"
    )


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
