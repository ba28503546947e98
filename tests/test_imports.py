"""Asking for help must not wake the engine, the network, the screen or the trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sr_edge.passport import demo_paths

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


def test_an_answer_that_is_not_kept_waits_for_nothing_that_it_has_no_use_for(tmp_path: Path) -> None:
    arguments = ["ask", "--no-log", "--policy", "local", "--max-tokens", "1", "-m", str(demo_paths().small)]
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace('.partition(".")[0]', ""), *arguments, "Ida has 4 coins."],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert "sr_edge.local" in loaded
    assert not loaded & {"httpx", "llama_cpp.llama", "sqlite3", "sr_edge.store", "textual", "tomlkit"}


START = """
import gc, sys
enable = gc.enable
def enable_and_tell():
    looks = sum(of["collections"] for of in gc.get_stats()) - before
    print(looks, gc.get_freeze_count() > 0, file=sys.stderr)
    enable()
gc.enable = enable_and_tell
from sr_edge.__main__ import run
gc.collect()
before = sum(of["collections"] for of in gc.get_stats())
run()
"""


@pytest.mark.parametrize("command", ["ask", "doctor"])
def test_a_start_does_not_look_for_garbage(command: str, tmp_path: Path) -> None:
    arguments = ["--no-log", "--policy", "local", "--max-tokens", "1", "-m", str(demo_paths().small), "Hm."]
    done = subprocess.run(
        [sys.executable, "-c", START, command, *(arguments if command == "ask" else [])],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.stderr.splitlines()[0] == "0 True", done.stderr


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
