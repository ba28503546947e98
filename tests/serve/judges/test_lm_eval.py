"""`sr-edge serve` judged by lm-evaluation-harness, on problems that `sr-edge eval` has a verdict on too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.command_line import run
from tests.serve.judges.serving import Server, needs

from sr_edge.passport import demo_paths
from sr_edge.suites.demo import problems

pytestmark = [pytest.mark.slow, needs("lm_eval", "aiohttp", "tenacity", "transformers")]

SEED, N = 21, 24
TASKS = Path(__file__).parent
TEXT = {"tokenizer_backend": None, "tokenized_requests": False}
PATIENCE = 600.0
"""Seconds; nearly all of them go into importing what lm-eval is made of."""


@pytest.fixture(scope="module")
def verdict() -> float:
    """The accuracy that `sr-edge eval` finds for the pair, without any server."""
    done = run("eval", "--suite", "demo", "--seed", SEED, "--n", N, "--arm", "split", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["arms"]["split"]["accuracy"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where lm-eval runs: with the problems, and with the small model's tokenizer in transformers' format."""
    from transformers import AutoTokenizer

    asked = [{"question": problem.question, "answer": problem.answer} for problem in problems(SEED, N)]
    (tmp_path / "problems.jsonl").write_text("".join(f"{json.dumps(problem)}\n" for problem in asked))
    small = demo_paths().small
    tokenizer = AutoTokenizer.from_pretrained(str(small.parent), gguf_file=small.name)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


CHAT = ("--model", "local-chat-completions", "--tasks", "sr_edge_demo_chat", "--apply_chat_template")
RAW = ("--model", "local-completions", "--tasks", "sr_edge_demo_raw")
IDS = ("--model", "local-completions", "--tasks", "sr_edge_demo_chat", "--apply_chat_template")
WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "chat, one by one": (CHAT, {"num_concurrent": 1}),
    "chat, four at once": (CHAT, {"num_concurrent": 4}),
    "raw text, one by one": (RAW, {"num_concurrent": 1, **TEXT}),
    "raw text, four at once": (RAW, {"num_concurrent": 4, **TEXT}),
    "ids, four in a request": ((*IDS, "--batch_size", "4"), {"num_concurrent": 1, "tokenizer": "tokenizer"}),
    "ids, four requests at once": (IDS, {"num_concurrent": 4, "tokenizer": "tokenizer"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_lm_eval_finds_the_accuracy_that_eval_finds(
    server: Server, folder: Path, verdict: float, way: str
) -> None:
    options, settings = WAYS[way]
    done = lm_eval(folder, server, *options, **settings)
    assert done.returncode == 0, done.stderr
    assert "API request failed" not in done.stderr
    (figures,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    (task,) = json.loads(figures.read_text())["results"].values()
    assert len(samples.read_text().splitlines()) == N
    assert task["exact_match,boxed"] == pytest.approx(verdict)


def test_lm_eval_is_told_that_prompts_are_not_scored(server: Server, folder: Path) -> None:
    """Choosing among given answers needs the prompt's own log-probabilities."""
    (folder / "choosing.yaml").write_text(
        "task: sr_edge_demo_choosing\n"
        "dataset_path: json\n"
        "dataset_kwargs: {data_files: {test: problems.jsonl}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        'doc_to_choice: ["1", "2"]\n'
        "doc_to_target: 0\n"
        "metric_list: [{metric: acc}]\n"
    )
    choosing = ("--model", "local-completions", "--tasks", "choosing.yaml", "--limit", "2")
    done = lm_eval(folder, server, *choosing, num_concurrent=1, tokenizer="tokenizer")
    assert done.returncode != 0
    assert "unsupported_parameter" in done.stderr


def lm_eval(folder: Path, server: Server, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """The command, with a cache of its own, and told to use no network but the server."""
    unwanted = ("HF_", "LMEVAL_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    where = "chat/completions" if "local-chat-completions" in options else "completions"
    model = {"model": "sr-edge-demo-small", "base_url": f"{server.url}/{where}", "max_retries": 1} | settings
    return subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--include_path", str(TASKS), *options),
            *("--model_args", ",".join(f"{name}={value}" for name, value in model.items())),
            *("--output_path", "out", "--log_samples"),
        ],
        cwd=folder,
        env={
            **kept,
            **offline,
            "HF_HOME": str(folder / "cache"),
            "OPENAI_API_KEY": server.token,
            "PYTHONUTF8": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
