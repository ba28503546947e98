"""A file that nobody vouches for is opened in a child: whatever it does to that, here it is a message."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.errors import ModelError
from sr_edge.gguf_header import read_header
from sr_edge.trial import TrialEndedError, try_opening


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def test_a_sound_file_passes_and_nothing_is_left(tiny: Path) -> None:
    try_opening(tiny)
    try_opening(tiny, seconds=30)
    assert os.listdir(tiny.parent) == ["tiny.gguf"]


def test_a_context_of_two_tokens_is_enough(tmp_path: Path) -> None:
    try_opening(write_tiny_gguf(tmp_path / "short.gguf", context_length=2))


def test_the_pre_flight_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<html>")
    with pytest.raises(ModelError, match="a web page"):
        try_opening(path)


def test_what_llama_cpp_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "llama.gguf", architecture="qwen3")
    with pytest.raises(ModelError, match=r"llama\.gguf: llama\.cpp cannot load it: .*attn_k_norm"):
        try_opening(path)


def test_weights_that_are_no_numbers_are_seen(tiny: Path) -> None:
    embedding = read_header(tiny).tensors[0]
    with tiny.open("r+b") as file:
        file.seek(embedding.offset)
        file.write(np.full(64, np.nan, np.float32).tobytes())
    with pytest.raises(ModelError, match="what it computes are no numbers"):
        try_opening(tiny)


class Child:
    """Another program in the child's place."""

    def __init__(self, patch: pytest.MonkeyPatch, code: str) -> None:
        self.code = code
        self.popen = subprocess.Popen
        self.environment: Mapping[str, str] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        patch.setattr(subprocess, "Popen", self)

    def __call__(self, command: tuple[str, ...], **options: Any) -> subprocess.Popen[bytes]:
        self.environment = options["env"]
        prepare = "import sys; from sr_edge import trial; trial._limit(int(sys.argv[2]), int(sys.argv[3]))\n"
        process = self.popen((sys.executable, "-P", "-c", prepare + self.code, *command[4:]), **options)
        self.processes.append(process)
        return process


CRASHES = {
    "a crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
    "an abort": (
        "import os; os.write(2, b'ggml.c:12: GGML_ASSERT(n > 0) failed\\n'); os.abort()",
        r"crashed with SIGABRT .*: ggml\.c:12: GGML_ASSERT\(n > 0\) failed: do not use this file",
    ),
    "a bug of ours": ("raise RuntimeError('surprised')", "could not be opened: .*RuntimeError: surprised"),
    "an end without a word": ("import os; os._exit(3)", "it could not be opened: do not use"),
    "the system's killer": (
        "import os; os.kill(os.getpid(), 9)",
        "the system ended llama.cpp .*want of memory: close what else runs",
    ),
    "hunger": ("x = bytearray(1 << 33)", r"needs more than 1\.1 GB of memory"),
    "idleness": ("import time; time.sleep(60)", "it was not open after 2 s"),
    "busyness": ("while True: pass", "it was not open after 2 s"),
    "a flood": ("import os\nwhile True: os.write(1, b'a\\n' * 9999)", "it was not open after 2 s: do not"),
    "a lie": ("import os; print('{\"error\": 7}', flush=True); os._exit(1)", "it could not be opened"),
}


@pytest.mark.parametrize("case", CRASHES)
def test_whatever_happens_to_the_child_is_a_message(
    case: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, reason = CRASHES[case]
    child = Child(monkeypatch, code)
    with pytest.raises(ModelError, match=reason) as raised:
        try_opening(tiny, memory=1 << 30, seconds=2)
    assert isinstance(raised.value, TrialEndedError) == (case == "the system's killer")
    assert str(raised.value).startswith(f"{tiny}: ")
    assert len(str(raised.value)) < 800
    assert child.processes[0].returncode is not None


FORBIDDEN = {
    "write": "open('loot', 'wb', buffering=0).write(b'x' * 100)",
    "open many files": "[open('/dev/null') for _ in range(100)]",
    "take memory": "bytearray(1 << 33)",
}


@pytest.mark.parametrize("deed", FORBIDDEN)
def test_the_child_may_not(deed: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Child(
        monkeypatch, f"try:\n    {FORBIDDEN[deed]}\nexcept (OSError, MemoryError): sys.exit(0)\nsys.exit(1)"
    )
    try_opening(tiny)  # it ended well because it could not
    assert not (tmp_path / "loot").exists() or (tmp_path / "loot").stat().st_size == 0


def test_the_child_knows_no_secrets(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    child = Child(monkeypatch, "")
    try_opening(tiny)
    assert not any("secret" in value for value in child.environment.values())
    assert {"PATH", "PYTHONPATH"} & child.environment.keys()


def test_the_caller_can_end_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child(monkeypatch, "import time; time.sleep(60)")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        try_opening(tiny, poll=interrupt)
    assert child.processes[0].returncode is not None
