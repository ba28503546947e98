"""The road to the laptop: a run's trained model as a GGUF that was compared with it, and its passport.

Whoever converts is found through `sr_edge.converting`, and the comparison is `sr-edge verify`'s, in a process
of its own: nothing here knows how either is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from sr_edge.converting import Conversion, converter
from sr_edge.errors import EdgeError, UsageError
from sr_edge.gguf_header import read_header
from sr_edge.markers import CLOSE, OPEN
from sr_train.run import STAGES, RunFolder, Stage, StageFolder, make_folder, now, versions, write_whole

Report = Callable[[str], None]

TRAINED: tuple[Stage, ...] = ("grpo", "sft")
"""The stages that leave a model, the later one first."""

_SIGNS = ("config.json", "adapter_config.json")
"""Of a model in a folder."""


class ExportError(EdgeError):
    """The file is not what was trained: it was written, compared, and not kept."""


@dataclass(frozen=True, slots=True)
class Exported:
    gguf: Path
    passport: Path
    stage: str
    verdict: Mapping[str, Any] | None
    """As `sr-edge verify --json` prints it; None if nothing was compared."""

    @property
    def command(self) -> str:
        return f"sr-edge ask -m {shlex.quote(str(self.gguf))}"


def export(
    run: RunFolder,
    *,
    stage: str | None = None,
    quantization: str | None = None,
    out: Path | None = None,
    verifies: bool = True,
    report: Report = lambda _: None,
) -> Exported:
    """Convert, quantise, compare, and write the passport and the run's model card.

    A file of this name that is there is replaced, once the new one was compared.

    Args:
        stage: whose model, `grpo` or `sft`; None for the last that is done.
        quantization: as `sr-edge convert --type` has it; None for the recipe's.
        out: the GGUF; None for one in the run's folder `export`.
    Raises:
        UsageError: no stage of this run is done; a package that this needs is not here.
        ExportError: the file is further from the checkpoint than its type, or `export.max_kl`, allows.
        EdgeError: it cannot be converted.
    """
    from sr_train.card import model_card

    recipe = run.recipe
    trained = _trained(run, stage)
    type = (quantization or recipe.export.quantization).lower()
    with run.stage("export") as place:
        gguf = out or place.path / f"{_file_name(recipe.name)}-{trained.name}-{type.upper()}.gguf"
        if gguf.suffix != ".gguf":
            raise UsageError(f"{gguf}: a model file ends in .gguf")
        make_folder(gguf.parent)
        with (
            _workshop(gguf) as workshop,
            _merged(trained, workshop, report) as checkpoint,
        ):
            made = workshop / gguf.name
            report(f"converting {trained.name}'s model to {type}")
            converter()(Conversion(checkpoint, made, type, source=None), lambda what, done, whole: None)
            verdict = None
            if verifies:
                report("comparing it with the checkpoint")
                verdict = compared(made, checkpoint)
                check(verdict, recipe.export.max_kl)
            passport = tomlkit.dumps(passport_table(run, trained, made, checkpoint, verdict))
            beside = gguf.with_suffix(".toml")
            beside.unlink(missing_ok=True)  # never the passport of another file
            os.replace(made, gguf)
            write_whole(beside, passport)
        exported = Exported(gguf, beside, trained.name, verdict)
        write_whole(place.path / "README.md", model_card(run, trained, [exported]))
        result = {"gguf": gguf.name, "type": type, "stage": trained.name, "sha256": sha256_of(gguf)}
        place.finish({**result, "verdict": verdict["verdict"] if verdict else None})
    report(f'to use it: {exported.command} "PROBLEM"')
    return exported


def compared(gguf: Path, checkpoint: Path) -> dict[str, Any]:
    """What `sr-edge verify` says of them.

    Raises:
        EdgeError: it could not compare.
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "sr_edge",
        "verify",
        str(gguf),
        "--against",
        str(checkpoint),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, ExportError.exit_code):
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise EdgeError(f"the file could not be compared with the checkpoint: {said[-1]}")
    try:
        verdict: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise EdgeError(f"the file could not be compared with the checkpoint: {said[-1]}") from None
    return verdict


def check(verdict: Mapping[str, Any], max_kl: float | None) -> None:
    """Raises: ExportError: the file differs, or is further from the checkpoint than `export.max_kl`."""
    wrong = [
        f"{row['what']}: {row['detail'] or row['found']}"
        for row in verdict["rows"]
        if row["judgement"] == "differs"
    ]
    if wrong:
        raise ExportError(
            f"the file differs from the checkpoint in {'; '.join(wrong)}: choose a finer type with "
            "--type Q8_0, or look with `sr-edge verify`"
        )
    kl = mean_kl(verdict)
    if max_kl is None:
        return
    if kl is None:
        raise ExportError(
            "export.max_kl is set, and the logits could not be compared: install 'sr-edge[verify]', or run "
            "it where the checkpoint fits in memory in 32 bits"
        )
    if kl > max_kl:
        raise ExportError(
            f"the mean KL divergence from the checkpoint is {kl:.3g}, and export.max_kl = {max_kl:g}: choose "
            "a finer type with --type Q8_0"
        )


def mean_kl(verdict: Mapping[str, Any]) -> float | None:
    """Nats, of the checkpoint's next token against the file's; None where it was not compared."""
    return next((row["figures"]["mean_kl"] for row in verdict["rows"] if "mean_kl" in row["figures"]), None)


# --- the passport ----------------------------------------------------------------------------------------


def passport_table(
    run: RunFolder, trained: StageFolder, gguf: Path, checkpoint: Path, verdict: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the file is, how it was trained, and what it scored; no path of this machine."""
    recipe = run.recipe
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    note = json.loads((checkpoint / "sr_edge.json").read_text("utf-8"))
    header = read_header(gguf)
    table: dict[str, Any] = {
        "name": f"{recipe.name} ({trained.name})",
        "role": "small",
        "base": _name_of(recipe.model.base),
        "about": recipe.about,
        "exported": now(),
        "file": {
            "name": gguf.name,
            "bytes": gguf.stat().st_size,
            "sha256": sha256_of(gguf),
            "quantization": gguf.stem.rpartition("-")[2],
        },
        "model": {
            "architecture": config["model_type"],
            "parameters": header.num_parameters,
            "layers": config["num_hidden_layers"],
            "hidden": config["hidden_size"],
            "heads": config["num_attention_heads"],
            "inner": config["intermediate_size"],
            "context": config["max_position_embeddings"],
            "vocabulary": config["vocab_size"],
            "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        },
        "markers": {"form": note["markers"], "open": OPEN, "close": CLOSE},
        "handback": note["handback"],
        "training": {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "data": _name_of(recipe.data.source),
            "hardware": recipe.hardware,
            "commands": commands(run),
            **{name: facts for name in STAGES[:3] if (facts := _stage_facts(run, name))},
            "versions": versions(),
        },
    }
    if verdict is not None:
        table["verify"] = {
            "verdict": verdict["verdict"],
            "against": "the trained checkpoint, in 32 bits",
            **{
                row["what"].replace(" ", "_"): f"{row['judgement']}: {row['found']}"
                for row in verdict["rows"]
            },
        }
    if scores := scores_of(run):
        table["scores"] = scores
    return table


def scores_of(run: RunFolder) -> dict[str, Any]:
    """The figures of each evaluation of this run, by the file's name."""
    scores: dict[str, Any] = {}
    for name, figures in evaluations(run):
        arms = {
            arm["arm"]: {
                "pass_at_1": _rounded(arm["pass_at_1"]["value"]),
                "interval_95": [_rounded(arm["pass_at_1"]["low"]), _rounded(arm["pass_at_1"]["high"])],
                "share": _rounded(arm["share"]["value"]),
                "input_share": _rounded(arm["input_share"]["value"]),
                "seconds": _rounded(arm["seconds"]["value"]),
                "dollars": _rounded(arm["dollars"]),
                "problems": arm["problems"],
                "answers": arm["answers"],
                "failed": arm["failed"],
            }
            for arm in figures["arms"]
        }
        settings = {key: value for key, value in figures.get("settings", {}).items() if _is_flat(value)}
        scores[_key(name)] = {"settings": {k: _without_folders(v) for k, v in settings.items()}, **arms}
    return scores


def evaluations(run: RunFolder) -> Iterator[tuple[str, dict[str, Any]]]:
    """The evaluations that this run holds: their names and what their JSON says."""
    for path in sorted((run.path / "evaluate").rglob("*.json")):
        try:
            figures = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(figures, dict) and isinstance(figures.get("arms"), list):
            yield path.relative_to(run.path / "evaluate").with_suffix("").as_posix(), figures


def commands(run: RunFolder) -> list[str]:
    """The command lines that made this run, without the folders of this machine; each once."""
    lines = (shlex.join(_without_folders(word) for word in call["command"]) for call in run.record()["calls"])
    return list(dict.fromkeys(lines))


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- helpers ---------------------------------------------------------------------------------------------


def _trained(run: RunFolder, stage: str | None) -> StageFolder:
    for name in TRAINED:
        folder = run.stage(name)
        if stage in (None, name) and folder.is_done and _has_model(folder):
            return folder
        if stage == name:
            raise UsageError(f"{run.path}: the stage {stage} is not done; run `sr-edge train {stage}` first")
    if stage is not None:
        raise UsageError(f"the stage {stage} leaves no model: choose one of {', '.join(TRAINED)}")
    raise UsageError(f"{run.path}: no model is trained yet; run `sr-edge train sft` or `sr-edge train grpo`")


def _has_model(folder: StageFolder) -> bool:
    return any((folder.model / sign).is_file() for sign in _SIGNS)


@contextmanager
def _merged(trained: StageFolder, workshop: Path, report: Report) -> Iterator[Path]:
    """The stage's model as a whole checkpoint: an adapter is merged into its base first."""
    if not (trained.model / "adapter_config.json").is_file():
        yield trained.model
        return
    from sr_train.checkpoint import load_for_inference, save_trained

    report("merging the adapter")
    recipe = trained.run.recipe
    loaded = load_for_inference(
        str(trained.model), recipe.model.dtype, trained.run.path / "cache", device="cpu"
    )
    yield save_trained(
        loaded,
        workshop / "merged",
        handback=recipe.handback,
        base_model=recipe.model.base,
        training_run=recipe.name,
    )


@contextmanager
def _workshop(gguf: Path) -> Iterator[Path]:
    """A folder beside the file to come, gone afterwards; one that a killed export left is removed."""
    folder = gguf.with_name(f".{gguf.stem}.making")
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stage_facts(run: RunFolder, name: Stage) -> dict[str, Any]:
    entry = run.record().get("stages", {}).get(name)
    if not entry:
        return {}
    facts = {key: entry[key] for key in ("started", "ended", "status") if key in entry}
    folder = run.stage(name)
    if folder.is_done:
        facts |= {key: value for key, value in folder.result().items() if _is_flat(value) and key != "model"}
    return {key: _without_folders(value) for key, value in facts.items()}


def _is_flat(value: object) -> bool:
    return isinstance(value, str | int | float | bool) or (
        isinstance(value, Sequence) and all(isinstance(each, str | int | float | bool) for each in value)
    )


def _without_folders(value: Any) -> Any:
    """Of an absolute path its last name: nobody's folders in what may be published."""
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def _name_of(base: str) -> str:
    return Path(base).name if Path(base).expanduser().exists() else base


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _key(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name)


def _rounded(value: float) -> float:
    return round(value, 6)
