"""One answer in figures, and the journal that keeps them: an evaluation that was killed goes on from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sr_edge.errors import UsageError
from sr_edge.transcript import SpanRecord, Transcript
from sr_train.grading import answer_text, is_right
from sr_train.latency import LatencyModel, measured, was_sent
from sr_train.problems import Problem
from sr_train.rewards import marked_text
from sr_train.rollout.requests import Rollout


@dataclass(frozen=True, slots=True)
class Record:
    """One answer of one arm. Tokens are the small model's, whoever wrote or read them."""

    arm: str
    problem: str
    sample: int
    is_right: bool
    """What a user would read off, whoever wrote it."""
    local_tokens: int
    remote_tokens: int
    """Written by the one and the other."""
    read_tokens: int
    """By the small model: the prompt and the spans."""
    sent_tokens: int
    """Read by the large one: at each span all of the answer so far."""
    fresh_tokens: int
    """Those of them that were not sent before, nor written by it: what it reads with a prefix cache."""
    seconds: float
    offload_seconds: float
    dollars: float
    """By the latency model."""
    measured_seconds: float
    measured_dollars: float
    ends: tuple[str, ...]
    """Of its spans."""
    finish: str
    mean_logprob: float
    """Of what the small model sampled; 0 if nothing."""
    failed: bool
    """The large model failed: the answer is not what this arm would have given."""
    text: str

    @property
    def tokens(self) -> int:
        return self.local_tokens + self.remote_tokens


def record_of(arm: str, problem: Problem, sample: int, rollout: Rollout, latency: LatencyModel) -> Record:
    """Grades a rollout, and counts what it took."""
    transcript = rollout.transcript
    is_big = rollout.request.policy == "remote"
    cost = latency.big_only(transcript) if is_big else latency.cost(transcript)
    took = measured(transcript)
    sent = [span for span in transcript.spans if was_sent(span)]
    logprobs = [logprob for logprob, own in zip(rollout.logprobs, rollout.sampled, strict=True) if own]
    return Record(
        arm=arm,
        problem=problem.id,
        sample=sample,
        is_right=bool(is_right(problem.answer, answer_text(transcript))),
        local_tokens=transcript.local_tokens,
        remote_tokens=transcript.remote_tokens,
        read_tokens=0 if is_big else transcript.prompt_tokens + transcript.remote_tokens,
        sent_tokens=sum(span.sent_tokens for span in sent),
        fresh_tokens=_fresh(sent),
        seconds=cost.seconds,
        offload_seconds=cost.offload_seconds,
        dollars=cost.dollars,
        measured_seconds=took.seconds,
        measured_dollars=took.dollars,
        ends=tuple(span.end or "cancelled" for span in transcript.spans),
        finish=transcript.finish or "cancelled",
        mean_logprob=fmean(logprobs) if logprobs else 0.0,
        failed=rollout.remote_failed or _is_without_answer(transcript, is_big=is_big),
        text=marked_text(transcript),
    )


def escalated(small: Record, big: Record, arm: str) -> Record:
    """The small model's answer thrown away for the large one's: both were paid for."""
    return replace(
        big,
        arm=arm,
        local_tokens=small.local_tokens + big.local_tokens,
        read_tokens=small.read_tokens + big.read_tokens,
        seconds=small.seconds + big.seconds,
        measured_seconds=small.measured_seconds + big.measured_seconds,
        mean_logprob=small.mean_logprob,
        failed=small.failed or big.failed,
    )


def _is_without_answer(transcript: Transcript, *, is_big: bool) -> bool:
    return is_big and transcript.finish == "error"


def _fresh(spans: Iterable[SpanRecord]) -> int:
    known = fresh = 0
    for span in spans:
        fresh += max(0, span.sent_tokens - known)
        known = span.sent_tokens + span.tokens
    return fresh


class Journal:
    """Records in a file of JSON lines that is only ever appended to; the first line tells of what."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Go on in the file, or begin it.

        Args:
            settings: all that a record depends on besides its arm, problem and sample.
        Raises:
            UsageError: the file cannot be used, or holds an evaluation with other settings.
        """
        self._path = path
        self._records: dict[tuple[str, str, int], Record] = {}
        self._found: dict[str, float] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = _whole_lines(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be used: {error.strerror or error}") from None
        wanted = json.loads(json.dumps(settings))
        if not whole:
            self._append({"v": 1, "settings": wanted})
            return
        lines = [_parsed(line, path) for line in whole]
        held = lines[0].get("settings")
        if held != wanted:
            raise UsageError(
                f"{path} holds an evaluation with other settings ({_difference(held, wanted)}): remove it, "
                "or write into another folder"
            )
        for line in lines[1:]:
            if "setting" in line:
                self._found[line["arm"]] = line["setting"]
            else:
                record = _record(line, path)
                self._records[record.arm, record.problem, record.sample] = record

    def record(self, arm: str, problem: str, sample: int) -> Record | None:
        """What is known; one whose large model failed is to be asked for again."""
        found = self._records.get((arm, problem, sample))
        return None if found is None or found.failed else found

    def latest(self, arm: str, problem: str, sample: int) -> Record | None:
        """The same, failed or not."""
        return self._records.get((arm, problem, sample))

    def add(self, record: Record) -> None:
        self._append(asdict(record))
        self._records[record.arm, record.problem, record.sample] = record

    def setting(self, arm: str) -> float | None:
        """What was found for an arm whose setting is looked for."""
        return self._found.get(arm)

    def keep_setting(self, arm: str, setting: float) -> None:
        self._append({"arm": arm, "setting": setting})
        self._found[arm] = setting

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise UsageError(f"{self._path} cannot be written: {error.strerror or error}") from None


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines; half a line at the end, of a process that was killed, is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
    return data[:end].splitlines()


def _parsed(line: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is damaged: remove it, and the evaluation begins anew")
    return value


def _record(line: Mapping[str, Any], path: Path) -> Record:
    try:
        values = {field.name: line[field.name] for field in fields(Record)}
    except KeyError as error:
        raise UsageError(f"{path} is of another version ({error} is missing): remove it") from None
    return Record(**{**values, "ends": tuple(values["ends"])})


def _difference(held: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(held, dict):
        return "none are written down"
    keys = [key for key in sorted({*held, *wanted}) if held.get(key) != wanted.get(key)]
    return "; ".join(f"{key} was {held.get(key)!r}, is {wanted.get(key)!r}" for key in keys[:3])
