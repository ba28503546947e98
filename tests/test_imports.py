"""Asking for help must not wake the engine, the network, the screen or the trainer."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"gguf", "httpx", "llama_cpp", "numpy", "textual", "tokenizers", "torch", "transformers"}

PROBE = """
import json, sys
from sr_edge.commands import main
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
json.dump(sorted({name.partition(".")[0] for name in sys.modules}), sys.stderr)
"""


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, option], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    loaded = set(json.loads(done.stderr))
    assert "sr_edge" in loaded
    assert not loaded & HEAVY
