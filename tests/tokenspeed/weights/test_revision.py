"""Revision: of all that is loaded, and of nothing else."""

import hashlib
import os

import pytest

from tokenspeed.weights.revision import revision_of

FILES = {"model.safetensors": b"w" * 300_000, "config.json": b"{}", "chat_template.jinja": b""}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_it_can_be_computed_by_hand(folder):
    lines = [f"{name} {len(FILES[name])} {hashlib.sha256(FILES[name]).hexdigest()}\n" for name in sorted(FILES)]
    assert revision_of(folder) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_every_byte_and_every_name_counts(folder):
    found = {revision_of(folder)}
    (folder / "model.safetensors").write_bytes(b"w" * 299_999 + b"x")
    found.add(revision_of(folder))
    os.rename(folder / "config.json", folder / "other.json")
    found.add(revision_of(folder))
    (folder / "model-2.safetensors").write_bytes(b"")
    found.add(revision_of(folder))
    assert len(found) == 4


def test_what_is_never_loaded_does_not(folder):
    before = revision_of(folder)
    (folder / "README.md").write_text("more")
    (folder / "original.json").mkdir()
    assert revision_of(folder) == before


def test_a_folder_without_any(tmp_path):
    with pytest.raises(ValueError, match=r"expected files that end with \.json, \.jinja, \.safetensors, got none"):
        revision_of(tmp_path)
