"""What taking the pen back costs: resuming after a span, reading p(close) along it, and the paper's way.

* A span arrives as from a remote while the small model reads along, or is read when all of it is there.
* p(close) is read from logits that the prefill could do without: what they cost, by where they are read.
* The paper (arXiv 2504.16379) has the small model write eight tokens after each of 64 prefixes instead. That
  is run here on the same engine, all in one batch as vLLM would, and one by one as a plain client would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sr_edge.bench.pairs import Spread, in_rounds, ratios
from sr_edge.bench.paper import CHUNK, PROBE
from sr_edge.bench.report import Found, Goal, Row, Side, failures
from sr_edge.bench.setting import Setting
from sr_edge.bench.synthetic import words
from sr_edge.bench.writing import open_model, trained_context
from sr_edge.errors import EdgeError
from sr_edge.events import LocalToken, SpanClosed
from sr_edge.gguf_header import read_header
from sr_edge.local import LlamaLocal
from sr_edge.markers import Markers, find_markers
from sr_edge.reading import Branch, Places, SpanReader
from sr_edge.roles import Limits, Message, Outcome, is_probed
from sr_edge.split import SplitDecoder
from sr_edge.testing.batch_writer import BatchWriter, WideLlama, Wish
from sr_edge.testing.batch_writer import Row as BatchRow
from sr_edge.vocabulary import Vocabulary

Where: TypeAlias = Places | Literal["none"]

SPAN_TOKENS: Final = 256
RATE: Final = 30.0
"""Tokens a second that the remote writes."""
BATCHES: Final = (8, 16, 32, 64)
"""Tokens that are read at once."""
_USUAL_BATCH: Final = 16
_READ_TOKENS: Final = 128
_SUBJECT: Final = "handback"
_CONTEXT: Final = 2048
_PROMPT: Final = (Message("user", " ".join(words(120, seed=1))),)
_REPEATS: Final = 5
_ALONE: Final = 8  # of the 64 prefixes, where they are probed one by one
_RESUME_GOAL: Final = Goal("at most", 0.12)
_READING_GOALS: Final = {
    "token": Goal("at most", 0.20),
    "word": Goal("at most", 0.06),
    "sentence": Goal("at most", 0.06),
}
_PROBING_GOAL: Final = Goal("at least", 50.0)
_PLACE_NAMES: Final[Mapping[Places, str]] = MappingProxyType(
    {"token": "every token", "word": "ends of words", "sentence": "ends of sentences"}
)
_WITHOUT: Final[Where] = "none"


def rows(setting: Setting) -> Iterator[Found]:
    yield from _resume_rows(setting)
    yield from _reading_rows(setting)
    yield from _probing_rows(setting)


# --- resuming -------------------------------------------------------------------------------------------


class PacedRemote:
    """A large model that writes its texts at a steady rate, whether they are read or not."""

    def __init__(
        self,
        texts: Sequence[str],
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args:
        rate: texts a second.
        """
        self._texts = tuple(texts)
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self.arrived = 0.0
        """When the last text of the last stream arrived, on the clock."""

    @property
    def name(self) -> str:
        return "paced"

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> PacedStream:
        began = self._clock()
        self.arrived = began + len(self._texts) / self._rate
        return PacedStream(self._texts, self._rate, began, self._clock, self._sleep)


class PacedStream:
    def __init__(
        self,
        texts: Sequence[str],
        rate: float,
        began: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._texts = texts
        self._rate = rate
        self._began = began
        self._clock = clock
        self._sleep = sleep
        self._taken = 0

    def read(self, timeout: float) -> str | None:
        if self._taken == len(self._texts):
            return None
        text = self._take()
        if not text and timeout > 0:
            now = self._clock()
            self._sleep(max(0.0, min(timeout, self._began + (self._taken + 1) / self._rate - now)))
            text = self._take()
        return text

    def _take(self) -> str:
        due = min(len(self._texts), math.floor((self._clock() - self._began) * self._rate + 1e-6))
        before, self._taken = self._taken, max(self._taken, due)
        return "".join(self._texts[before : self._taken])

    @property
    def outcome(self) -> Outcome:
        return Outcome("stop", completion_tokens=self._taken)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Resumed:
    seconds: float
    """From the last text of the span to the first token after it."""
    ids: tuple[int, ...]
    """The span's, in the small model's cache, and its closing marker."""
    start: int
    """Where in the cache they begin."""


def resume(
    local: LlamaLocal, texts: Sequence[str], rate: float, clock: Callable[[], float] = time.monotonic
) -> Resumed:
    """Let a span arrive, read along, and go on.

    Raises:
        EdgeError: the small model ended the span, or did not go on.
    """
    remote = PacedRemote(texts, rate, clock=clock)
    limits = Limits(
        max_tokens=2 * len(texts) + 64, max_span_tokens=2 * len(texts), soft_span_tokens=2 * len(texts)
    )
    closed: SpanClosed | None = None
    start = 0
    for event in SplitDecoder(local, remote, limits=limits, clock=clock).generate(_PROMPT, first="remote"):
        if isinstance(event, SpanClosed):
            closed, start = event, len(local.ids) - len(event.ids)
        elif isinstance(event, LocalToken) and closed is not None:
            if closed.end != "stop":
                raise EdgeError(f"{local.name} ended the span ({closed.end}): name another model with -m")
            return Resumed(clock() - remote.arrived, closed.ids, start)
    raise EdgeError(f"{local.name} wrote nothing after the span: name another model with -m")


def read_again(local: LlamaLocal, resumed: Resumed, clock: Callable[[], float] = time.monotonic) -> float:
    """Seconds to read that span when it has ended, and to go on."""
    local.rewind(resumed.start)
    local.feed(resumed.ids[:1])
    local.sample()  # the cache is at the span's beginning, as when it was asked for
    local.rewind(resumed.start)
    began = clock()
    local.feed(resumed.ids)
    local.sample()
    return clock() - began


def span_texts(local: LlamaLocal, tokens: int) -> tuple[str, ...]:
    """Texts of one token each, of a language that the vocabulary knows the words of."""
    ids = local.tokenize(" " + prose(tokens))[:tokens]
    return tuple(local.piece(id).decode("utf-8", "replace") for id in ids)


def prose(count: int, *, seed: int = 2) -> str:
    """So many words, as sentences of a dozen."""
    said = list(words(count, seed=seed))
    sentences = [" ".join(said[n : n + 12]) for n in range(0, count, 12)]
    return ". ".join(sentences) + "."


def _resume_rows(setting: Setting) -> Iterator[Found]:
    name = "resume after a span, ours / reading it when it has ended"
    with open_model(setting.model, setting.threads, _context(setting)) as local:
        texts = span_texts(local, SPAN_TOKENS)
        setting.say("handback: one span to warm up")
        last = resume(local, texts, RATE)

        def ours() -> float:
            nonlocal last
            last = resume(local, texts, RATE)
            return last.seconds

        def theirs() -> float:
            return read_again(local, last)

        done = in_rounds({"ours": ours, "reading it then": theirs}, setting.pairs, say=setting.say)
    if done.failures:
        yield from failures(_SUBJECT, done.failures)
        return
    yield Row(
        _SUBJECT,
        name,
        ratios(done.values["ours"], done.values["reading it then"]),
        "x",
        _RESUME_GOAL,
        tuple(Side(side, Spread.of(seconds), "s") for side, seconds in done.values.items()),
        f"{SPAN_TOKENS} tokens at {RATE:g} a second; from the last text to the first token after it",
    )


# --- reading p(close) -----------------------------------------------------------------------------------


class Reader:
    """Reads a span in batches of one size, with p(close) at some of its tokens."""

    def __init__(
        self, llama: WideLlama, prompt: Sequence[int], span: Sequence[int], markers: Markers
    ) -> None:
        self._llama = llama
        self._span = tuple(span)
        self._close_ids = list(markers.close_ids[:1])  # in text form it is several, which costs no more
        self._start = len(prompt)
        llama.cut(0, 0)
        for at in range(0, len(prompt), BATCHES[-1]):
            part = prompt[at : at + BATCHES[-1]]
            llama.decode_rows([BatchRow(id, 0, at + n) for n, id in enumerate(part)])
        text = b"".join(map(llama.vocabulary.piece, span)).decode("utf-8", "replace")
        indices = frozenset(range(len(span)))  # borders in the middle of a text may fall otherwise
        self._places: dict[Where, frozenset[int]] = {
            places: places_of(llama.vocabulary, text, markers, places) & indices for places in _PLACE_NAMES
        }

    def places(self, where: Where) -> frozenset[int]:
        """Indices of the span's tokens."""
        return self._places.get(where, frozenset())

    def read(self, batch: int, where: Where) -> dict[int, float]:
        """Log p(close) after each of those tokens."""
        wanted = self.places(where)
        closes: dict[int, float] = {}
        self._llama.cut(0, self._start)
        for at in range(0, len(self._span), batch):
            part = self._span[at : at + batch]
            rows = [BatchRow(id, 0, self._start + n, n in wanted) for n, id in enumerate(part, start=at)]
            self._llama.decode_rows(rows)
            for row, n in enumerate(range(at, at + len(part))):
                if n in wanted:
                    closes[n] = self._log_p_close(self._llama.logits(row))
        return closes

    def seconds(self, batch: int, where: Where) -> float:
        began = time.monotonic()
        self.read(batch, where)
        return time.monotonic() - began

    def _log_p_close(self, logits: NDArray[np.float32]) -> float:
        """As `local` computes it, where logits are of a usual size."""
        normaliser = math.log(self._llama.exp_sum(logits))
        return float(np.logaddexp.reduce(logits[self._close_ids])) - normaliser


def places_of(vocabulary: Vocabulary, text: str, markers: Markers, places: Places) -> frozenset[int]:
    """Indices of the text's tokens after which the client reads p(close): it is asked, not imitated."""
    cache = _Recorder(vocabulary)
    enough = len(text) + 1
    reader = SpanReader(cache, markers, max_tokens=enough, soft_tokens=enough, places=places)
    reader.push(text, final=True)
    return frozenset(cache.probed)


class _Recorder:
    """A cache that computes nothing, and remembers where p(close) is asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.ids: list[int] = []
        self.probed: set[int] = set()
        self.tokenize = vocabulary.ordinary
        self.piece = vocabulary.piece

    def feed(self, ids: Sequence[int], *, probe: bool | Sequence[bool] = False) -> list[float]:
        asked = [len(self.ids) + n for n in range(len(ids)) if is_probed(probe, n)]
        self.ids += ids
        self.probed.update(asked)
        return [-math.inf] * len(asked)

    def rewind(self, n: int) -> None:
        raise AssertionError("the whole text came at once")

    def fork(self, n: int | None = None) -> Branch:
        raise AssertionError("nobody wants the pen")


def _reading_rows(setting: Setting) -> Iterator[Found]:
    with _writer(setting) as writer:
        reader = _reader(writer.llama, _READ_TOKENS, setting.model)
        sides = {
            f"{places} {batch}": partial(reader.seconds, batch, places)
            for batch in BATCHES
            for places in (_WITHOUT, *_PLACE_NAMES)
        }
        sides[f"{_WITHOUT} {_USUAL_BATCH}"]()  # warm
        done = in_rounds(sides, setting.pairs, say=setting.say)
    if done.failures:
        yield from failures(_SUBJECT, done.failures)
        return
    for places, name in _PLACE_NAMES.items():
        shares = {
            batch: shares_of(done.values[f"{places} {batch}"], done.values[f"none {batch}"])
            for batch in BATCHES
        }
        yield Row(
            _SUBJECT,
            f"reading p(close) at {name}, share of the span's prefill",
            shares[_USUAL_BATCH],
            "%",
            _READING_GOALS[places],
            tuple(Side(f"batches of {batch}", share, "%") for batch, share in shares.items()),
            f"batches of {_USUAL_BATCH}; at {len(reader.places(places))} of {_READ_TOKENS} tokens",
        )


def shares_of(with_reading: Sequence[float], without: Sequence[float]) -> Spread:
    """The part of the time that is spent on reading p(close), round by round."""
    return Spread.of([(one - other) / one for one, other in zip(with_reading, without, strict=True)])


# --- probing --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Probed:
    seconds: float
    tokens: int
    """That the small model wrote."""
    batches: int


def probe(writer: BatchWriter, prefixes: Sequence[str], *, together: bool) -> Probed:
    """What the paper asks of the small model: what comes after each of the prefixes."""
    wish = Wish(PROBE, skip_special_tokens=False)
    computed, batches = 0, writer.batches
    groups = [prefixes] if together else [[prefix] for prefix in prefixes]
    began = time.monotonic()
    for group in groups:
        for step in writer.write(group, wish):
            computed += len(step)
    return Probed(time.monotonic() - began, computed, writer.batches - batches)


def _probing_rows(setting: Setting) -> Iterator[Found]:
    with _writer(setting) as writer:
        vocabulary = writer.llama.vocabulary
        before, span = _prompt_and_span(writer.llama, CHUNK)
        start = b"".join(map(vocabulary.piece, before)).decode()
        pieces = [vocabulary.piece(id).decode() for id in span]
        prefixes = [start + "".join(pieces[:n]) for n in range(1, CHUNK + 1)]
        counts: dict[str, Probed] = {}
        rows_of_logits: dict[Places, int] = {}

        def ours() -> float:
            reader = _reader(writer.llama, CHUNK, setting.model)  # what it shares with theirs is not timed
            reader.read(_USUAL_BATCH, _WITHOUT)
            seconds = extra_seconds(reader, _USUAL_BATCH, _REPEATS)
            rows_of_logits.update({places: len(reader.places(places)) for places in _PLACE_NAMES})
            writer.forget()
            return seconds

        def theirs(name: str, asked: Sequence[str], *, together: bool) -> float:
            for _ in writer.write([prefixes[-1]], Wish(1)):  # the chunk itself has been read
                pass
            counts[name] = probe(writer, asked, together=together)
            return counts[name].seconds * len(prefixes) / len(asked)

        alone = prefixes[:: CHUNK // _ALONE]
        sides: dict[str, Callable[[], float]] = {
            "ours": ours,
            "probing together": partial(theirs, "probing together", prefixes, together=True),
            "probing one by one": partial(theirs, "probing one by one", alone, together=False),
        }
        done = in_rounds(sides, setting.pairs, say=setting.say)
    if done.failures:
        yield from failures(_SUBJECT, done.failures)
        return
    together = counts["probing together"]
    for places, name in _PLACE_NAMES.items():
        share = rows_of_logits[places] / CHUNK
        seconds = {**done.values, "ours": tuple(one * share for one in done.values["ours"])}
        yield Row(
            _SUBJECT,
            f"finding the hand-back, the paper's probing / ours at {name}",
            ratios(seconds["probing together"], seconds["ours"]),
            "x",
            _PROBING_GOAL if places == Limits().places else None,
            tuple(Side(side, Spread.of(each), "s") for side, each in seconds.items()),
            f"for {CHUNK} tokens of a span: {together.tokens} tokens in {together.batches} batches, against "
            f"{rows_of_logits[places]} rows of logits, each taken to cost as much as one of those at every "
            f"token; one by one measured on {_ALONE} of the {CHUNK} prefixes",
        )


def extra_seconds(reader: Reader, batch: int, repeats: int) -> float:
    """What reading p(close) at every token adds to reading the tokens, by turns with and without.

    Raises:
        EdgeError: it is less than the times differ by themselves.
    """
    extra = median(reader.seconds(batch, "token") - reader.seconds(batch, _WITHOUT) for _ in range(repeats))
    if extra <= 0:
        raise EdgeError("reading p(close) is lost in the noise of this machine: let nothing else run")
    return extra


def _writer(setting: Setting) -> BatchWriter:
    return BatchWriter(setting.model, context_size=_context(setting), threads=setting.threads)


def _context(setting: Setting) -> int:
    return min(_CONTEXT, trained_context(setting.model))


def _reader(llama: WideLlama, tokens: int, model: Path) -> Reader:
    vocabulary = llama.vocabulary
    markers = find_markers(read_header(model).texts(), vocabulary.control_id, vocabulary.ordinary)
    prompt, span = _prompt_and_span(llama, tokens)
    return Reader(llama, prompt, span, markers or Markers("token", (0,), (0,)))


def _prompt_and_span(llama: WideLlama, tokens: int) -> tuple[list[int], list[int]]:
    prompt = llama.vocabulary.ordinary(prose(48, seed=1))
    return prompt, llama.vocabulary.ordinary(" " + prose(tokens))[:tokens]
