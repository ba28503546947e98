"""A recipe: one TOML file that says all of one run, read strictly and frozen.

Ours are the keys that the libraries do not know (markers, spans, rollouts, rewards, prices). Whatever
transformers and TRL know (learning rates, schedules, precision, batch sizes, packing) stands under their own
names in the tables `[sft.trainer]` and `[grpo.trainer]`, and goes to `SFTConfig` and `GRPOConfig` as it is.
Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from sr_edge.errors import UsageError

Table = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelPart:
    """The small model, before the run."""

    base: str
    """A folder, a repository of the hub, or `demo:base`, `demo:small`, `demo:big`: the built-in ones."""
    revision: str | None = None
    """Of a repository: a commit, tag or branch."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class AdapterPart:
    """Training a part of the model; without this table all of it is trained."""

    kind: Literal["lora", "qlora"] = "lora"
    rank: int = 32
    alpha: int = 64
    dropout: float = 0.0
    targets: str = "all-linear"


@dataclass(frozen=True, slots=True)
class HandbackPart:
    """When the small model takes the pen back; goes along with the model, into its GGUF."""

    tau: float = 0.5
    min_span: int = 1


@dataclass(frozen=True, slots=True)
class DataPart:
    """Where problems come from. See `sr_train.problems.read_problems` for what a source can be."""

    source: str
    split: str = "train"
    limit: int | None = None
    max_trace_tokens: int | None = None
    validation: int = 0
    """Problems kept out of the training, from the source's end."""


@dataclass(frozen=True, slots=True)
class AnnotatePart:
    """How difficult spans are found: by a judge's opinion, by measuring this small model, or by both."""

    labeller: Literal["judge", "measured", "both", "snippets"] = "judge"
    """`both`: what the judge marks and the measurement confirms. `snippets`: the paper's way, verbatim."""
    judge: str | None = None
    """An endpoint's name from `sr-edge remote list`, or its URL."""
    judge_model: str | None = None
    judge_temperature: float = 0.0
    concurrency: int = 8
    requests_per_minute: float | None = None
    min_difficulty: int = 2
    """Of 0 to 3: from here on a step is marked."""
    target_share: float = 0.2
    """Of the characters, at most; the most difficult steps come first."""
    min_span_chars: int = 8
    merge_gap_chars: int = 10
    surprisal_quantile: float = 0.8
    """Steps whose mean surprisal is in the highest part of their trace are tried out."""
    continuations: int = 4
    """Of each step that is tried out, with the large model's span and without it."""
    min_gain: float = 0.25
    """By which a span must raise the share of right continuations."""
    min_snippet_score: float = 90.0
    """Of 100, rapidfuzz's: below it a snippet is not found in the trace."""


@dataclass(frozen=True, slots=True)
class SftPart:
    """Teaching to ask, on annotated traces."""

    span_loss: Literal["mask", "train", "close"] = "train"
    """What is learned within a span. `mask`: nothing; `train`: its words too, as in the paper; `close`: only
    when to take the pen back, not the words."""
    local_share: float = 0.0
    """Of the rows: marked steps stay in the text without markers and without loss, as after a remote that
    failed."""
    trainer: Table = field(default_factory=dict)
    """For TRL's SFTConfig, under its own names."""


@dataclass(frozen=True, slots=True)
class RolloutPart:
    """How answers are written during GRPO and evaluation."""

    engine: Literal["transformers", "vllm"] = "transformers"
    max_tokens: int = 4096
    """Of an answer, spans included."""
    max_span_tokens: int = 512
    soft_span_tokens: int = 256
    max_spans: int = 12
    temperature: float = 1.0
    max_rows: int = 256
    """Answers that are written at once."""
    remote_dropout: float = 0.0
    """Share of the rollouts without a large model, so that the small one does not unlearn its own steps."""
    failed: Literal["drop", "local"] = "drop"
    """A rollout whose large model failed: left out of the loss and its group, or kept as it went on alone."""


@dataclass(frozen=True, slots=True)
class BigPart:
    """Who writes the spans."""

    model: str | None = None
    """A second local checkpoint: a folder, a repository, `demo:big`."""
    remote: str | None = None
    """An endpoint: its name from `sr-edge remote list`, or its URL."""
    remote_model: str | None = None
    fill: Literal["big", "self"] = "big"
    """`self`: the small model writes its spans itself, as in the paper. For comparison."""
    temperature: float = 0.0
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    concurrency: int = 16
    attempts: int = 3
    timeout: float = 120.0
    cache: bool = True
    """Keep what was written at temperature 0, by prefix, in the run's folder."""
    max_dollars: float | None = None
    """The run stops before it has spent more."""


@dataclass(frozen=True, slots=True)
class LatencyPart:
    """What a token costs, in seconds on the user's machine and in dollars. See `sr_train.latency`."""

    rtt: float = 0.3
    """Seconds from asking to the large model's beginning, beyond its reading."""
    big_prefill: float = 2000.0
    """Tokens a second."""
    big_decode: float = 40.0
    small_prefill: float = 60.0
    small_decode: float = 20.0
    dollars_in: float = 0.0
    """A million tokens."""
    dollars_out: float = 0.0
    calibration: str | None = None
    """A file of measured events that these are fitted to; see `sr-edge train evaluate --calibrate`."""


@dataclass(frozen=True, slots=True)
class RewardPart:
    """What a rollout is worth. See `sr_train.rewards`."""

    kind: Literal["gated", "budget", "paper"] = "gated"
    lam: float = 0.5
    """Below 1: the part of a right answer's worth that asking for all of it costs."""
    unit: Literal["seconds", "dollars", "share"] = "seconds"
    """What cost is counted in."""
    malformed: float = 0.1
    explore: float = 0.05
    """For asking where nobody in the group is right."""
    never_asked: float = 0.1
    """Against a wrong answer that did not ask where only those that asked are right."""
    target_share: float | None = None
    """`budget`: the share of the large model's tokens that is to be held."""
    dual_rate: float = 2.0
    """`budget`: how fast the price of a token follows the share."""


@dataclass(frozen=True, slots=True)
class GrpoPart:
    """Reinforcement learning with rollouts that really ask."""

    num_prompts: int = 8
    """Problems a step, of each process."""
    num_generations: int = 8
    """Rollouts of each."""
    decisions_only: bool = False
    """The loss lies on the positions where asking was decided, and nowhere else."""
    trainer: Table = field(default_factory=dict)
    """For TRL's GRPOConfig, under its own names."""


@dataclass(frozen=True, slots=True)
class EvaluatePart:
    """What is measured at the end of a stage, and by `sr-edge train evaluate RECIPE`."""

    source: str = "demo:eval"
    split: str = "test"
    """Of a data set of the hub."""
    limit: int | None = 500
    arms: tuple[str, ...] = ("small", "big", "split", "random")
    samples: int = 1
    temperature: float = 0.0
    biases: tuple[float, ...] = ()
    """Added to the opening marker's logit, one arm `split` each: the curve."""


@dataclass(frozen=True, slots=True)
class ExportPart:
    """The road to the laptop."""

    quantization: str = "Q4_K_M"
    max_kl: float | None = None


@dataclass(frozen=True, slots=True)
class LogPart:
    """Where the figures of a run go, besides its own metrics.jsonl."""

    to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ("tensorboard",)
    project: str = "sr-edge"


@dataclass(frozen=True, slots=True)
class HubPart:
    """Where the trained model is pushed to; nothing is unless `repo` is named."""

    repo: str | None = None
    private: bool = True


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    model: ModelPart
    data: DataPart
    about: str = ""
    seed: int = 0
    hardware: str = ""
    """What it is meant for, in words."""
    num_processes: int = 1
    """That it is meant to be launched with; the batch sizes are a process's."""
    adapter: AdapterPart | None = None
    handback: HandbackPart = HandbackPart()
    annotate: AnnotatePart = AnnotatePart()
    sft: SftPart = SftPart()
    rollout: RolloutPart = RolloutPart()
    big: BigPart = BigPart()
    latency: LatencyPart = LatencyPart()
    reward: RewardPart = RewardPart()
    grpo: GrpoPart = GrpoPart()
    evaluate: EvaluatePart = EvaluatePart()
    export: ExportPart = ExportPart()
    log: LogPart = LogPart()
    hub: HubPart = HubPart()


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the program, by name."""
    for folder in (Path(str(files("sr_train"))) / "recipes", Path(__file__).resolve().parents[1] / "recipes"):
        found = {path.stem: path for path in sorted(folder.glob("*.toml"))}
        if found:
            return found
    return {}


def load_recipe(named: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, or of a name in `shipped_recipes`; `extends` names one that it starts from.

    Args:
        settings: `key=value` each, the key dotted (`reward.lam=0.3`), the value as TOML writes it; a value
            that is no TOML is taken as text.
    Raises:
        UsageError: a file is missing or no TOML; a key is unknown, a value of another type or out of range.
    """
    table = _read(named, seen=())
    for setting in settings:
        _set(table, setting)
    recipe = _build(Recipe, table, "")
    assert isinstance(recipe, Recipe)
    _check(recipe)
    return recipe


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """As TOML would hold it: every setting spelled out, those that are None left out."""
    table: dict[str, Any] = _plain(dataclasses.asdict(recipe))
    return table


# --- reading ---------------------------------------------------------------------------------------------


def _read(named: str, seen: tuple[str, ...]) -> dict[str, Any]:
    path = Path(named)
    shipped = shipped_recipes()
    if path.suffix != ".toml" and named in shipped:
        path = shipped[named]
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"no recipe {named}: name a file, or one of {', '.join(shipped) or 'none that is here'}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str) or base in seen:
        raise UsageError(f"{path}: extends = {base!r} leads nowhere")
    beside = path.parent / f"{base}.toml"
    return _merged(_read(str(beside) if beside.is_file() else base, (*seen, base)), table)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        below = base.get(key)
        both_tables = isinstance(below, dict) and isinstance(value, Mapping)
        base[key] = _merged(below, value) if both_tables and isinstance(below, dict) else value
    return base


def _set(table: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set {setting}: write it as key=value, for example reward.lam=0.3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {setting}: {part} is no table")
    table[parts[-1]] = value


def _build(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    names = [each.name for each in dataclasses.fields(kind)]
    for key in table:
        if key not in names:
            raise UsageError(f"the recipe has no setting {where}{key}: there are {', '.join(names)}")
    needed = [
        each.name
        for each in dataclasses.fields(kind)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    for name in needed:
        if name not in table:
            raise UsageError(f"the recipe lacks {where}{name}")
    return kind(**{key: _value(hints[key], value, f"{where}{key}") for key, value in table.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = (each for each in args if each is not type(None))
        return _value(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"the recipe's {where} is a table")
        return _build(hint, value, f"{where}.")
    if origin is Literal:
        if value not in args:
            raise UsageError(f"the recipe's {where} = {value!r}: it can be {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UsageError(f"the recipe's {where} = {value!r}: it is a list")
        return tuple(_value(args[0], each, where) for each in value)
    if origin is not None:  # a table for TRL
        if not isinstance(value, dict):
            raise UsageError(f"the recipe's {where} is a table")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UsageError(f"the recipe's {where} = {value!r}: it is {_ARTICLES[hint]}")
    if hint is float and not math.isfinite(value):
        raise UsageError(f"the recipe's {where} = {value}: it is a finite number")
    return value


_ARTICLES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _check(recipe: Recipe) -> None:
    reward, rollout, grpo, annotate = recipe.reward, recipe.rollout, recipe.grpo, recipe.annotate
    ranges = (
        (0 <= reward.lam < 1, f"reward.lam = {reward.lam}: from 0 to below 1, so that right beats wrong"),
        (0 <= reward.malformed < 1, f"reward.malformed = {reward.malformed}: from 0 to below 1, likewise"),
        (reward.explore >= 0 and reward.never_asked >= 0, "reward.explore and never_asked: 0 or more"),
        (reward.dual_rate > 0, f"reward.dual_rate = {reward.dual_rate}: above 0"),
        (
            reward.unit != "dollars" or recipe.latency.dollars_in + recipe.latency.dollars_out > 0,
            "reward.unit = dollars needs prices: set latency.dollars_in and dollars_out",
        ),
        (0 < recipe.handback.tau < 1, f"handback.tau = {recipe.handback.tau}: between 0 and 1"),
        (recipe.handback.min_span >= 0, "handback.min_span: 0 or more"),
        (0 <= rollout.remote_dropout < 1, f"rollout.remote_dropout = {rollout.remote_dropout}: below 1"),
        (0 <= recipe.sft.local_share < 1, f"sft.local_share = {recipe.sft.local_share}: below 1"),
        (grpo.num_generations >= 2, "grpo.num_generations: at least 2, since an advantage is within a group"),
        (grpo.num_prompts >= 1, "grpo.num_prompts: at least 1"),
        (rollout.max_tokens >= 1 and rollout.max_span_tokens >= 1, "rollout.max_tokens: at least 1"),
        (rollout.temperature >= 0, "rollout.temperature: 0 or more"),
        (rollout.max_rows >= 1, "rollout.max_rows: at least 1"),
        (rollout.max_spans >= 0, "rollout.max_spans: 0 or more"),
        (recipe.data.validation >= 0, f"data.validation = {recipe.data.validation}: 0 or more"),
        (recipe.big.temperature >= 0, "big.temperature: 0 or more"),
        (recipe.big.concurrency >= 1, "big.concurrency: at least 1"),
        (recipe.big.attempts >= 1, "big.attempts: at least 1"),
        (recipe.big.timeout > 0, f"big.timeout = {recipe.big.timeout}: above 0"),
        (recipe.evaluate.samples >= 1, "evaluate.samples: at least 1"),
        (recipe.evaluate.temperature >= 0, "evaluate.temperature: 0 or more"),
        (recipe.adapter is None or recipe.adapter.rank >= 1, "adapter.rank: at least 1"),
        (recipe.num_processes >= 1, "num_processes: at least 1"),
        (annotate.concurrency >= 1, "annotate.concurrency: at least 1"),
        (
            annotate.requests_per_minute is None or annotate.requests_per_minute > 0,
            "annotate.requests_per_minute: above 0",
        ),
        (
            0 <= annotate.surprisal_quantile <= 1,
            f"annotate.surprisal_quantile = {annotate.surprisal_quantile}: from 0 to 1",
        ),
        (
            0 <= annotate.target_share <= 1,
            f"annotate.target_share = {annotate.target_share}: a share, from 0 to 1",
        ),
        (annotate.continuations >= 0, "annotate.continuations: 0 or more"),
        (
            reward.kind != "budget" or (reward.target_share is not None and 0 < reward.target_share < 1),
            "reward.kind = budget needs reward.target_share, between 0 and 1",
        ),
        (
            not (recipe.big.model and recipe.big.remote),
            "big.model and big.remote exclude each other: one large model writes the spans",
        ),
    )
    for holds, message in ranges:
        if not holds:
            raise UsageError(f"the recipe's {message}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value
