"""Problems with known answers, as training and evaluation see them, and where they are read from.

A source is one of the built-in sets (`demo:train`, `demo:eval`: no file, no network), a file of the user's, a
suite by its short name, or a data set of the hub. Grading is `sr_train.grading`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sr_edge.errors import UsageError
from sr_edge.extract import END_THINK, THINK, is_thinking, last_boxed
from sr_edge.markers import SPELLINGS
from sr_edge.suites import demo

DEMO_PROBLEMS = 1000
"""Of `demo:train` and `demo:eval`, where no limit is given: they have no end."""

_FILES = (".jsonl", ".json", ".parquet")
_FALLBACK = "or name a file (.jsonl, .json, .parquet) with the columns question and answer"

_IDS = ("id", "uuid", "unique_id", "problem_idx")
_QUESTIONS = ("question", "problem", "prompt", "Problem", "Question")
_ANSWERS = ("answer", "Answer", "gold")
_TRACES = ("trace", "solution", "Solution")
"""In this order: the first column that is there."""


@dataclass(frozen=True, slots=True)
class Problem:
    id: str
    """Its own within a source: journals go by it."""
    question: str
    answer: str
    """As it would stand in a box."""
    trace: str = ""
    """A worked solution, reasoning and answer, where the source has one. Never with markers."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A published set that has a short name."""

    repo: str
    splits: tuple[str, ...]
    config: str | None = None


SUITES: Mapping[str, Suite] = {
    "aime24": Suite("HuggingFaceH4/aime_2024", ("train",)),
    "aime25": Suite("yentinglin/aime_2025", ("train",)),
    "math500": Suite("HuggingFaceH4/MATH-500", ("test",)),
    "gsm8k": Suite("openai/gsm8k", ("train", "test"), "main"),
}


def read_problems(
    source: str, *, split: str = "train", limit: int | None = None, seed: int = 0, offline: bool = False
) -> list[Problem]:
    """The problems of a source, in its order.

    Args:
        source: `demo:train` or `demo:eval`; a path that ends in .jsonl, .json or .parquet; a name in
            `SUITES`; or a data set of the hub, `owner/name` or `owner/name:config`. A row needs a question
            and an answer: a column of its own, or a solution that boxes it or has it after ####.
        split: of a data set of the hub. A suite that has one split only is taken as it is.
        limit: the first so many.
        seed: draws the demo problems; those of `demo:eval` are the ones that `sr-edge eval` asks.
        offline: read a data set of the hub only if it is on this machine already.
    Raises:
        UsageError: there is no such source; a row has no question or no answer, or holds a marker; two rows
            have one id.
        ProblemsError: a data set of the hub cannot be read.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: it is at least 1")
    name, _, which = source.partition(":")
    if name == "demo":
        return _demo(which, DEMO_PROBLEMS if limit is None else limit, seed)
    if source.endswith(_FILES):
        path = Path(source).expanduser()
        found = _of_rows(_file_rows(path), path.stem, str(path))
    elif source in SUITES:
        suite = SUITES[source]
        split = suite.splits[0] if len(suite.splits) == 1 else split
        rows = _hub_rows(suite.repo, suite.config, split, offline)
        found = _of_rows(rows, source, source)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source) and not Path(source).exists():
        rows = _hub_rows(name, which or None, split, offline)
        found = _of_rows(rows, name.rpartition("/")[2], source)
    else:
        raise UsageError(
            f"no problems {source}: name demo:train, demo:eval, {', '.join(SUITES)}, "
            f"a data set of the hub (owner/name), {_FALLBACK}"
        )
    problems = list(islice(_unique(found, source), limit))
    if not problems:
        raise UsageError(f"{source} has no problem with an answer")
    return problems


def fit_opening(text: str, opening: str) -> str:
    """A trace as the assistant writes it after what the chat template wrote for it.

    Sources disagree with templates, and with each other, on whether the think tag is part of the trace.

    Args:
        text: a trace, with markers in it or without.
        opening: see `roles.Prompt`; often empty.
    """
    begun = text.lstrip()
    if is_thinking(opening):
        if begun.startswith(THINK):
            text = begun[len(THINK) :]
            return text.lstrip("\n") if opening.endswith("\n") else text
        return text
    if END_THINK in text.partition(THINK)[0]:  # it was written after an opening tag
        return f"{THINK}\n{text}"
    return text


class ProblemsError(UsageError):
    """A data set of the hub is not here and cannot be fetched, or is not as it is expected to be."""


# --- built-in -------------------------------------------------------------------------------------------


def _demo(which: str, num: int, seed: int) -> list[Problem]:
    if which == "train":
        rng = demo.training_rng(seed, "problems")
        drawn: Iterable[demo.Problem] = (demo.problem(rng) for _ in range(num))
    elif which == "eval":
        drawn = demo.problems(seed, num)
    else:
        raise UsageError(f"no problems demo:{which}: there are demo:train and demo:eval")
    return [
        Problem(f"demo-{which}-{seed}-{n}", each.question, each.answer, demo_trace(each))
        for n, each in enumerate(drawn)
    ]


def demo_trace(problem: demo.Problem) -> str:
    """The worked solution as the demo pair writes it, after its template's open think tag."""
    return f"{demo.solution_text(problem)}{END_THINK}\n\nThe answer is \\boxed{{{problem.answer}}}."


# --- files ----------------------------------------------------------------------------------------------


def _file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row, and where it stands, for messages."""
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                for n, line in enumerate(lines, start=1):
                    if line.strip():
                        yield f"line {n}", _object(json.loads(line), f"{path}, line {n}")
        else:
            rows = json.loads(path.read_text("utf-8"))
            if not isinstance(rows, list):
                raise UsageError(f"{path} is no list of problems: write [{{…}}, {{…}}]")
            for n, row in enumerate(rows, start=1):
                yield f"entry {n}", _object(row, f"{path}, entry {n}")
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(f"{path}: Parquet is read with pip install 'sr-edge[train]'") from None
    try:
        n = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    n += 1
                    yield f"row {n}", row
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} is no Parquet: {str(error).splitlines()[0]}") from None


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise UsageError(f'{where} is no problem: write {{"question": …, "answer": …}}')
    return row


# --- the hub --------------------------------------------------------------------------------------------


def _hub_rows(
    repo: str, config: str | None, split: str, offline: bool
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise ProblemsError(
            f"{repo}: data sets of the hub are read with pip install 'sr-edge[train]', {_FALLBACK}"
        ) from None
    try:
        with _offline() if offline else nullcontext():
            table = datasets.load_dataset(repo, config, split=split)
    except Exception as error:  # of many libraries: each says the same in a type of its own
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ProblemsError(
            f"{repo} (split {split}) cannot be read: {first_line.rstrip('.')}. Fetch it where there is a "
            f"network, with `hf download --repo-type dataset {repo}`, {_FALLBACK}"
        ) from None
    for n, row in enumerate(table):
        yield f"row {n}", row


@contextmanager
def _offline() -> Iterator[None]:
    """No library asks the hub meanwhile. (They look at the environment at import only, which is past.)"""
    import datasets
    import huggingface_hub.constants

    switches: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    try:
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = was


# --- rows -----------------------------------------------------------------------------------------------


def _of_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]], stem: str, source: str
) -> Iterator[tuple[str, Problem]]:
    """Rows as problems. Those of OpenR1-Math that have no correct and complete trace are left out."""
    for n, (where, row) in enumerate(rows):
        id_column = next((name for name in _IDS if row.get(name) not in (None, "")), None)
        id = f"{stem}-{n}" if id_column is None else str(row[id_column])
        question = _first_text(row, _QUESTIONS)
        if not question:
            raise UsageError(
                f"{source}, {where} has no question: one of the columns {', '.join(_QUESTIONS[:3])} "
                f"is needed, there are {', '.join(row)}"
            )
        if "generations" in row:
            trace = _verified_trace(row)
            answer = _first_text(row, _ANSWERS)
            if trace is None or not answer:
                continue
        else:
            answer, trace = _answer_and_trace(row)
            if not answer:
                raise UsageError(
                    f"{source}, {where} has no answer: a column answer is needed, or a solution with "
                    f"\\boxed{{…}} or ####; there are {', '.join(row)}"
                )
        for text in (question, trace):
            if any(spelling in text for spelling in SPELLINGS):
                raise UsageError(
                    f"{source}, {where} holds a marker: problems are read as they were before annotation"
                )
        yield where, Problem(id, question, _bare(answer), trace)


def _unique(found: Iterable[tuple[str, Problem]], source: str) -> Iterator[Problem]:
    seen: dict[str, Problem] = {}
    for where, problem in found:
        before = seen.setdefault(problem.id, problem)
        if before is problem:
            yield problem
        elif (before.question, before.answer) != (problem.question, problem.answer):
            raise UsageError(f"{source}, {where}: another problem has the id {problem.id} already")


def _verified_trace(row: Mapping[str, Any]) -> str | None:
    """OpenR1-Math's: its first generation that is complete and that either checker found right."""
    generations = row["generations"] or []
    by_rule, by_judge, complete = (
        _flags(row.get(name), len(generations))
        for name in ("correctness_math_verify", "correctness_llama", "is_reasoning_complete")
    )
    for text, rule, judge, is_complete in zip(generations, by_rule, by_judge, complete, strict=True):
        if is_complete and (rule or judge) and isinstance(text, str):
            return text
    return None


def _flags(values: Any, num: int) -> Sequence[bool]:
    """Some rows were never checked one way, and have no list there."""
    flags = [value is True for value in values or ()]
    return flags + [False] * (num - len(flags))


def _answer_and_trace(row: Mapping[str, Any]) -> tuple[str, str]:
    trace = _first_text(row, _TRACES)
    answer = _first_text(row, _ANSWERS)
    if "####" in answer:  # GSM8K's: working, then the number, with the calculator's calls in << >>
        working, _, answer = answer.rpartition("####")
        answer = answer.strip().replace(",", "")
        trace = trace or f"{re.sub(r'<<.*?>>', '', working).rstrip()}\n\nThe answer is \\boxed{{{answer}}}."
    if not answer:
        answer = last_boxed(trace) or ""
    if not answer and "####" in trace:
        answer = trace.rpartition("####")[2]
    return answer, trace


def _first_text(row: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return ""


def _bare(answer: str) -> str:
    r"""Without what stands around it: $…$, or a box of its own."""
    answer = answer.strip()
    if answer.startswith("\\boxed{") and answer.endswith("}"):
        answer = last_boxed(answer) or answer
    if len(answer) > 2 and answer[0] == answer[-1] == "$" and "$" not in answer[1:-1]:
        answer = answer[1:-1].strip()
    return answer
