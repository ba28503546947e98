"""Markers of every form: found, added on unused or on new rows, and told in the metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType
from tests.convert.adapting import tensors
from tests.convert.making import make_checkpoint, token_ids

from sr_convert.checkpoint import EMBEDDING, HEAD, open_checkpoint
from sr_convert.convert import Request, convert
from sr_convert.markers import Marked, marked
from sr_convert.tokenizer import Words, read_tokenizer
from sr_edge import __version__
from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.local import LlamaLocal
from sr_edge.markers import CLOSE, OPEN, Markers


def mark(folder: Path, **options: Any) -> Marked:
    checkpoint = open_checkpoint(folder)
    words = read_tokenizer(folder, checkpoint.shapes[EMBEDDING][0], checkpoint.config)
    usual: dict[str, Any] = {
        "folders": [folder], "origin": None, "trained_on": None, "add": False, "as_text": False, "tau": None,
    }  # fmt: skip
    return marked(checkpoint, words, **{**usual, **options})


def metadata(result: Marked) -> dict[str, Any]:
    assert all(field.is_sound() for field in result.fields)
    return {field.key.removeprefix("sr_edge."): field.value for field in result.fields}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tokens"), "llama", markers="token")


def test_a_model_without_markers_gets_no_form(plain: Path):
    result = mark(plain)
    assert metadata(result) == {"version": __version__}
    assert result.notes == ()


@pytest.mark.parametrize("tied", [False, True])
def test_added_on_the_first_unused_rows(tmp_path: Path, tied: bool):
    folder = make_checkpoint(tmp_path / "c", tied=tied)
    before, last = open_checkpoint(folder), max(token_ids(folder).values())
    result = mark(folder, add=True)
    assert metadata(result) == {
        "version": __version__,
        "markers.form": "token",
        "markers.open_id": last + 1,
        "markers.close_id": last + 2,
        "handback.tau": 0.5,
        "handback.min_span": 1,
    }
    assert result.words.tokens[last + 1 : last + 3] == (OPEN, CLOSE)
    assert set(result.words.types[last + 1 : last + 3]) == {TokenType.CONTROL}
    assert result.source.config["vocab_size"] == before.config["vocab_size"]

    spelled = {last + 1: result.words.encode(OPEN), last + 2: result.words.encode(CLOSE)}
    assert all(len(ids) > 1 for ids in spelled.values())
    ours, theirs = tensors(result.source), tensors(before)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        if name in (EMBEDDING, HEAD):
            for id, ids in spelled.items():
                mean = values[list(ids)].astype(np.float64).mean(axis=0)
                np.testing.assert_allclose(ours[name][id], mean, rtol=1e-6)
                values[id] = ours[name][id]
        assert np.array_equal(ours[name], values), name
    assert (HEAD in ours) is not tied


def test_the_client_reads_them_from_the_file(tmp_path: Path):
    folder, out = make_checkpoint(tmp_path / "c"), tmp_path / "model.gguf"
    last = max(token_ids(folder).values())
    convert(Request(folder, out, "f16", add_markers=True, tau=0.25), lambda what, done, whole: None)
    local = LlamaLocal.open(out, threads=1)
    try:
        assert local.markers == Markers("token", (last + 1,), (last + 2,), tau=0.25)
    finally:
        local.close()


@pytest.mark.parametrize("num_spare", [0, 1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_are_added_where_none_is_unused(tmp_path: Path, tied: bool, num_spare: int):
    probe = make_checkpoint(tmp_path / "probe")
    rows = max(token_ids(probe).values()) + 1 + num_spare
    folder = make_checkpoint(tmp_path / "c", tied=tied, num_tokens=rows)
    result = mark(folder, add=True)
    grown = rows + 2 - num_spare
    assert result.source.config["vocab_size"] == grown == len(result.words.tokens) == len(result.words.types)
    assert len(result.notes) == (1 if num_spare == 2 else 2)
    before = open_checkpoint(folder)
    for name, values in tensors(result.source).items():
        if name in (EMBEDDING, HEAD):
            assert values.shape == result.source.shapes[name] == (grown, 64)
            assert np.array_equal(values[: rows - num_spare], before.rows(name, 0, rows - num_spare))
            assert np.abs(values[grown - 1]).max() > 0


def test_markers_that_are_there_stay_where_they_are(with_tokens: Path):
    ids = token_ids(with_tokens)
    result = mark(with_tokens, add=True)
    assert result.notes == (
        f"the markers are in it already, tokens {ids[OPEN]} and {ids[CLOSE]}: nothing was added",
    )
    told = metadata(result)
    assert (told["markers.open_id"], told["markers.close_id"]) == (ids[OPEN], ids[CLOSE])
    assert {result.words.types[ids[marker]] for marker in (OPEN, CLOSE)} == {TokenType.CONTROL}
    assert len(result.words.tokens) == open_checkpoint(with_tokens).shapes[EMBEDDING][0]
    ours, before = tensors(result.source), tensors(open_checkpoint(with_tokens))
    assert all(np.array_equal(ours[name], values) for name, values in before.items())


def test_one_of_two_is_refused_or_completed(plain: Path):
    checkpoint = open_checkpoint(plain)
    words = read_tokenizer(plain, checkpoint.shapes[EMBEDDING][0], checkpoint.config)
    first = words.unused_rows[0]
    half = Words(**{**vars(words), "tokens": _with(words.tokens, first, CLOSE)})
    half = replace(half, types=_with(words.types, first, TokenType.USER_DEFINED))
    options: dict[str, Any] = {
        "folders": [plain], "origin": None, "trained_on": None, "as_text": False, "tau": None,
    }  # fmt: skip
    with pytest.raises(ModelError, match=f"has {CLOSE} but not the other"):
        marked(checkpoint, half, add=False, **options)
    told = metadata(marked(checkpoint, half, add=True, **options))
    assert (told["markers.open_id"], told["markers.close_id"]) == (first + 1, first)


def _with(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


# --- plain text ----------------------------------------------------------------------------------------


def test_a_published_checkpoint_is_known_by_its_card(tmp_path: Path):
    folder = make_checkpoint(tmp_path / "c", markers="text")
    result = mark(folder)
    assert metadata(result) == {
        "version": __version__,
        "markers.form": "text",
        "handback.tau": 0.5,
        "handback.min_span": 1,
        "base_model": "example/Tiny-SpeculativeReasoner",
    }
    assert result.notes == ("its markers are plain text (as those of example/Tiny-SpeculativeReasoner)",)
    with pytest.raises(UsageError, match="without adding others"):
        mark(folder, add=True)


@pytest.mark.parametrize(
    "options",
    [
        {"origin": "someone/DeepSeek-R1-Distill-Qwen-1.5B-GRPO-SpeculativeReasoner@0123abc"},
        {"trained_on": "someone/My_SplitReason"},
        {"as_text": True},
    ],
)
def test_or_by_its_name_or_because_it_is_said(plain: Path, options: dict[str, Any]):
    assert metadata(mark(plain, **options))["markers.form"] == "text"


def test_or_by_its_chat_template(plain: Path):
    checkpoint = open_checkpoint(plain)
    words = read_tokenizer(plain, checkpoint.shapes[EMBEDDING][0], checkpoint.config)
    words = replace(words, templates={"default": f"Write {OPEN} before a hard step."})
    result = marked(
        checkpoint, words, folders=[], origin=None, trained_on=None, add=False, as_text=False, tau=None
    )
    assert metadata(result)["markers.form"] == "text"


@pytest.mark.parametrize(
    ("card", "base"),
    [
        ("---\nbase_model: a/b\n---\n", "a/b"),
        ("---\nlicense: mit\r\nbase_model:\r\n- 'a/b-c.1'\r\n- d/e\r\n---\r\n", "a/b-c.1"),
        ('---\nbase_model: ["a/b"]\n---\n', "a/b"),
        ("---\nbase_model: /home/someone/runs/7\n---\n", None),
        ("base_model: a/b\n", None),
        ("---\nbase_model:\n---\n", None),
        ("---\nbase_model: [[[\n", None),
        ("\xff\xfe", None),
    ],
)
def test_the_base_model_of_a_card(plain: Path, tmp_path: Path, card: str, base: str | None):
    (tmp_path / "README.md").write_bytes(card.encode("latin-1"))
    assert metadata(mark(plain, folders=[tmp_path])).get("base_model") == base


# --- the note of a training ----------------------------------------------------------------------------


def note(folder: Path, **told: Any) -> Path:
    (folder / "sr_edge.json").write_text(json.dumps({"v": 1, **told}))
    return folder


def test_a_note_is_passed_on_and_an_option_is_stronger(with_tokens: Path, tmp_path: Path):
    folders = [
        note(
            tmp_path,
            markers="token",
            handback={"tau": 0.25, "min_span": 3},
            base_model="Qwen/Qwen3-1.7B",
            training_run="grpo-7, step 300",
        ),
        with_tokens,  # has a note of its own, which counts less
    ]
    told = metadata(mark(with_tokens, folders=folders))
    assert (told["handback.tau"], told["handback.min_span"]) == (0.25, 3)
    assert (told["base_model"], told["training_run"]) == ("Qwen/Qwen3-1.7B", "grpo-7, step 300")
    assert metadata(mark(with_tokens, folders=folders, tau=0.75))["handback.tau"] == 0.75


def test_a_note_tells_the_form(plain: Path, tmp_path: Path):
    assert metadata(mark(plain, folders=[note(tmp_path, markers="text")]))["markers.form"] == "text"


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ([], "no JSON object"),
        ({}, "of version None, and 1 is known"),
        ({"v": 2}, "of version 2, and 1 is known"),
        ({"v": 1, "marker": "token"}, "no setting 'marker'"),
        ({"v": 1, "markers": "tokens"}, "markers cannot be tokens"),
        ({"v": 1, "handback": 0.5}, r"handback cannot be 0\.5"),
        ({"v": 1, "handback": {"tau": 1}}, "tau cannot be 1"),
        ({"v": 1, "handback": {"tau": "high"}}, "tau cannot be high"),
        ({"v": 1, "handback": {"min_span": -1}}, "min_span cannot be -1"),
        ({"v": 1, "handback": {"min_span": True}}, "min_span cannot be True"),
        ({"v": 1, "base_model": 7}, "base_model cannot be 7"),
        ({"v": 1, "markers": "token"}, "the tokenizer does not have both"),
    ],
)
def test_a_note_that_cannot_be_followed(plain: Path, tmp_path: Path, told: Any, reason: str):
    (tmp_path / "sr_edge.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=reason):
        mark(plain, folders=[tmp_path])


def test_a_note_that_is_no_text(plain: Path, tmp_path: Path):
    (tmp_path / "sr_edge.json").write_bytes(b"\xff{")
    with pytest.raises(ModelError, match="no JSON"):
        mark(plain, folders=[tmp_path])


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"as_text": True}, UsageError, "leave --text-markers out"),
        ({"as_text": True, "add": True}, UsageError, "choose one"),
        ({"tau": 1.0}, UsageError, "between 0 and 1"),
    ],
)
def test_what_cannot_be_meant(
    with_tokens: Path, options: dict[str, Any], error: type[EdgeError], reason: str
):
    with pytest.raises(error, match=reason):
        mark(with_tokens, **options)


def test_contradictions_with_the_vocabulary(plain: Path, with_tokens: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="the tokenizer has them as tokens"):
        mark(with_tokens, folders=[note(tmp_path, markers="text")])
    with pytest.raises(UsageError, match="this one has none"):
        mark(plain, tau=0.3)
