"""A trained run on the road to the laptop: the GGUF, what it was compared with, its passport and its card."""

import json
import shutil
import subprocess
import sys
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray
from tests.convert.making import make_checkpoint

from sr_edge.converting import Conversion, converter
from sr_edge.errors import EdgeError, UsageError
from sr_edge.gguf_header import read_header
from sr_edge.shelf import facts_of
from sr_train import export as export_module
from sr_train.card import PushError, model_card, push
from sr_train.export import ExportError, check, commands, export, mean_kl, sha256_of
from sr_train.recipe import DataPart, ExportPart, HandbackPart, HubPart, ModelPart, Recipe
from sr_train.run import RunFolder

RECIPE = Recipe(
    name="tiny run",
    model=ModelPart("Qwen/Qwen3-1.7B", dtype="float32"),
    data=DataPart("demo:train"),
    handback=HandbackPart(tau=0.25, min_span=2),
    export=ExportPart("q4_k_m", max_kl=2.0),
)


def trained_run(folder: Path, recipe: Recipe = RECIPE, stages: tuple[str, ...] = ("sft",)) -> RunFolder:
    """As the stages leave it, with random weights."""
    command = ["sr-edge", "train", "sft", "--out", "/home/somebody/secret/run"]
    run = RunFolder.open(folder, recipe, command, environ={})
    for seed, name in enumerate(("sft", "grpo")):
        if name not in stages:
            continue
        with run.stage("sft" if name == "sft" else "grpo") as stage:
            make_checkpoint(stage.model, "qwen2", hidden=256, inner=256, markers="token", seed=seed)
            note = {"v": 1, "markers": "token", "handback": {"tau": 0.25, "min_span": 2}}
            note |= {"base_model": "Qwen/Qwen3-1.7B", "training_run": recipe.name}
            (stage.model / "sr_edge.json").write_text(json.dumps(note))
            stage.finish({"steps": 7, "model": "model", "train_loss": 0.5})
    return run


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def evaluation(failed: int = 0) -> dict[str, Any]:
    arm = {
        "arm": "split", "kind": "split", "setting": None, "problems": 30, "answers": 480, "failed": failed,
        "pass_at_1": estimate(0.5), "share": estimate(0.1), "input_share": estimate(0.4),
        "seconds": estimate(12.0), "dollars": 0.01,
    }  # fmt: skip
    gap = {"arm": "split", "other": "random", "pass_at_1": estimate(0.2)}
    return {
        "differences": [gap],
        "arms": [arm, {**arm, "arm": "small"}],
        "settings": {"temperature": 0.6, "source": "/home/me/aime.jsonl"},
    }


@pytest.fixture(scope="module")
def exported_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunFolder, export_module.Exported, list[str]]:
    run = trained_run(tmp_path_factory.mktemp("run"), stages=("sft", "grpo"))
    (run.path / "evaluate").mkdir()
    (run.path / "evaluate" / "aime24.json").write_text(json.dumps(evaluation()))
    (run.path / "evaluate" / "done.json").write_text('{"figures": 3}')
    said: list[str] = []
    return run, export(run, report=said.append), said


def test_exported_file_is_the_last_stage_compared_and_ready_to_run(
    exported_run: tuple[RunFolder, export_module.Exported, list[str]],
) -> None:
    run, exported, said = exported_run
    assert exported.stage == "grpo"
    assert exported.gguf == run.path / "export" / "tiny-run-grpo-Q4_K_M.gguf"
    assert exported.verdict is not None
    assert exported.verdict["verdict"] == "close"
    kl = mean_kl(exported.verdict)
    assert kl is not None
    assert 0 < kl < 2
    facts = facts_of(read_header(exported.gguf))
    assert facts.quantization == "Q4_K_M"
    assert facts.markers is not None
    assert said[-1].startswith("to use it: sr-edge ask -m ")
    assert sorted(path.name for path in exported.gguf.parent.iterdir() if path.name[0] != ".") == [
        "README.md", "done.json", "recipe.toml", "tiny-run-grpo-Q4_K_M.gguf", "tiny-run-grpo-Q4_K_M.toml",
    ]  # fmt: skip
    asked = subprocess.run(
        [sys.executable, "-m", "sr_edge", "ask", "-m", str(exported.gguf), "Hi", "--max-tokens", "8"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "stopped at --max-tokens 8" in asked.stderr, asked.stderr  # random weights never end an answer


def test_passport_tells_the_run_and_its_figures_and_no_path(
    exported_run: tuple[RunFolder, export_module.Exported, list[str]],
) -> None:
    run, exported, _ = exported_run
    text = exported.passport.read_text()
    passport = tomllib.loads(text)
    assert passport["file"]["sha256"] == sha256_of(exported.gguf)
    assert passport["file"]["bytes"] == exported.gguf.stat().st_size
    assert passport["file"]["quantization"] == "Q4_K_M"
    assert passport["handback"] == {"tau": 0.25, "min_span": 2}
    assert passport["base"] == "Qwen/Qwen3-1.7B"
    assert passport["training"]["sft"]["steps"] == 7
    assert passport["training"]["commands"] == ["sr-edge train sft --out run"]
    assert passport["scores"]["aime24"]["split"]["pass_at_1"] == 0.5
    assert passport["scores"]["aime24"]["split"]["interval_95"] == [0.4, 0.6]
    assert set(passport["scores"]) == {"aime24"}
    assert passport["verify"]["vocabulary"].startswith("equal")
    assert passport["model"]["layers"] == 2
    assert str(run.path) not in text
    assert "/home" not in text


def test_card_states_how_the_figures_were_obtained(
    exported_run: tuple[RunFolder, export_module.Exported, list[str]],
) -> None:
    run, exported, _ = exported_run
    card = model_card(run, run.stage("grpo"), [exported])
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "\nbase_model: Qwen/Qwen3-1.7B\n" in card
    assert "| split | 50.0 % | 40.0 to 60.0 | 10.0 % | 40.0 % | 12.0 | 0.0100 | 480 | 30 |" in card
    assert "Measured with: temperature 0.6, source aime.jsonl." in card
    assert "passes 0.25, after 2 tokens at least" in card
    assert f"`{exported.gguf.name}`" in card
    assert "reward `gated`" in card
    assert "* `split` against `random`, on the same problems: +20.0 points (+10.0 to +30.0)" in card
    assert (exported.gguf.parent / "README.md").read_text() == card
    assert "not counted" not in card
    assert "/home" not in card
    assert str(run.path) not in card


def test_card_without_figures_says_so_and_with_failures_too(tmp_path: Path) -> None:
    run = trained_run(tmp_path)
    assert "None were measured" in model_card(run, run.stage("sft"))
    assert "GRPO" not in model_card(run, run.stage("sft"))
    (run.path / "evaluate").mkdir()
    (run.path / "evaluate" / "x.json").write_text(json.dumps(evaluation(failed=3)))
    assert "6 answers are not counted" in model_card(run, run.stage("sft"))


def test_file_that_is_too_far_off_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained_run(tmp_path, replace(RECIPE, export=ExportPart("q4_k_m", max_kl=0.1)))
    found = {"verdict": "close", "rows": [row("logits", "close", mean_kl=0.2)]}
    monkeypatch.setattr(export_module, "compared", lambda gguf, checkpoint: found)
    with pytest.raises(ExportError, match=r"mean KL divergence .* is 0\.2, and export\.max_kl = 0\.1.*Q8_0"):
        export(run)
    assert [
        path.name for path in (tmp_path / "export").iterdir() if path.suffix in (".gguf", ".making")
    ] == []
    assert not run.stage("export").is_done
    assert run.record()["stages"]["export"]["status"] == "failed"


def test_export_replaces_file_and_passport_together(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run")
    gguf = tmp_path / "elsewhere" / "mine.gguf"
    first = export(run, quantization="F16", out=gguf, verifies=False)
    assert first.verdict is None
    before = sha256_of(gguf)
    export(run, quantization="Q8_0", out=gguf, verifies=False)
    assert sha256_of(gguf) != before
    assert tomllib.loads(first.passport.read_text())["file"]["sha256"] == sha256_of(gguf)
    with pytest.raises(UsageError, match=r"ends in \.gguf"):
        export(run, out=tmp_path / "model.bin")


def test_run_without_a_model_is_refused(tmp_path: Path) -> None:
    run = trained_run(tmp_path, stages=())
    with pytest.raises(UsageError, match="no model is trained yet"):
        export(run)
    run = trained_run(tmp_path, stages=("sft",))
    with pytest.raises(UsageError, match="the stage grpo is not done"):
        export(run, stage="grpo")
    with pytest.raises(UsageError, match="leaves no model"):
        export(run, stage="annotate")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks by an old name
def test_adapter_is_merged_before_it_is_converted(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    base = make_checkpoint(tmp_path / "base", "qwen2", hidden=64, markers="token")
    recipe = replace(RECIPE, model=ModelPart(str(base), dtype="float32"), export=ExportPart("f32"))
    run = RunFolder.open(tmp_path / "run", recipe, ["x"], environ={})
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        adapted: Any = get_peft_model(model, lora)
    with run.stage("sft") as stage:
        adapted.save_pretrained(stage.model)
        stage.finish({})
    exported = export(run, verifies=False)
    ours, plain = tmp_path / "merged.gguf", tmp_path / "plain.gguf"
    whole = adapted.merge_and_unload()
    whole.save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path / "merged")
    converter()(Conversion(tmp_path / "merged", ours, "f32", None), lambda *_: None)
    converter()(Conversion(base, plain, "f32", None), lambda *_: None)
    name = "blk.0.ffn_down.weight"
    assert np.allclose(tensor(exported.gguf, name), tensor(ours, name), atol=1e-6)
    assert not np.allclose(tensor(exported.gguf, name), tensor(plain, name), atol=1e-3)


def tensor(path: Path, name: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = next(each.data for each in GGUFReader(path).tensors if each.name == name)
    return values


def row(what: str, judgement: str, **figures: float) -> dict[str, Any]:
    return {"what": what, "judgement": judgement, "found": "f", "detail": "d", "figures": figures}


def test_verdict_is_read_strictly() -> None:
    check({"rows": [row("tokens", "equal"), row("logits", "close", mean_kl=0.1)]}, 0.1)
    with pytest.raises(ExportError, match=r"differs from the checkpoint in template: d"):
        check({"rows": [row("template", "differs"), row("logits", "close", mean_kl=0.0)]}, None)
    with pytest.raises(ExportError, match="could not be compared"):
        check({"rows": [row("tokens", "equal"), row("logits", "not checked")]}, 0.5)
    check({"rows": [row("tokens", "equal"), row("logits", "not checked")]}, None)


def test_comparison_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"could not be compared.*none\.gguf"):
        export_module.compared(tmp_path / "none.gguf", tmp_path)


def test_nothing_is_pushed_offline_or_nowhere(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "a")
    with pytest.raises(UsageError, match=r"hub\.repo=OWNER/NAME"):
        push(run, run.stage("sft"))
    run = trained_run(tmp_path / "b", replace(RECIPE, hub=HubPart("somebody/something")))
    with pytest.raises(UsageError, match="nothing is pushed offline"):
        push(run, run.stage("sft"), offline=True)
    with pytest.raises(UsageError, match="nothing is pushed offline"):
        push(run, run.stage("sft"), environ={"HF_HUB_OFFLINE": "1"})


class FakeHub:
    """Takes what it is given, unless it is down."""

    endpoint = "https://hub.example"
    is_down = False

    def __init__(self, library_name: str) -> None:
        self.taken: list[str] = []

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        if self.is_down:
            raise ConnectionError("no route to\n  the hub")
        assert (private, exist_ok) == (True, True)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        TAKEN.extend(sorted(path.name for path in folder_path.iterdir()))

    def upload_file(self, *, repo_id: str, path_or_fileobj: Path, path_in_repo: str) -> None:
        assert path_or_fileobj.is_file()
        TAKEN.append(path_in_repo)


TAKEN: list[str] = []


def test_push_brings_model_card_recipe_file_and_passport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "is_down", True)
    run = trained_run(tmp_path, replace(RECIPE, hub=HubPart("somebody/something")))
    exported = export(run, verifies=False, quantization="F16")
    with pytest.raises(PushError, match="did not take somebody/something: no route to the hub; is there"):
        push(run, run.stage("sft"), [exported], environ={})
    monkeypatch.setattr(FakeHub, "is_down", False)
    TAKEN.clear()
    assert push(run, run.stage("sft"), [exported], environ={}) == "https://hub.example/somebody/something"
    assert {"README.md", "model.safetensors", "tokenizer.json", "sr_edge.json", "recipe.toml"} <= set(TAKEN)
    assert {exported.gguf.name, exported.passport.name} <= set(TAKEN)
    assert (run.stage("sft").model / "README.md").read_text().count("# something") == 1


def test_commands_are_told_once_each(tmp_path: Path) -> None:
    run = trained_run(tmp_path)
    trained_run(tmp_path, stages=())
    assert commands(run) == ["sr-edge train sft --out run"]
