"""Runs the arms over the problems. Answers are kept as they come: who is killed goes on later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from sr_edge.errors import UsageError
from sr_edge.events import to_json
from sr_train.evaluate.arms import MATCHED, Arm, arms_of
from sr_train.evaluate.figures import Figures, figures_of
from sr_train.evaluate.records import Journal, Record, escalated, record_of
from sr_train.evaluate.sweeps import find_setting, run_arm, share_of
from sr_train.grading import is_gradable
from sr_train.latency import LatencyModel
from sr_train.problems import Problem, read_problems
from sr_train.recipe import Recipe
from sr_train.rollout.requests import Rollout, RolloutEngine

PILOT = 64
"""Problems on which a baseline's setting is looked for: for its share only, whatever it gets right."""

MAX_NATS = 8.0
"""More uncertain than any token of a trained model is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, besides the arms and the problems."""

    samples: int = 1
    """Answers to each problem."""
    temperature: float = 0.0
    seed: int = 0
    instruction: str = ""
    """Follows each question."""
    block: int = 256
    """Answers that are asked for at once and then kept: 1 for an engine that writes one at a time."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.block < 1:
            raise UsageError(f"{self.samples} samples in blocks of {self.block}: at least 1 of each")
        if self.temperature == 0 and self.samples > 1:
            raise UsageError(
                f"{self.samples} samples at temperature 0 would all be the same: "
                "take 1, or a higher temperature"
            )


Report = Callable[[str, int, int], None]
"""Hears of an arm, how many of its answers are there, and how many there will be."""


def evaluate_recipe(
    recipe: Recipe,
    engine: RolloutEngine,
    folder: Path,
    name: str,
    *,
    about: Mapping[str, Any],
    block: int = 256,
    instruction: str = "",
    offline: bool = False,
    events: Path | None = None,
    report: Report = lambda arm, done, total: None,
) -> Figures:
    """What the recipe's table `evaluate` asks for, as `folder/name.jsonl`, `.json`, `.md` and plots.

    Args:
        name: of this evaluation among others in the folder.
        about: what was measured (the models, their files), for the report; with other facts it is another
            evaluation.
        block, instruction: see `Plan`.
        events: see `evaluate`.
    Raises:
        UsageError: the problems cannot be read, an arm is unknown, the journal is another evaluation's.
    """
    from sr_train.evaluate.report import write_report

    part = recipe.evaluate
    problems = read_problems(
        part.source, split=part.split, limit=part.limit, seed=recipe.seed, offline=offline
    )
    figures = evaluate(
        engine,
        problems,
        arms_of(part.arms, part.biases),
        Plan(part.samples, part.temperature, recipe.seed, instruction, block),
        LatencyModel.of(recipe.latency),
        folder / f"{name}.jsonl",
        about={**_writers(recipe), **about, "source": part.source, "split": part.split, "limit": part.limit},
        events=events,
        report=report,
    )
    write_report(figures, folder, name)
    return figures


def digest_of(model: Path) -> str | None:
    """Tells weights from others under the same name: of a GGUF, or of a checkpoint's folder; None without."""
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
    found = sha256()
    for path in files:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            found.update(file_digest(file, "sha256").digest())
    return found.hexdigest()[:16] if files else None


def _writers(recipe: Recipe) -> dict[str, Any]:
    """What else of a recipe an answer depends on: who writes its spans, and how long they may be."""
    rollout, big = recipe.rollout, recipe.big
    named = big.model or " ".join(filter(None, (big.remote, big.remote_model)))
    return {
        "large model": "the small one itself" if big.fill == "self" else named or "none",
        "its temperature": big.temperature,
        "limits": {
            "max_tokens": rollout.max_tokens,
            "max_span_tokens": rollout.max_span_tokens,
            "soft_span_tokens": rollout.soft_span_tokens,
            "max_spans": rollout.max_spans,
        },
    }


def evaluate(
    engine: RolloutEngine,
    problems: Sequence[Problem],
    arms: Sequence[Arm],
    plan: Plan,
    latency: LatencyModel,
    journal: Path,
    *,
    about: Mapping[str, Any],
    events: Path | None = None,
    report: Report = lambda arm, done, total: None,
) -> Figures:
    """Answer all problems in all arms, and say what came of it.

    What `random`, `periodic`, the entropies and `cascade` need besides (the share of `split`, the answers of
    `small` and `big`) is measured too where no arm asks for it, and left out of the figures.

    Args:
        journal: the answers as JSON lines; those in it already are not asked for again.
        about: what is measured, for the figures and to tell one journal from another.
        events: a file that the events of each answer are appended to, for `LatencyPart.calibration`.
    Raises:
        UsageError: the journal is another evaluation's, or cannot be written.
    """
    gradable = [problem for problem in problems if is_gradable(problem.answer)]
    if not gradable:
        raise UsageError("none of the problems has an answer that can be compared with")
    settings = {
        **about,
        "problems": len(gradable),
        "ungradable": len(problems) - len(gradable),
        "samples": plan.samples,
        "temperature": plan.temperature,
        "seed": plan.seed,
        "instruction": plan.instruction,
        "latency": asdict(latency.part),
    }
    run = _Evaluation(engine, gradable, plan, latency, Journal(journal, settings), events, report)
    answered = {arm: run.answers(arm) for arm in _in_order(arms)}
    kept = {run.settled(arm): records for arm, records in answered.items()}
    return figures_of(kept, settings, seed=plan.seed)


def _in_order(arms: Sequence[Arm]) -> list[Arm]:
    """Once each, those last that are matched to another."""
    unique = list(dict.fromkeys(arms))
    return sorted(unique, key=lambda arm: arm.kind in MATCHED)


class _Evaluation:
    """One evaluation under way; the only one that writes into its journal."""

    def __init__(
        self,
        engine: RolloutEngine,
        problems: Sequence[Problem],
        plan: Plan,
        latency: LatencyModel,
        journal: Journal,
        events: Path | None,
        report: Report,
    ) -> None:
        self._engine = engine
        self._problems = problems
        self._plan = plan
        self._latency = latency
        self._journal = journal
        self._events = events
        self._report = report
        self._answered: dict[str, list[Record]] = {}

    def answers(self, arm: Arm) -> list[Record]:
        """One record a problem and sample, in that order."""
        arm = self.settled(arm)
        if arm.name not in self._answered:
            is_cascade = arm.kind == "cascade"
            self._answered[arm.name] = self._cascade(arm) if is_cascade else self._asked(arm)
        return self._answered[arm.name]

    def settled(self, arm: Arm) -> Arm:
        """The arm with its setting, which is looked for where it is not given."""
        if arm.kind not in MATCHED or arm.setting is not None:
            return arm
        setting = self._journal.setting(arm.name)
        if setting is None:
            target = _share(self.answers(Arm("split")))
            setting = self._cascade_setting(target) if arm.kind == "cascade" else self._matched(arm, target)
            self._journal.keep_setting(arm.name, setting)
        return replace(arm, setting=setting)

    def _asked(self, arm: Arm) -> list[Record]:
        plan = self._plan
        cells = [(problem, sample) for problem in self._problems for sample in range(plan.samples)]
        open_cells = [cell for cell in cells if self._known(arm, cell) is None]
        self._report(arm.name, len(cells) - len(open_cells), len(cells))
        for start in range(0, len(open_cells), plan.block):
            block = open_cells[start : start + plan.block]
            requests = [
                arm.request(
                    problem,
                    sample,
                    seed=plan.seed,
                    temperature=plan.temperature,
                    instruction=plan.instruction,
                )
                for problem, sample in block
            ]
            for (problem, sample), rollout in zip(block, self._engine.run(requests), strict=True):
                self._keep_events(rollout)
                self._journal.add(record_of(arm.name, problem, sample, rollout, self._latency))
            left = max(0, len(open_cells) - start - plan.block)
            self._report(arm.name, len(cells) - left, len(cells))
        return [record for cell in cells for record in self._all_known(arm, cell)]

    def _known(self, arm: Arm, cell: tuple[Problem, int]) -> Record | None:
        problem, sample = cell
        return self._journal.record(arm.name, problem.id, sample)

    def _all_known(self, arm: Arm, cell: tuple[Problem, int]) -> list[Record]:
        """With one that failed again: it is counted as such."""
        problem, sample = cell
        record = self._journal.latest(arm.name, problem.id, sample)
        return [] if record is None else [record]

    def _cascade(self, arm: Arm) -> list[Record]:
        assert arm.setting is not None
        pairs = zip(self.answers(Arm("small")), self.answers(Arm("big")), strict=True)
        return [
            escalated(small, big, arm.name)
            if small.mean_logprob < arm.setting
            else replace(small, arm=arm.name)
            for small, big in pairs
        ]

    def _cascade_setting(self, target: float) -> float:
        """The answers are there already: which of them are thrown away is all that the setting decides."""
        smalls, bigs = self.answers(Arm("small")), self.answers(Arm("big"))
        return cascade_setting(smalls, bigs, target)

    def _matched(self, arm: Arm, target: float) -> float:
        if target == 0:
            return 0.0 if arm.kind in ("random", "periodic") else MAX_NATS
        pilot = self._problems[:PILOT]
        plan = self._plan

        def share(setting: float) -> float:
            self._report(f"{arm.name}, looking for its setting", 0, len(pilot))
            rollouts = run_arm(
                self._engine,
                replace(arm, setting=setting),
                pilot,
                plan.temperature,
                plan.seed,
                1,
                plan.instruction,
            )
            return share_of(rollouts)

        # split's share on the same few problems, so that it is like with like
        chosen = {problem.id for problem in pilot}
        aim = _share([record for record in self.answers(Arm("split")) if record.problem in chosen])
        tolerance = max(0.002, 0.03 * aim)
        if arm.kind in ("random", "periodic"):
            found = find_setting(share, aim, low=0.0, high=min(1.0, 2 * aim), first=aim, tolerance=tolerance)
        else:
            found = find_setting(share, aim, low=MAX_NATS, high=0.0, first=1.0, tolerance=tolerance)
        return found.setting

    def _keep_events(self, rollout: Rollout) -> None:
        if self._events is None:
            return
        self._events.parent.mkdir(parents=True, exist_ok=True)
        with self._events.open("a", encoding="utf-8") as file:
            file.write("".join(f"{to_json(event)}\n" for event in rollout.events))


def cascade_setting(smalls: Sequence[Record], bigs: Sequence[Record], target: float) -> float:
    """The mean log-probability below which answers are given up, so that the share is nearest to `target`."""
    pairs = sorted(zip(smalls, bigs, strict=True), key=lambda pair: pair[0].mean_logprob)
    remote, tokens = 0, sum(small.tokens for small in smalls)
    best = (abs(target), float("-inf"))
    for n, (small, big) in enumerate(pairs, start=1):
        remote += big.remote_tokens
        tokens += big.tokens
        following = pairs[n][0].mean_logprob if n < len(pairs) else 1.0
        if following > small.mean_logprob:  # equals are given up together
            middle = (small.mean_logprob + following) / 2
            best = min(best, (abs(remote / tokens - target), middle))
    return best[1]


def _share(records: Sequence[Record]) -> float:
    counted = [record for record in records if not record.failed]
    tokens = sum(record.tokens for record in counted)
    return sum(record.remote_tokens for record in counted) / tokens if tokens else 0.0
