"""The built-in pair is where it is looked for, and is what its passports say."""

import hashlib
from pathlib import Path

import pytest

from sr_edge.errors import ModelError
from sr_edge.passport import demo_paths, read_passport


@pytest.mark.parametrize("role", ["small", "big"])
def test_the_built_in_models_are_those_of_their_passports(role: str) -> None:
    path = getattr(demo_paths(), role)
    passport = read_passport(path)
    assert passport["role"] == role
    assert passport["file"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_without_a_passport_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.gguf has no passport"):
        read_passport(tmp_path / "model.gguf")


def test_a_passport_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text("role = small")
    with pytest.raises(ModelError, match=r"model\.toml"):
        read_passport(tmp_path / "model.gguf")


def test_an_installation_without_the_pair_says_where_it_looked(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sr_edge.passport._FOLDERS", (tmp_path,))
    with pytest.raises(ModelError, match=str(tmp_path)):
        demo_paths()
