"""A model whose vocabulary is real and whose layers are few, and a stand-in for llama-bench."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sr_edge.bench.synthetic import write_synthetic


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "tiny.gguf"
    write_synthetic(path, "tiny")
    return path


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Makes an executable of some lines of Python."""

    def make(source: str) -> Path:
        path = tmp_path / "llama-bench"
        path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{source}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make
