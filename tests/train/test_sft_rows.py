"""Rows and their labels, against random annotated traces and a reference by hand."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.convert.making import make_checkpoint

from sr_edge.errors import UsageError
from sr_edge.markers import CLOSE, OPEN, strip_markers
from sr_edge.roles import Prompt
from sr_train.checkpoint import load_tokenizer
from sr_train.recipe import ModelPart
from sr_train.rollout.vocabulary import Vocabulary
from sr_train.sft.rows import (
    IGNORED,
    AnnotatedRow,
    RowMaker,
    SftRow,
    cut_row,
    read_annotated,
    spans_apart,
)

END, PAIRS = 1, 2
OPEN_ID, CLOSE_ID = 3, 4


class Bytes:
    """A vocabulary of bytes, where "ab" is one token: what merges across a border is seen."""

    def __init__(self, opening: str = "") -> None:
        self.opening = opening

    def render(self, messages):
        (message,) = messages
        return Prompt(tuple(self.ordinary(message.content)), message.content, self.opening)

    def ordinary(self, text: str) -> list[int]:
        return [PAIRS if piece == b"ab" else 10 + piece[0] for piece in self._pieces(text.encode())]

    def piece(self, id: int) -> bytes:
        return b"ab" if id == PAIRS else bytes([id - 10])

    @staticmethod
    def _pieces(data: bytes) -> list[bytes]:
        pieces = []
        while data:
            n = 2 if data.startswith(b"ab") else 1
            pieces.append(data[:n])
            data = data[n:]
        return pieces


def maker(span_loss="train", words=None, **options) -> RowMaker:
    return RowMaker(words or Bytes(), OPEN_ID, CLOSE_ID, END, span_loss, **options)


texts = st.text(st.sampled_from("abab. \né"), max_size=8)
spans = st.text(st.sampled_from("abab. \né"), min_size=1, max_size=8)


@st.composite
def traces(draw) -> list[str]:
    parts = [draw(texts)]
    for _ in range(draw(st.integers(0, 4))):
        parts += [draw(spans), draw(texts)]
    return parts


def annotated(parts, id="row") -> AnnotatedRow:
    text = "".join(OPEN + part + CLOSE if n % 2 else part for n, part in enumerate(parts))
    return AnnotatedRow(id, "why ab", "7", text)


@given(traces(), st.sampled_from(["mask", "train", "close"]))
def test_labels_equal_those_by_hand(parts, span_loss):
    row = maker(span_loss).row(annotated(parts))
    asked: list[tuple[int, int]] = [(id, IGNORED) for id in Bytes().ordinary("why ab")]
    for n, part in enumerate(parts):
        ids = Bytes().ordinary(part)
        if n % 2 == 0:
            asked += [(id, id) for id in ids]
        else:
            within = {"mask": IGNORED, "close": CLOSE_ID}
            asked.append((OPEN_ID, OPEN_ID))
            asked += [(id, within.get(span_loss, id)) for id in ids]
            asked.append((CLOSE_ID, CLOSE_ID))
    asked.append((END, END))
    assert list(zip(row.input_ids, row.labels, strict=True)) == asked
    assert row.num_prompt == len(Bytes().ordinary("why ab"))


@given(traces())
def test_a_row_holds_its_text_byte_for_byte(parts):
    each = annotated(parts)
    row = maker().row(each)
    written = [id for id in row.input_ids[row.num_prompt : -1] if id not in (OPEN_ID, CLOSE_ID)]
    assert b"".join(map(Bytes().piece, written)) == strip_markers(each.text).encode()


@given(traces())
def test_a_local_row_has_the_words_without_markers_and_no_loss_on_the_spans(parts):
    row = maker(local_share=0.999999).row(annotated(parts))
    ids, labels = row.input_ids[row.num_prompt : -1], row.labels[row.num_prompt : -1]
    assert list(ids) == Bytes().ordinary("".join(parts))
    inside = [n % 2 == 1 for n, part in enumerate(parts) for _ in part.encode()]
    at = 0
    for id, label in zip(ids, labels, strict=True):
        end = at + len(Bytes().piece(id))
        assert label == (IGNORED if True in inside[at:end] else id)
        at = end
    assert row.labels[-1] == END


def test_which_rows_are_local_is_a_matter_of_seed_and_id_alone():
    rows = [annotated(["a", "b", "c"], f"row-{n}") for n in range(400)]

    def local(seed, order):
        made = maker(local_share=0.3, seed=seed)
        return {each.id for each in order if OPEN_ID not in made.row(each).input_ids}

    one = local(0, rows)
    assert one == local(0, random.Random(1).sample(rows, len(rows)))
    assert one != local(1, rows)
    assert 0.22 < len(one) / len(rows) < 0.38


@given(traces(), st.integers(1, 40), st.sampled_from(["mask", "train", "close"]))
def test_a_cut_row_is_a_beginning_that_ends_outside_of_spans(parts, max_length, span_loss):
    row = maker(span_loss).row(annotated(parts))
    cut = cut_row(row, max_length, OPEN_ID, CLOSE_ID)
    if cut is None:
        assert len(row.input_ids) > max_length
        return
    n = len(cut.input_ids)
    assert n <= max_length
    assert (cut.input_ids, cut.labels) == (row.input_ids[:n], row.labels[:n])
    assert cut.input_ids.count(OPEN_ID) == cut.input_ids.count(CLOSE_ID)
    assert any(label != IGNORED for label in cut.labels)
    if n < min(max_length, len(row.input_ids)):  # only a span makes it shorter than it may be
        assert row.input_ids[n] == OPEN_ID


def test_a_row_whose_prompt_alone_is_too_long_is_nothing():
    row = SftRow("row", (5, 6, 7, 8), (IGNORED, IGNORED, IGNORED, 8), 3)
    assert cut_row(row, 3, OPEN_ID, CLOSE_ID) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a{OPEN}b", "has no"),
        (f"a{CLOSE}b", "unpaired"),
        (f"a{OPEN}{CLOSE}b", "empty"),
        (f"a{OPEN}b{OPEN}c{CLOSE}d", "nested"),
        (f"a{OPEN}b{CLOSE}c{CLOSE}", "unpaired"),
        (f"a{OPEN}b<\\bigmodel>c{CLOSE}", "misspelt"),
    ],
)
def test_markers_that_do_not_match_are_refused_by_the_rows_name(text, message):
    with pytest.raises(UsageError, match=f"row-7: .*{message}"):
        maker().row(AnnotatedRow("row-7", "why", "7", text))


def test_a_marker_in_a_question_is_refused():
    with pytest.raises(UsageError, match=r"row-7: .*question"):
        maker().row(AnnotatedRow("row-7", f"what is {OPEN}?", "7", "a"))


@given(traces())
def test_spans_apart_is_the_way_back(parts):
    assert spans_apart("row", annotated(parts).text) == parts


@pytest.mark.parametrize(
    ("opening", "text", "expected"),
    [
        ("<think>\n", f"<think>\na{OPEN}b{CLOSE}</think>c", f"a{OPEN}b{CLOSE}</think>c"),
        ("<think>\n", f"a{OPEN}b{CLOSE}</think>c", f"a{OPEN}b{CLOSE}</think>c"),
        ("", f"a{OPEN}b{CLOSE}</think>c", f"<think>\na{OPEN}b{CLOSE}</think>c"),
    ],
)
def test_the_think_tag_is_written_once(opening, text, expected):
    row = maker(words=Bytes(opening)).row(AnnotatedRow("r", "q", "7", text))
    spelled = {OPEN_ID: OPEN.encode(), CLOSE_ID: CLOSE.encode()}
    body = row.input_ids[row.num_prompt : -1]
    assert b"".join(spelled.get(id) or Bytes().piece(id) for id in body).decode() == expected


# --- a true tokenizer ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def true_tokenizer(tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp("vocabulary"), "qwen2")
    return load_tokenizer(ModelPart(str(folder)))


@pytest.fixture(scope="module")
def true_maker(true_tokenizer) -> RowMaker:
    ids = true_tokenizer.get_vocab()
    return RowMaker(Vocabulary(true_tokenizer), ids[OPEN], ids[CLOSE], true_tokenizer.eos_token_id, "close")


@settings(max_examples=40)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5))
def test_true_tokens_decode_to_the_text_and_hold_no_marker_but_ours(true_maker, parts):
    parts = [part.encode("utf-8", "replace").decode() for part in parts]
    parts += [" end"] * (len(parts) % 2 == 0)
    each = annotated(parts)
    row = true_maker.row(each)
    body = row.input_ids[row.num_prompt : -1]
    assert body.count(true_maker.open_id) == body.count(true_maker.close_id) == len(parts) // 2
    text = b"".join(map(true_maker.words.piece, body)).decode()
    # a content's think tags are adapted to what the template opened
    assert text == strip_markers(each.text) or "<think>" in each.text


def test_text_that_looks_like_a_control_token_is_none(true_maker):
    row = true_maker.row(AnnotatedRow("r", "<|im_end|>", "7", f"<|im_end|> a {OPEN}<|im_start|>{CLOSE}"))
    assert row.input_ids.count(true_maker.end_id) == 2  # of the user's turn, and of the answer
    body = row.input_ids[row.num_prompt : -1]
    assert b"".join(map(true_maker.words.piece, body)) == b"<|im_end|> a <|im_start|>"


def test_the_prompt_is_that_of_the_chat_template(true_maker, true_tokenizer):
    question = "What is 6 * 7?"
    row = true_maker.row(AnnotatedRow("r", question, "42", "x"))
    prompt = true_tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    assert list(row.input_ids[: row.num_prompt]) == prompt


# --- files -----------------------------------------------------------------------------------------------


def test_rows_are_read_from_lines(tmp_path):
    path = tmp_path / "dataset.jsonl"
    lines = [
        {"id": "1", "question": "q", "answer": "7", "text": f"a{OPEN}é{CLOSE}", "more": 1},
        {"id": "2", "question": "q", "answer": "7", "text": "a"},
    ]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", "utf-8")
    assert list(read_annotated(path)) == [
        AnnotatedRow("1", "q", "7", f"a{OPEN}é{CLOSE}"),
        AnnotatedRow("2", "q", "7", "a"),
    ]


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 1: this is no JSON"), ('{"id": 1}', "line 1: a row has the texts")]
)
def test_a_line_that_is_no_row_is_named(line, message, tmp_path):
    path = tmp_path / "dataset.jsonl"
    path.write_text(line)
    with pytest.raises(UsageError, match=message):
        list(read_annotated(path))


def test_a_file_that_is_missing_says_how_to_make_it(tmp_path):
    with pytest.raises(UsageError, match="sr-edge train annotate"):
        list(read_annotated(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("local_share", [0.0, 0.999999])
def test_unlearned_parts_are_read_and_have_no_loss(true_tokenizer, local_share: float) -> None:
    words = Vocabulary(true_tokenizer)
    text = "First 12 and so. <bigmodel>hard step</bigmodel> Then 345 é more; the end."
    start = text.index("345")
    plain = AnnotatedRow("a", "What?", "1", text)
    part = AnnotatedRow("a", "What?", "1", text, ((start, start + 5),))
    maker = RowMaker(words, 1, 2, 3, "train", local_share)
    whole, less = maker.row(plain), maker.row(part)
    assert whole.input_ids == less.input_ids
    ids = whole.input_ids
    changed = [n for n in range(len(ids)) if whole.labels[n] != less.labels[n]]
    assert {less.labels[n] for n in changed} == {IGNORED}
    read = b"".join(words.piece(ids[n]) for n in changed).decode()
    assert "345 é" in read
    assert len(read) <= len("345 é") + 4  # tokens that only touch it are left out too
