"""`sr-edge serve` judged by the `llm` command, with a model that its user has configured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tests.serve.judges.serving import PATIENCE, Server, needs

from sr_edge.extract import last_boxed
from sr_edge.suites.demo import HARD_KINDS, problems

pytestmark = [pytest.mark.slow, needs("llm")]

MODELS = """\
- model_id: split
  model_name: sr-edge-demo-small
  api_base: "{url}"
  api_key_name: sr-edge
- model_id: alone
  model_name: sr-edge-demo-small:local
  api_base: "{url}"
  api_key_name: sr-edge
- model_id: raw
  model_name: sr-edge-demo-small
  api_base: "{url}"
  api_key_name: sr-edge
  completion: true
"""
PROBLEM, OTHER = [
    problem for problem in problems(seed=12, n=20) if any(step.kind in HARD_KINDS for step in problem.steps)
][:2]

Llm = Callable[..., CompletedProcess[str]]


@pytest.fixture
def llm(server: Server, tmp_path: Path) -> Llm:
    """The command, with a folder of settings of its own."""
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=server.url))
    (tmp_path / "keys.json").write_text(json.dumps({"sr-edge": server.token}))
    environ = {n: v for n, v in os.environ.items() if not n.startswith(("LLM_", "OPENAI_"))}

    def run(*arguments: str, stdin: str = "") -> CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env={**environ, "LLM_USER_PATH": str(tmp_path), "PYTHONUTF8": "1"},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    return run


def test_the_same_answer_comes_streamed_and_at_once(llm: Llm) -> None:
    streamed = llm("-m", "split", "-o", "temperature", "0", PROBLEM.question)
    at_once = llm("-m", "split", "-o", "temperature", "0", "--no-stream", PROBLEM.question)
    assert streamed.returncode == at_once.returncode == 0, streamed.stderr + at_once.stderr
    assert last_boxed(streamed.stdout) == PROBLEM.answer
    assert at_once.stdout == streamed.stdout


def test_what_was_used_is_logged_local_and_remote_apart(llm: Llm) -> None:
    for stream in ((), ("--no-stream",)):
        assert llm("-m", "split", "-o", "temperature", "0", *stream, PROBLEM.question).returncode == 0
    logged = json.loads(llm("logs", "--json", "-n", "2").stdout)
    assert len(logged) == 2
    for entry in logged:
        details = (
            json.loads(entry["token_details"] or "{}")
            if isinstance(entry["token_details"], str)
            else entry["token_details"]
        )
        assert entry["input_tokens"] > 0
        own = details["sr_edge"]
        assert own["local_tokens"] + own["remote_tokens"] == entry["output_tokens"]
        assert own["remote_tokens"] > 0


def test_options_and_a_piped_prompt_reach_the_model(llm: Llm) -> None:
    done = llm("-m", "alone", "-o", "temperature", "0", "-o", "max_tokens", "5", stdin=PROBLEM.question)
    assert done.returncode == 0, done.stderr
    assert "boxed" not in done.stdout


def test_a_raw_model_completes(llm: Llm) -> None:
    prompt = f"<|im_start|>user\n{PROBLEM.question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    done = llm("-m", "raw", "-o", "temperature", "0", "-o", "max_tokens", "400", prompt)
    assert done.returncode == 0, done.stderr
    assert last_boxed(done.stdout) == PROBLEM.answer


def test_a_refusal_is_told_and_fails_the_command(llm: Llm) -> None:
    for stream in ((), ("--no-stream",)):
        refused = llm("-m", "split", *stream, "Write a poem about the sea.")
        assert refused.returncode != 0
        assert "word problems" in refused.stderr
    unsupported = llm("-m", "split", "-o", "presence_penalty", "1.5", OTHER.question)
    assert unsupported.returncode != 0
    assert "presence_penalty" in unsupported.stderr


def test_a_wrong_key_is_told(llm: Llm, server: Server) -> None:
    refused = llm("-m", "split", "--key", "wrong", PROBLEM.question)
    assert refused.returncode != 0
    assert "401" in refused.stderr
    assert server.token not in refused.stderr


def test_an_endpoint_can_be_asked_without_settings(llm: Llm, server: Server) -> None:
    listed = llm("openai", "endpoint", server.url, "--models", "--key", server.token)
    assert listed.returncode == 0, listed.stderr
    assert "sr-edge-demo-small:local" in listed.stdout
    asked = (
        "openai",
        "endpoint",
        server.url,
        PROBLEM.question,
        "--key",
        server.token,
        "-o",
        "temperature",
        "0",
    )
    done = llm(*asked, "-m", "sr-edge-demo-small")
    assert done.returncode == 0, done.stderr
    assert last_boxed(done.stdout) == PROBLEM.answer
