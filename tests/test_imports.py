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


DECODE = """
import json, sys
from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths
with LlamaLocal.open(demo_paths().small, temperature=0) as model:
    model.feed(model.tokenize("Tom has"))
    model.sample()
before = "llama_cpp.llama" in sys.modules
import llama_cpp
print(json.dumps([before, llama_cpp.__version__ != "", llama_cpp.Llama.__name__]))
"""


def test_decoding_needs_the_bindings_alone_and_leaves_their_package_whole_for_others() -> None:
    done = subprocess.run([sys.executable, "-c", DECODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [False, True, "Llama"]
