"""The built-in models as transformers checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sr_edge.logits import Scorer
from sr_edge.passport import demo_paths
from sr_edge.suites.demo import problems, solution_text
from sr_train.demo.checkpoint import NAMES, DemoName, demo_checkpoint
from sr_train.demo.tokenizer import prompt_text


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_computes_what_its_gguf_does(name: DemoName, tmp_path: Path) -> None:
    folder = demo_checkpoint(name, tmp_path / name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    problem = problems(5, 1)[0]
    text = prompt_text(problem.question) + solution_text(problem)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    with Scorer(demo_paths().small.with_name(f"{name}.gguf")) as scorer:
        ours = scorer.logits(ids)
    agreed = theirs.argmax(-1) == ours.argmax(-1)
    assert agreed.mean() > 0.98  # Q8_0 rounds the activations too
    assert np.abs(theirs - ours).mean() < 0.1


def test_the_small_ones_share_a_tokenizer_and_differ_in_what_they_were_taught(tmp_path: Path) -> None:
    base, small = (demo_checkpoint(name, tmp_path / name) for name in ("base", "small"))
    assert (base / "tokenizer.json").read_bytes() == (small / "tokenizer.json").read_bytes()
    assert (base / "model.safetensors").read_bytes() != (small / "model.safetensors").read_bytes()


def test_a_checkpoint_that_is_there_is_kept(tmp_path: Path) -> None:
    folder = demo_checkpoint("base", tmp_path / "base")
    (folder / "config.json").write_text("{}", "utf-8")
    assert (demo_checkpoint("base", folder) / "config.json").read_text("utf-8") == "{}"
