"""What is measured around the hand-back. No time is asserted, only what was computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.bench.handback import (
    BATCHES,
    PacedRemote,
    Reader,
    _probing_rows,
    _reading_rows,
    extra_seconds,
    places_of,
    probe,
    prose,
    read_again,
    resume,
    shares_of,
    span_texts,
)
from sr_edge.bench.pairs import Spread
from sr_edge.bench.report import Row
from sr_edge.bench.setting import Setting
from sr_edge.errors import EdgeError
from sr_edge.llama import open_vocabulary
from sr_edge.local import LlamaLocal
from sr_edge.markers import Markers
from sr_edge.passport import demo_paths
from sr_edge.reading import Places
from sr_edge.testing.batch_writer import BatchWriter, WideLlama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("handback") / "tiny.gguf", context_length=4096)


@pytest.fixture
def local(model: Path) -> Iterator[LlamaLocal]:
    with LlamaLocal.open(model, temperature=0.0) as opened:
        yield opened


class Time:
    """Passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_paced_remote_writes_whether_it_is_read_or_not() -> None:
    time = Time()
    remote = PacedRemote([*"abcdef"], 2.0, clock=time, sleep=time.sleep)
    stream = remote.stream([], "", 100)
    assert remote.arrived == 103.0
    assert stream.read(0.0) == ""
    assert stream.read(0.2) == "", "nothing within the time"
    assert (stream.read(9.0), time.now) == ("a", 100.5), "not a moment longer than until the first text"
    time.now += 1.0
    assert stream.read(0.0) == "bc", "what arrived meanwhile"
    time.now += 60.0
    assert stream.read(1.0) == "def"
    assert stream.read(1.0) is None
    assert stream.outcome.completion_tokens == 6


def test_resuming_leaves_the_span_and_its_marker_in_the_cache(local: LlamaLocal) -> None:
    texts = span_texts(local, 60)
    resumed = resume(local, texts, rate=2000.0)
    assert local.markers is not None
    close = local.markers.close_ids
    assert resumed.ids[-len(close) :] == close
    assert b"".join(map(local.piece, resumed.ids)).decode() == "".join(texts)
    assert tuple(local.ids[resumed.start :][: len(resumed.ids)]) == resumed.ids


def test_reading_it_again_computes_the_whole_span_and_goes_on_alike(local: LlamaLocal) -> None:
    resumed = resume(local, span_texts(local, 60), rate=2000.0)
    first = local.ids[resumed.start + len(resumed.ids)]
    read_again(local, resumed)
    assert tuple(local.ids[resumed.start :]) == (*resumed.ids, first)


def test_a_model_that_ends_the_span_itself_is_an_error_that_says_so() -> None:
    with LlamaLocal.open(demo_paths().small, temperature=0.0) as small:
        texts = [" 20 * 4 = 80,", " 8 * 4 = 32,", " 80 + 32 = 112", ".\n", *"done and done"]
        with pytest.raises(EdgeError, match="handback"):
            resume(small, texts, rate=2000.0)


def test_places_are_those_that_the_client_reads_at(model: Path) -> None:
    text = "So he thinks: 12. On\nhe"
    with open_vocabulary(model) as vocabulary:
        pieces = [vocabulary.piece(id).decode() for id in vocabulary.ordinary(text)]

        def found(places: Places) -> list[str]:
            at = places_of(vocabulary, text, Markers("token", (0,), (0,)), places)
            return ["".join(pieces[: n + 1]) for n in sorted(at)]

        assert len(found("token")) == len(pieces)
        assert set(found("sentence")) < set(found("word")) < set(found("token"))
        assert any(each.endswith("\n") for each in found("sentence"))
        assert "So he thi" not in found("word"), "a word is not over in its middle"


def test_p_close_is_what_the_client_reads_and_only_where_it_is_wanted(model: Path, local: LlamaLocal) -> None:
    prompt, span = local.tokenize(prose(20)), local.tokenize(" " + prose(30, seed=3))[:50]
    local.feed(prompt)
    expected = local.feed(span, probe=True)
    assert local.markers is not None
    llama = WideLlama(model)
    try:
        reader = Reader(llama, prompt, span, local.markers)
        for batch in (8, 64):
            read = reader.read(batch, "token")
            assert [read[n] for n in range(50)] == pytest.approx(expected, abs=0.01)
        words = reader.read(16, "word")
        assert words.keys() == reader.places("word") != reader.places("token")
        assert all(math.isclose(close, expected[n], abs_tol=0.01) for n, close in words.items())
        assert reader.read(16, "none") == {}
    finally:
        llama.close()


def test_a_span_is_read_in_so_many_batches_wherever_p_close_is_read(model: Path, local: LlamaLocal) -> None:
    assert local.markers is not None
    llama = WideLlama(model)
    try:
        reader = Reader(llama, local.tokenize(prose(20)), local.tokenize(prose(60))[:64], local.markers)
        for places in ("none", "sentence", "word", "token"):
            decodes, computed, outputs = llama.decodes, llama.computed, llama.outputs
            read = reader.read(16, places)
            assert (llama.decodes - decodes, llama.computed - computed) == (4, 64)
            assert llama.outputs - outputs == len(read), "no row of logits that nobody reads"
    finally:
        llama.close()


def test_probing_writes_eight_tokens_after_each_prefix(model: Path) -> None:
    with BatchWriter(model, context_size=2048) as writer:
        prefixes = [prose(4) + "x" * n for n in range(1, 21)]
        together = probe(writer, prefixes, together=True)
        alone = probe(writer, prefixes, together=False)
    assert together.tokens == alone.tokens <= 20 * 8
    assert together.batches <= 8 + 2, "the prompt, what only some share, and a batch a step"
    assert alone.batches >= alone.tokens


class Timed:
    """A reader whose times are a script: with p(close), without, and so on."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = iter(seconds)
        self.asked: list[str] = []

    def seconds(self, batch: int, where: str) -> float:
        self.asked.append(where)
        return next(self._seconds)


def test_what_reading_adds_is_taken_by_turns_and_not_from_noise() -> None:
    timed = Timed([1.5, 1.0, 9.0, 8.0, 2.0, 1.9])
    assert extra_seconds(timed, 16, 3) == 0.5  # type: ignore[arg-type]
    assert timed.asked == ["token", "none"] * 3
    with pytest.raises(EdgeError, match="noise"):
        extra_seconds(Timed([1.0, 1.1]), 16, 1)  # type: ignore[arg-type]


def test_the_share_of_reading_is_taken_round_by_round() -> None:
    assert shares_of([10.0, 20.0, 4.0], [9.0, 16.0, 3.0]) == Spread(0.2, 0.1, 0.25, 3)


def setting_of(model: Path, home: Path) -> Setting:
    return Setting(model, threads=1, pairs=1, environ={}, home=home)


def test_reading_is_reported_for_every_kind_of_place(model: Path, tmp_path: Path) -> None:
    found = [row for row in _reading_rows(setting_of(model, tmp_path)) if isinstance(row, Row)]
    assert [row.goal.value for row in found if row.goal] == [0.20, 0.06, 0.06]
    assert all([side.name for side in row.sides] == [f"batches of {n}" for n in BATCHES] for row in found)
    assert "at 128 of 128 tokens" in found[0].note


def test_probing_is_compared_by_the_number_of_places(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sr_edge.bench.handback.extra_seconds", lambda reader, batch, repeats: 2.0)
    every, words, sentences = (
        row for row in _probing_rows(setting_of(model, tmp_path)) if isinstance(row, Row)
    )
    ours = [row.sides[0].measured.median for row in (every, words, sentences)]
    assert ours[0] == 2.0 > ours[1] > ours[2]
    assert every.figure.median == pytest.approx(every.sides[1].measured.median / 2.0)
    assert [row.goal is not None for row in (every, words, sentences)].count(True) == 1
    assert "512 tokens" in every.note
