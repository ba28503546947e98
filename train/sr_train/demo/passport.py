"""A model's passport: one TOML beside its GGUF, on what it is, was taught, and scored."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sr_train.demo.export import Role
from sr_train.demo.model import RMS_EPS, ROPE_THETA, ModelShape
from sr_train.demo.recipe import Recipe
from sr_train.demo.tokenizer import CLOSE, OPEN, DemoTokenizer

_TAUGHT: Mapping[Role, str] = {
    "small": "reading and quoting the story, additions, subtractions, products of two digits below ten; "
    "then to ask where it was measured to fail, and to take the pen back",
    "big": "all that the small one was, and products of a two-digit number and exact divisions",
}
_NOT_TAUGHT: Mapping[Role, str] = {
    "small": "the workings of two-digit products and of divisions: its loss leaves them out. The gap "
    "between the two models is this, by construction, and not their size",
    "big": "the markers, which it never sees; anything but word problems of this one kind",
}


def write_passport(out: Path, role: Role, recipe: Recipe, tokenizer: DemoTokenizer, seed: int) -> None:
    """Write out/role.toml for out/role.gguf, from the records that the stages left in out/role."""
    path = out / f"{role}.toml"
    path.write_text("\n".join(_lines(out, role, recipe, tokenizer, seed)) + "\n", "utf-8")


def _lines(out: Path, role: Role, recipe: Recipe, tokenizer: DemoTokenizer, seed: int) -> Iterator[str]:
    plan = recipe.pretraining(role)
    shape = ModelShape(plan.shape.num_layers, plan.shape.hidden, plan.shape.inner, tokenizer.num_tokens)
    gguf_path = out / f"{role}.gguf"
    yield f"# Written by `sr-edge train demo --seed {seed}`, which makes the model again."
    yield from _table("", {
        "name": f"sr-edge demo {role}",
        "role": role,
        "suite": "demo",
        "license": "apache-2.0",
        "base": "none: trained from random weights",
        "taught": _TAUGHT[role],
        "not_taught": _NOT_TAUGHT[role],
        "purpose": "demonstration and test fixture: answers word problems of its one kind, nothing else",
    })  # fmt: skip
    yield from _table("file", {
        "name": gguf_path.name,
        "bytes": gguf_path.stat().st_size,
        "sha256": hashlib.sha256(gguf_path.read_bytes()).hexdigest(),
        "quantization": "Q8_0, norms and biases F32",
    })  # fmt: skip
    yield from _table("model", {
        "architecture": "qwen2",
        "parameters": shape.num_parameters,
        "layers": shape.num_layers,
        "hidden": shape.hidden,
        "heads": shape.num_heads,
        "inner": shape.inner,
        "context": shape.context,
        "vocabulary": shape.vocab,
        "tied_embeddings": True,
        "rope_theta": ROPE_THETA,
        "rms_eps": RMS_EPS,
    })  # fmt: skip
    if role == "small":
        yield from _table("markers", {
            "form": "token",
            "open": OPEN,
            "open_id": tokenizer.id(OPEN),
            "close": CLOSE,
            "close_id": tokenizer.id(CLOSE),
        })  # fmt: skip
        yield from _table("handback", {
            "tau": recipe.hand_back.tau,
            "min_span": recipe.hand_back.min_span,
        })  # fmt: skip
    yield from _table("training", {"seed": seed, "data": "sr_edge.suites.demo, training stream"})
    folder = out / role
    for stage in ("pretrain", "sft") if role == "small" else ("pretrain",):
        spent = json.loads((folder / f"{stage}.json").read_text("utf-8"))["spent"]
        schedule = recipe.sft.schedule if stage == "sft" else plan.schedule
        yield from _table(f"training.{stage}", {
            "steps": schedule.num_steps,
            "tokens": spent["num_tokens"],
            "cpu_seconds": round(spent["cpu_seconds"]),
            "wall_seconds": round(spent["wall_seconds"]),
        })  # fmt: skip
    yield from _step_scores(folder, recipe)


def _step_scores(folder: Path, recipe: Recipe) -> Iterator[str]:
    """How often each kind of step was right after pre-training: what the markers then follow."""
    scored = json.loads((folder / "pretrain.json").read_text("utf-8"))["rates"]
    yield from _table("scores.steps", {
        "what": "share of steps right after pre-training, float32, greedy, led up to by the true text",
        "problems": recipe.num_evaluated,
        "seed": recipe.evaluation_seed,
        "command": "sr-edge train demo",
        "plan": round(scored["plan"], 4),
        "whole_problem": round(scored["whole"], 4),
        **{kind: round(rate, 4) for kind, rate in scored["by_kind"].items()},
        **{f"num_{kind}": num for kind, num in scored["num_by_kind"].items()},
    })  # fmt: skip


def _table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """TOML of flat values. JSON's strings, numbers and truths are written alike in TOML."""
    if name:
        yield ""
        yield f"[{name}]"
    for key, value in values.items():
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
