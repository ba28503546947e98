"""`sr-edge train annotate`: worked solutions in, the same with their difficult steps marked out.

Whatever costs money or time (replies, measurements) is in the journal before it is used, so a run that was
ended in any way goes on where it was. The data set is made of the journal anew each time, in seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_edge.errors import RemoteError, UsageError
from sr_edge.files import locked
from sr_edge.markers import SPELLINGS
from sr_train.annotate import judge, measured, snippets
from sr_train.annotate.asking import Chat, Question, ask_all, open_judge
from sr_train.annotate.card import write_card
from sr_train.annotate.journal import Journal, key_of
from sr_train.annotate.spans import Rule, choose, snapped, with_markers
from sr_train.annotate.statistics import Marked, figures, write_statistics
from sr_train.annotate.steps import Step, split_steps
from sr_train.problems import Problem
from sr_train.recipe import Recipe

if TYPE_CHECKING:
    from sr_train.annotate.models import Measuring

JOURNAL, DATASET = "journal.jsonl", "dataset.jsonl"

Split = Callable[[str], Sequence[Step]]
Measure = Callable[[Recipe, Path], AbstractContextManager["Measuring"]]
Report = Callable[[str], None]

_TRIALS = 512
"""Continuations between two entries of the journal."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """What is known of one trace's steps."""

    scores: Mapping[int, float]
    """How difficult those are that may be marked."""
    kinds: Mapping[int, str]


def annotate(
    recipe: Recipe,
    problems: Sequence[Problem],
    out: Path,
    *,
    resume: bool = True,
    report: Report = lambda line: None,
    offline: bool = False,
    chat: Chat | None = None,
    measure: Measure | None = None,
    split: Split = split_steps,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """Mark the difficult steps of the problems' traces.

    Args:
        out: the stage's folder: gets `dataset.jsonl`, `README.md`, `statistics.json`, plots and the journal.
        resume: use what an earlier run asked and measured; else that is removed.
        chat: the judge; None opens the one that the recipe names.
        measure: the models to measure with; None loads those that the recipe names.
        split: what a step is, where it is not a sentence or a line.
    Returns:
        The data set, one JSON line a problem, in their order: `id`, `question`, `answer`, `text`. Problems
        without a trace, and those that the judge said nothing readable of, are left out.
    Raises:
        UsageError: the recipe lacks what its labeller needs, or no problem has a trace.
        RemoteError: a large model did not answer, and may another time.
        OfflineError: it would have to be asked.
    """
    part = recipe.annotate
    traced = [problem for problem in problems if problem.trace]
    usable = [problem for problem in traced if not any(s in problem.trace for s in SPELLINGS)]
    if not usable:
        raise UsageError(
            f"none of the {len(problems)} problems of {recipe.data.source} has a worked solution to mark: "
            "name a source with traces, such as open-r1/OpenR1-Math-220k or demo:train"
        )
    counts = Counter(
        {"without_a_trace": len(problems) - len(traced), "with_markers_already": len(traced) - len(usable)}
    )
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.enter_context(locked(out / JOURNAL, timeout=1.0))
        if not resume:
            (out / JOURNAL).unlink(missing_ok=True)
        journal = held.enter_context(Journal(out / JOURNAL))
        work = _Work(recipe, usable, journal, split, report, counts)
        if part.labeller != "measured":
            if work.has_questions:
                judged_by = chat or held.enter_context(open_judge(part, offline=offline, environ=environ))
                work.ask(judged_by)
            work.read_replies()
        if part.labeller in ("measured", "both"):
            work.measure(measure or _loaded(offline, environ), out)
        return work.write(out)


class _Work:
    """One run: the only owner of its labels and counts."""

    def __init__(
        self,
        recipe: Recipe,
        problems: Sequence[Problem],
        journal: Journal,
        split: Split,
        report: Report,
        counts: Counter[str],
    ) -> None:
        self._recipe = recipe
        self._part = recipe.annotate
        self._problems = problems
        self._journal = journal
        self._split = split
        self._report = report
        self._counts = counts
        self._labels: dict[int, Labelled] = {}  # by the problem's place
        self._judges: Counter[str] = Counter()
        self._questions = [] if self._part.labeller == "measured" else list(map(self._question, problems))

    # --- opinion -----------------------------------------------------------------------------------------

    @property
    def has_questions(self) -> bool:
        """Whether the journal lacks a reply."""
        return any(question.key not in self._journal for question in self._questions)

    @property
    def _version(self) -> str:
        versions = {"judge": judge.VERSION, "snippets": snippets.VERSION, "measured": measured.VERSION}
        both = f"{judge.VERSION}, {measured.VERSION}"
        return versions.get(self._part.labeller, both)

    def _question(self, problem: Problem) -> Question:
        part = self._part
        is_quoting = part.labeller == "snippets"

        def messages() -> Sequence[Any]:
            if is_quoting:
                return snippets.question(problem.trace, part.target_share)
            return judge.question(problem, self._split(problem.trace))

        version = snippets.VERSION if is_quoting else judge.VERSION
        said = json.dumps([[message.role, message.content] for message in messages()])
        named = part.judge_model or part.judge or ""
        return Question(key_of(problem.id, version, named, said), problem.id, messages)

    def ask(self, chat: Chat) -> None:
        """Raises:
        RemoteError, OfflineError: see `ask_all`.
        """
        told = _Told(self._report, "traces judged")
        schema = None if self._part.labeller == "snippets" else judge.SCHEMA
        ask_all(self._questions, chat, self._journal, part=self._part, schema=schema, done=told)

    def read_replies(self) -> None:
        for place, question in enumerate(self._questions):
            entry = self._journal.get(question.key) or {}
            if isinstance(entry.get("model"), str):
                self._judges[entry["model"]] += 1
            if "reply" not in entry:
                self._counts["refused_by_the_judge"] += 1
                continue
            self._counts["cut_replies"] += bool(entry.get("is_cut"))  # what is late in the trace is unrated
            try:
                self._labels[place] = self._read(self._problems[place], entry["reply"])
            except judge.UnreadableReplyError:
                self._counts["unreadable_replies"] += 1

    def _read(self, problem: Problem, reply: str) -> Labelled:
        steps = self._split(problem.trace)
        if self._part.labeller == "snippets":
            found = snippets.align_all(
                snippets.read_reply(reply), problem.trace, self._part.min_snippet_score
            )
            for each in found:
                self._counts[f"{each.way}_snippets"] += 1
            chosen = snapped(steps, [each.at for each in found if each.at is not None])
            return Labelled(dict.fromkeys(chosen, 1.0), {})
        judgement = judge.read_reply(reply, steps)
        self._counts["strange_entries"] += judgement.num_strange
        rated = judgement.steps
        scores = {
            index: float(each.difficulty)
            for index, each in rated.items()
            if each.difficulty >= self._part.min_difficulty
        }
        return Labelled(scores, {index: rated[index].kind for index in scores})

    # --- measurement -------------------------------------------------------------------------------------

    def measure(self, measure: Measure, out: Path) -> None:
        """Raises:
        RemoteError: the large model failed too often.
        """
        with _Lazy(measure, self._recipe, out) as models:
            is_judged = self._part.labeller == "both"
            candidates: dict[int, list[int]] = {}
            for place, problem in enumerate(self._problems):
                if is_judged:
                    if place in self._labels:
                        candidates[place] = sorted(self._labels[place].scores)
                    if self._part.continuations:
                        continue
                steps = self._split(problem.trace)
                nats = self._surprisals(problem, steps, models)
                most = measured.most_surprising(steps, nats, self._part.surprisal_quantile)
                if is_judged:
                    most = [index for index in most if index in candidates.get(place, ())]
                if not is_judged or place in candidates:
                    candidates[place] = most
                if not self._part.continuations and place in candidates:
                    before = self._labels.get(place, Labelled({}, {}))
                    self._labels[place] = Labelled({i: nats[i].mean for i in most}, before.kinds)
            if self._part.continuations:
                self._try_out(candidates, models)

    def _surprisals(self, problem: Problem, steps: Sequence[Step], models: _Lazy) -> list[measured.Surprisal]:
        ends = json.dumps([step.end for step in steps])
        key = key_of(problem.id, "surprisal", self._recipe.model.base, problem.question, problem.trace, ends)
        entry = self._journal.get(key)
        if entry is None:
            tokens = models.opened.surprisals(problem.question, problem.trace)
            found = measured.step_surprisals(steps, tokens)
            entry = {"problem": problem.id, "surprisals": [[round(s.total, 4), s.num_tokens] for s in found]}
            self._journal.add(key, entry)
        return [measured.Surprisal(total, num_tokens) for total, num_tokens in entry["surprisals"]]

    def _try_out(self, candidates: Mapping[int, Sequence[int]], models: _Lazy) -> None:
        told = _Told(self._report, "steps tried out")
        total = sum(map(len, candidates.values()))
        gains: dict[tuple[int, int], measured.Gain] = {}
        batch: list[tuple[int, int, str, list[measured.Trial]]] = []
        num_failed = 0

        def run() -> None:
            nonlocal num_failed
            trials = [trial for *_, of_step in batch for trial in of_step]
            answers = iter(models.opened.continue_(trials))
            for place, index, key, of_step in batch:
                gain = measured.gain_of(of_step, [next(answers) for _ in of_step], _is_right())
                if gain is None:
                    num_failed += 1
                    continue
                gains[place, index] = gain
                entry = {"problem": self._problems[place].id, "step": index, "helped": gain.helped}
                self._journal.add(key, {**entry, "alone": gain.alone, "n": gain.n})
            batch.clear()
            told(len(gains), total)

        for place, index in ((place, index) for place, steps in candidates.items() for index in steps):
            problem = self._problems[place]
            trials = self._trials(problem, index)
            key = self._gain_key(problem, trials)
            entry = self._journal.get(key)
            if entry is not None:
                gains[place, index] = measured.Gain(entry["helped"], entry["alone"], entry["n"])
                continue
            batch.append((place, index, key, trials))
            if sum(len(of_step) for *_, of_step in batch) >= _TRIALS:
                run()
        if batch:
            run()
        self._counts["steps_tried_out"] += len(gains)
        self._counts["steps_not_measured"] += num_failed
        if num_failed > total / 2:
            raise RemoteError(
                f"{num_failed} of {total} steps could not be tried out, since the large model failed or the "
                "gold answers cannot be read. What was measured is kept: start again once that is mended"
            )
        for place, steps in candidates.items():
            kinds = self._labels[place].kinds if place in self._labels else {}
            scores = {
                index: gains[place, index].value
                for index in steps
                if (place, index) in gains and gains[place, index].value >= self._part.min_gain
            }
            self._labels[place] = Labelled(scores, kinds)

    def _trials(self, problem: Problem, index: int) -> list[measured.Trial]:
        number = int.from_bytes(hashlib.sha256(problem.id.encode()).digest()[:4], "big")
        return measured.trials_of(
            problem,
            self._split(problem.trace),
            index,
            n=self._part.continuations,
            seed=self._recipe.seed,
            number=number,
        )

    def _gain_key(self, problem: Problem, trials: Sequence[measured.Trial]) -> str:
        big, rollout = self._recipe.big, self._recipe.rollout
        of_models = (self._recipe.model.base, big.model, big.remote, big.remote_model, big.temperature)
        of_trials = (rollout.temperature, rollout.max_tokens, len(trials), [*trials[0].key], trials[0].step)
        asked = (problem.question, problem.answer, trials[0].before)
        return key_of(problem.id, measured.VERSION, json.dumps([of_models, of_trials, asked]))

    # --- what comes of it --------------------------------------------------------------------------------

    def write(self, out: Path) -> Path:
        """The data set, whole or not at all, then what is said of it."""
        marked = []
        part_path, path = out / f".{DATASET}.part", out / DATASET
        with open(part_path, "w", encoding="utf-8", newline="\n") as file:
            for row, found in self._rows():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                marked.append(found)
            file.flush()
            os.fsync(file.fileno())
        if not marked:
            part_path.unlink()
            raise RemoteError(
                f"nothing readable was said of any of the {len(self._problems)} traces: look into "
                f"{out / JOURNAL}, and choose another judge"
            )
        os.replace(part_path, path)
        counts = {name: count for name, count in sorted(self._counts.items()) if count}
        write_statistics(marked, counts, out)
        statistics = figures(marked)
        judges = [name for name, _ in self._judges.most_common()]
        write_card(
            self._recipe, out, statistics=statistics, counts=counts, judges=judges, version=self._version
        )
        left_out = len(self._problems) - len(marked)
        self._report(
            f"{len(marked)} traces, {statistics['spans']} spans, {100 * statistics['share']:.1f} % of the "
            f"characters marked" + (f"; {left_out} left out, see statistics.json" if left_out else "")
        )
        return path

    def _rows(self) -> Iterator[tuple[dict[str, str], Marked]]:
        rule = Rule.of(self._part)
        for place, problem in enumerate(self._problems):
            labelled = self._labels.get(place)
            if labelled is None:
                continue
            steps = self._split(problem.trace)
            spans = choose(problem.trace, steps, labelled.scores, rule, problem.id)
            text = with_markers(problem.trace, spans)
            row = {"id": problem.id, "question": problem.question, "answer": problem.answer, "text": text}
            kinds = tuple(
                labelled.kinds[index]
                for index, step in enumerate(steps)
                if index in labelled.kinds and any(a <= step.start and step.end <= b for a, b in spans)
            )
            yield row, Marked(len(problem.trace), len(steps), spans, kinds)


class _Lazy:
    """Models that are loaded only if something is not measured yet."""

    def __init__(self, measure: Measure, recipe: Recipe, out: Path) -> None:
        self._measure = measure
        self._recipe = recipe
        self._out = out
        self._held = ExitStack()
        self._opened: Measuring | None = None

    @property
    def opened(self) -> Measuring:
        if self._opened is None:
            self._opened = self._held.enter_context(self._measure(self._recipe, self._out))
        return self._opened

    def __enter__(self) -> _Lazy:
        return self

    def __exit__(self, *args: object) -> None:
        self._held.close()


def _loaded(offline: bool, environ: Mapping[str, str]) -> Measure:
    def measure(recipe: Recipe, out: Path) -> AbstractContextManager[Measuring]:
        from sr_train.annotate.models import measuring

        return measuring(recipe, out.parent / "cache", offline=offline, environ=environ)

    return measure


def _is_right() -> Callable[[str, str], bool | None]:
    from sr_train.grading import is_right  # math-verify takes its time

    return is_right


class _Told:
    """Says how far it is, now and then."""

    def __init__(self, report: Report, what: str, seconds: float = 10.0) -> None:
        self._report = report
        self._what = what
        self._seconds = seconds
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + self._seconds
            self._report(f"{done} of {total} {self._what}")
