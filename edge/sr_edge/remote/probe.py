"""Finds out by which rows of the dialect table a server continues a text. Pure: it says what to send, and is
told what came.

A trial asks for the alphabet, of which the answer holds the beginning, so that no user's text is sent. A lead
in front of it tells an echo of the answer from a new turn, which would begin with the alphabet itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from sr_edge.extract import END_THINK, THINK, is_thinking
from sr_edge.remote.dialects import (
    DIALECTS,
    INSTRUCT,
    Capabilities,
    Dialect,
    Hint,
    Quirks,
    dialect_named,
    known_host,
    request,
)
from sr_edge.remote.seam import Seam
from sr_edge.roles import Message, Prompt

Verdict = Literal["continues", "echoes", "restarts", "refused", "leaked", "silent", "other"]
"""What a server makes of an unfinished answer.

continues  goes on from where it breaks off
echoes     repeats it and goes on
restarts   begins a new turn, as if there were none
refused    says that it can't
leaked     writes where no continuation is looked for: thinks anew, or has closed our thought
silent     writes nothing
other      writes something else: the model may be too weak to recite
"""

_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_GOES_ON = re.compile(r"g(\W+h\b|\W*\Z)")

QUESTION = "Recite the alphabet in lower case, letters separated by spaces."
LEAD = "Here it goes: "
LETTERS = "a b c d e f"
MAX_TOKENS = 24
ASKED_MAX_TOKENS = 512
"""Where a turn of its own is asked for. It ends by itself, but may begin with a preamble or a thought."""

_REFUSALS = frozenset({400, 404, 405, 422, 501})
_NO_PREFILL = re.compile(
    r"not support assistant (message )?prefill|must end with a user message", re.IGNORECASE
)
_NO_SUCH_PATH = frozenset({404, 405, 501})
_WORKS = frozenset({"continues", "echoes"})
_PAIRS = ("vllm-think", "vllm", "vllm-plain")
_EVERY_FLAG = replace(dialect_named("vllm-plain"), name="every-flag")
"""No row: a text, no thought, with whatever any row sends for a server to continue it. One that begins anew
even then continues nothing, and need not be tried row by row."""
_MARKS = {dialect.mark: True for dialect in DIALECTS if dialect.mark is not None}


@dataclass(frozen=True, slots=True)
class Trial:
    """A request that carries no user's text, answered by a stream."""

    name: str
    """Of the dialect; with `+think` for the continuation of a thought."""
    path: str
    body: dict[str, Any]
    so_far: Capabilities
    """What was found out before it; its `text` is None until a row is found for texts."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a trial. Only an answer or a refusal (400, 404, 405, 422, 501) is something to be heard:
    after anything else (401, 403, 429, 5xx, no connection) nothing was found out, and who drives the survey
    gives it up."""

    status: int
    error: str = ""
    """The refusal's body."""
    text: str = ""
    """All of `content`, or of raw completions' `text`."""
    reasoning: str = ""
    """All of `reasoning_content` or `reasoning`."""
    finish: str | None = None
    has_usage: bool = False


def survey(
    *,
    model: str | None,
    opening: str,
    host: str,
    completions: Callable[[Sequence[Message]], Prompt],
    full: bool,
    quirks: Quirks | None = None,
    so_far: Capabilities | None = None,
) -> Generator[Trial, Heard, Capabilities]:
    """Yields trials, is sent what came of each, returns what was found out.

    Args:
        opening: what the local model's template writes before an answer. Where it opens a thought, the
            continuation of thoughts is tried too.
        host: for what it documents, where the trials are inconclusive.
        completions: renders a conversation as the local model reads it.
        full: try every row, and both inside and outside of a thought. Else no raw completions (that there are
            none is known by then), each only until it works, and nothing that a host's documentation settles.
        quirks: what is known already.
        so_far: of an earlier survey that was broken off: what it has tried is not tried again.
    """
    asked = _Survey(model, opening, completions, quirks or Quirks(), so_far)
    hint = known_host(host)
    rows = [d for d in DIALECTS if full or not d.is_exact]
    if full:
        for dialect in rows:
            for thinking in (True, False):
                yield from asked.try_row(dialect, thinking)
        return asked.result(hint)
    if hint is not None and hint.is_settled:
        rows = [d for d in rows if d.name in (hint.thought, hint.text)]
    elif hint is not None:  # what is documented first
        rows.sort(key=lambda d: d.is_asking or d.name not in (hint.thought, hint.text))
    if is_thinking(opening):
        yield from asked.try_until_one_works(rows, True)
        # The row that continues thoughts comes first. If there is none, no row is left that could do texts:
        # some of them send a thought as text.
        at = next((n for n, d in enumerate(rows) if asked.does(d, True)), len(rows))
        rows = [*rows[at:], *rows[:at]] if at < len(rows) and not rows[at].is_asking else _asking(rows)
    yield from asked.try_until_one_works(rows, False)
    return asked.result(hint)


def _asking(rows: Sequence[Dialect]) -> list[Dialect]:
    return [dialect for dialect in rows if dialect.is_asking]


class _Survey:
    """What was found out so far."""

    def __init__(
        self,
        model: str | None,
        opening: str,
        completions: Callable[[Sequence[Message]], Prompt],
        quirks: Quirks,
        before: Capabilities | None,
    ) -> None:
        self._model = model
        self._opening = opening
        self._messages = (Message("user", QUESTION),)
        self._prompt = completions(self._messages)
        self._quirks = quirks
        self._verdicts = {} if before is None else _verdicts_of(before)
        self._had_usage = None if before is None else before.has_usage
        self._heard: dict[str, Heard] = {}  # by what was sent: rows may come to the same
        self._unknown: set[str] = set()  # paths, flags and fields that were refused for themselves

    def does(self, dialect: Dialect, thinking: bool) -> bool:
        return self._verdicts.get((dialect.name, thinking)) in _WORKS

    def works(self, thinking: bool) -> bool:
        return self._working(thinking) is not None

    def try_until_one_works(self, rows: Sequence[Dialect], thinking: bool) -> Generator[Trial, Heard, None]:
        """Once a row makes the server begin anew, all that might keep it from that is tried at once."""
        for dialect in rows:
            if self.works(thinking):
                return
            if self._verdicts.get((_EVERY_FLAG.name, False)) == "restarts" and not dialect.is_asking:
                continue
            yield from self.try_row(dialect, thinking)
            if self._verdicts.get((dialect.name, thinking)) == "restarts" and not dialect.is_asking:
                yield from self._try_every_flag()

    def try_row(self, dialect: Dialect, thinking: bool) -> Generator[Trial, Heard, None]:
        if (dialect.name, thinking) in self._verdicts:
            return
        opening, answer = self._partial(thinking)
        if dialect.partial == "apart" and END_THINK in answer and not self.does(dialect, True):
            return  # it would continue the text, but not have read the thought
        heard = yield from self._ask(dialect, opening, answer)
        if dialect.is_asking and heard.reasoning.strip():
            self._quirks = replace(self._quirks, thinks_first=True)
        self._verdicts[dialect.name, thinking] = _verdict(dialect, opening, answer, heard)

    def _try_every_flag(self) -> Generator[Trial, Heard, None]:
        if (_EVERY_FLAG.name, False) in self._verdicts or self.works(True):
            return
        answer = LEAD + LETTERS
        for dialect in (_EVERY_FLAG, replace(_EVERY_FLAG, flags=())):  # marks are refused less often
            heard = yield from self._ask(dialect, "", answer)
            if heard.status == 200:
                break
        verdict = _verdict(dialect, "", answer, heard)
        goes_on = bool(_GOES_ON.match(_words(heard.reasoning)))  # as a thought, which is another matter
        self._verdicts[_EVERY_FLAG.name, False] = "leaked" if goes_on else verdict

    def _partial(self, thinking: bool) -> tuple[str, str]:
        """The opening and an answer of the state."""
        if thinking:
            return (self._opening if is_thinking(self._opening) else f"{THINK}\n"), LEAD + LETTERS
        if is_thinking(self._opening):  # an answer that is no thought comes after one
            return self._opening, f"This is easy.\n{END_THINK}\n\n{LEAD}{LETTERS}"
        return self._opening, LEAD + LETTERS

    def _ask(self, dialect: Dialect, opening: str, answer: str) -> Generator[Trial, Heard, Heard]:
        """Again without what was refused, as long as the row is still itself without that."""
        needs = _needs(dialect)
        while not needs & self._unknown:
            body = request(
                dialect,
                self._quirks,
                messages=self._messages,
                prompt=Prompt((), self._prompt.text.removesuffix(self._opening) + opening, opening),
                answer=answer,
                sampling={"temperature": 0},
                max_tokens=ASKED_MAX_TOKENS if dialect.is_asking else MAX_TOKENS,
                model=self._model,
            )
            if dialect.name == _EVERY_FLAG.name:
                body["messages"][-1] |= _MARKS
            sent = json.dumps(body)
            if sent not in self._heard:
                name = f"{dialect.name}+think" if is_thinking(opening + answer) else dialect.name
                so_far = self._known(self._working(True), self._working(False))
                self._heard[sent] = yield Trial(name, dialect.path, body, so_far)
            heard = self._heard[sent]
            assert heard.status == 200 or heard.status in _REFUSALS, "nothing was found out"
            quirks = self._quirks.after_refusal(heard.status, heard.error, body)
            if quirks is not None and not needs & quirks.left_out:
                self._quirks = quirks
                continue
            self._note_refusal(dialect, heard, quirks)
            return heard
        return Heard(400)

    def _note_refusal(self, dialect: Dialect, heard: Heard, quirks: Quirks | None) -> None:
        if heard.status in _NO_SUCH_PATH and not any(h.status == 200 for h in self._heard.values()):
            self._unknown.add(dialect.path)
        if heard.status in (400, 422):
            if quirks is not None and dialect.partial != "apart":
                # A field's name as the value of a flag may be refused, and true be taken.
                self._unknown |= quirks.left_out - self._quirks.left_out
            if "reasoning_content" in heard.error:
                self._unknown.add("reasoning_content")
            if _NO_PREFILL.search(heard.error):
                self._unknown.add("prefill")

    # --- what to make of it ---

    def result(self, hint: Hint | None) -> Capabilities:
        states = {thinking for _, thinking in self._verdicts}
        return self._known(self._chosen(True, hint) if True in states else None, self._chosen(False, hint))

    def _known(self, thought: str | None, text: str | None) -> Capabilities:
        replies = [heard for heard in self._heard.values() if heard.status == 200]
        return Capabilities(
            thought=thought,
            text=text,
            quirks=self._quirks,
            echoes="echoes"
            in (self._verdicts.get((thought or "", True)), self._verdicts.get((text or "", False))),
            has_usage=self._had_usage or any(heard.has_usage for heard in replies)
            if replies
            else self._had_usage,
            findings=tuple(
                (f"{name}+think" if thinking else name, verdict)
                for (name, thinking), verdict in self._verdicts.items()
            ),
        )

    def _working(self, thinking: bool) -> str | None:
        return next((dialect.name for dialect in DIALECTS if self.does(dialect, thinking)), None)

    def _chosen(self, thinking: bool, hint: Hint | None) -> str:
        """The first row that works. If the model can't recite: what is documented, or accepted by the letter.

        That a mark or a trailing message is taken proves nothing: servers ignore what they don't know.
        """
        documented = (hint.thought if thinking else hint.text) if hint is not None else None
        if hint is not None and hint.is_settled and documented is not None:
            return self._working(thinking) or documented
        working = self._working(thinking)
        if working is not None:
            return working
        if any(verdict in (*_WORKS, "restarts") for verdict in self._verdicts.values()):
            return INSTRUCT.name  # it can recite: what does not continue does not work
        accepted = [
            name
            for (name, state), verdict in self._verdicts.items()
            # A row that was tried for thoughts only stands for texts too.
            if verdict == "other" and (state == thinking or (name, thinking) not in self._verdicts)
        ]
        order = ("completions", *_PAIRS)
        return documented or next((name for name in order if name in accepted), INSTRUCT.name)


def _verdicts_of(found: Capabilities) -> dict[tuple[str, bool], Verdict]:
    """As they were found; of what is not known any more, nothing."""
    names = {_EVERY_FLAG.name, *(dialect.name for dialect in DIALECTS)}
    verdicts: dict[tuple[str, bool], Verdict] = {}
    for finding, said in found.findings:
        name = finding.removesuffix("+think")
        for verdict in _VERDICTS:
            if said == verdict and name in names:
                verdicts[name, name != finding] = verdict
    return verdicts


def _needs(dialect: Dialect) -> set[str]:
    """What a row can't do without."""
    needs = {dialect.path, *(name for name, _ in dialect.flags)}
    if not dialect.is_exact and not dialect.is_asking:
        needs.add("prefill")
    return needs | ({"reasoning_content"} if dialect.partial == "apart" else set())


def _verdict(dialect: Dialect, opening: str, answer: str, heard: Heard) -> Verdict:
    if heard.status != 200:
        return "refused"
    thinking = is_thinking(opening + answer)
    said = heard.text
    if thinking and dialect.continues_thought:
        said = heard.reasoning or heard.text
    if not said.strip():
        return "leaked" if heard.reasoning.strip() else "silent"
    if dialect.is_asking:
        seam = Seam(answer, dialect=dialect, opening=opening)
        said = seam.push(said) + seam.flush()
    words = _words(said)
    if _GOES_ON.match(words):
        return "continues"
    if words.startswith(END_THINK):
        return "leaked"
    if any(words.startswith(sent) for sent in (_words(answer), _words(answer.rpartition(END_THINK)[2]))):
        return "echoes"
    # A new turn may begin with a thought of its own, and the alphabet come after that.
    return "restarts" if re.search(r"\ba\W+b\W+c\b", f"{words}\n{_words(heard.text)}") else "other"


def _words(text: str) -> str:
    return " ".join(text.replace(THINK, " ").split()).replace(f" {END_THINK} ", " ").lower()
