"""`verify`: a right file holds, and each way of being wrong is seen in the row where it belongs."""

from __future__ import annotations

import json
import math
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.convert.making import make_checkpoint
from tests.convert.rewriting import rewritten

from sr_convert.convert import Request, convert
from sr_convert.verify import DifferentError, Row, Verdict, comparing, reference, remarks, render, verify
from sr_convert.verify.continuation import judge_text
from sr_convert.verify.corpus import CONVERSATIONS, MARKED, passages, texts
from sr_convert.verify.limits import EXACT, file_type, limits_of
from sr_convert.verify.logits import compare, judge_logits, judge_markers
from sr_convert.verify.passages import Decision, Passage, marked_passages, plain_passages
from sr_convert.verify.rendering import client_renderer
from sr_convert.verify.tokens import read_words
from sr_edge.doctor.machine import Memory
from sr_edge.errors import ModelError, UsageError
from sr_edge.markers import Markers

ARCHITECTURES = ("qwen2", "qwen3", "llama")
TOKENS = "tokenizer.ggml.tokens"
Q = "blk.1.attn_q.weight"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def checkpoint(shelf: Path) -> Path:
    """A Qwen 2 of four layers whose markers are tokens."""
    return make_checkpoint(shelf / "qwen2-marked", "qwen2", layers=4, markers="token")


@pytest.fixture(scope="module")
def right(checkpoint: Path, shelf: Path) -> Path:
    return converted(checkpoint, shelf / "right.gguf")


def converted(checkpoint: Path, out: Path, type: str = "f32", **options: Any) -> Path:
    convert(Request(checkpoint=checkpoint, out=out, type=type, **options), lambda what, done, whole: None)
    return out


def judged(verdict: Verdict) -> dict[str, str]:
    return {row.what: row.judgement for row in verdict.rows}


def row_of(verdict: Verdict, what: str) -> Row:
    return next(row for row in verdict.rows if row.what == what)


# --- what is right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_float32_file_equals_its_checkpoint(architecture: Any, tied: bool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", architecture, layers=4, tied=tied, markers="token")
    verdict = verify(converted(checkpoint, tmp_path / "f32.gguf"), checkpoint)
    assert set(judged(verdict).values()) == {"equal"}, list(remarks(verdict))
    assert [*judged(verdict)] == [
        *("vocabulary", "tokens", "weights", "template", "metadata", "logits", "text", "markers")
    ]
    figures = row_of(verdict, "logits").figures
    assert figures["positions"] >= 256
    assert figures["max_logit_difference"] < 1e-3
    assert figures["top1"] == 1
    assert row_of(verdict, "markers").figures["decisions"] > 100
    assert (verdict.judgement, verdict.exit_code, verdict.unchecked) == ("equal", 0, ())
    verdict.check()


@pytest.mark.parametrize(
    ("architecture", "options", "rope"),
    [
        ("qwen2", {}, {"rope_type": "linear", "factor": 4.0}),
        (
            "qwen3",
            {"head_dim": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
        (
            "llama",
            {"head_dim": 32, "attention_bias": True, "mlp_bias": True},
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
    ids=["linear", "yarn", "llama3"],
)
def test_scaled_positions_equal_too(
    architecture: Any, options: dict[str, Any], rope: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", architecture, rope=rope, **options)
    verdict = verify(converted(checkpoint, tmp_path / "f32.gguf"), checkpoint)
    assert set(judged(verdict).values()) == {"equal"}, list(remarks(verdict))


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0"])
def test_a_file_of_fewer_bits_is_close(type: str, checkpoint: Path, tmp_path: Path) -> None:
    verdict = verify(converted(checkpoint, tmp_path / "x.gguf", type), checkpoint)
    rows = judged(verdict)
    assert verdict.judgement == "close", list(remarks(verdict))
    assert rows["logits"] == rows["weights"] == rows["markers"] == "close"
    assert rows["tokens"] == rows["vocabulary"] == rows["template"] == rows["metadata"] == "equal"
    assert f"as close as {type} can be" in verdict.summary
    assert 0 < row_of(verdict, "logits").figures["mean_kl"] < 0.01


@pytest.mark.parametrize("type", ["q6_k", "q4_k_m"])
def test_a_k_quant_is_close_and_a_row_that_was_exchanged_in_it_is_found(type: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", "qwen2", hidden=256, inner=256, dtype="bfloat16")
    file = converted(checkpoint, tmp_path / "k.gguf", type)
    verdict = verify(file, checkpoint)
    assert verdict.judgement == "close", list(remarks(verdict))
    assert verdict.type == type
    wrong = rewritten(file, tmp_path / "wrong.gguf", tensors={Q: exchange_rows})
    verdict = verify(wrong, checkpoint)
    assert judged(verdict)["weights"] == "differs"
    assert row_of(verdict, "weights").detail.startswith(Q)


def test_a_tensor_that_is_coarser_than_its_type_is_found(checkpoint: Path, tmp_path: Path) -> None:
    """No single value is far off; together they are not what rounding leaves."""

    def blurred(data: np.ndarray) -> np.ndarray:
        values = data.astype(np.float32)
        largest = np.abs(values).max(axis=1, keepdims=True)
        small = np.abs(values) < largest / 4
        return (values + small * largest * np.float32(4.5e-4)).astype(np.float16)

    file = converted(checkpoint, tmp_path / "f16.gguf", "f16")
    verdict = verify(rewritten(file, tmp_path / "x.gguf", tensors={Q: blurred}), checkpoint, positions=8)
    assert row_of(verdict, "weights").detail.startswith(f"{Q} (F16) is off by 0.000")


def test_markers_that_the_conversion_added_are_no_difference(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", "qwen3", layers=2)
    verdict = verify(converted(checkpoint, tmp_path / "x.gguf", add_markers=True, tau=0.25), checkpoint)
    rows = judged(verdict)
    assert rows.pop("markers") == "not checked"
    assert set(rows.values()) == {"equal"}, list(remarks(verdict))
    assert "the conversion added <bigmodel> at" in row_of(verdict, "vocabulary").detail
    assert "tau is 0.25" in row_of(verdict, "metadata").detail
    assert "as far as it was checked: markers not" in verdict.summary


def test_markers_that_are_text_are_looked_at_where_they_begin(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", "qwen2", markers="text")
    verdict = verify(converted(checkpoint, tmp_path / "x.gguf"), checkpoint)
    assert verdict.judgement == "equal", list(remarks(verdict))
    assert 0 < row_of(verdict, "markers").figures["decisions"] <= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture"), [("qwen2", "qwen2"), ("deepseek-r1-qwen", "qwen2"), ("llama-bpe", "llama")]
)
def test_real_vocabularies_equal_token_by_token(name: Any, architecture: Any, tmp_path: Path) -> None:
    from tests.convert.official import write_real_tokenizer

    (tmp_path / "words").mkdir()
    write_real_tokenizer(tmp_path / "words", name)
    checkpoint = make_checkpoint(tmp_path / "c", architecture, vocab=tmp_path / "words", tied=True)
    verdict = verify(converted(checkpoint, tmp_path / "x.gguf"), checkpoint)
    rows = judged(verdict)
    assert rows["vocabulary"] == rows["tokens"] == rows["logits"] == "equal", list(remarks(verdict))
    assert row_of(verdict, "tokens").figures["texts"] > 100_000


# --- what is wrong ---------------------------------------------------------------------------------------


def exchange_rows(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    data[[0, 1]] = data[[1, 0]]
    return data


def permuted(data: np.ndarray) -> np.ndarray:
    """As Llama's rows are, which a Qwen's must not be; four heads."""
    rows, columns = data.shape
    return data.reshape(4, 2, rows // 8, columns).swapaxes(1, 2).reshape(rows, columns)


def with_a_flipped_bit(data: np.ndarray) -> np.ndarray:
    bits = data.copy().view(np.uint32)
    bits[3, 5] ^= 1 << 29  # of its exponent
    return bits.view(np.float32)


def with_no_number(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    data[0, 0] = np.nan
    return data


def swapped(items: list[Any], first: int = 300, second: int = 301) -> list[Any]:
    items = list(items)
    items[first], items[second] = items[second], items[first]
    return items


def with_a_control_token(kinds: list[int]) -> list[int]:
    return [*kinds[:300], int(gguf.TokenType.CONTROL), *kinds[301:]]


def without_the_last_control_token(kinds: list[int]) -> list[int]:
    at = max(i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL)
    return [*kinds[:at], int(gguf.TokenType.NORMAL), *kinds[at + 1 :]]


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "rows of q permuted": ({}, {Q: permuted}, {"weights", "logits", "text"}),
    "a bit flipped": ({}, {"blk.2.ffn_down.weight": with_a_flipped_bit}, {"weights", "logits", "text"}),
    "a bias lost": ({}, {"blk.0.attn_k.bias": np.zeros_like}, {"weights", "logits", "text"}),
    "two tokens swapped": ({TOKENS: swapped}, {}, {"vocabulary", "tokens"}),
    "merges in another order": ({"tokenizer.ggml.merges": lambda merges: merges[::-1]}, {}, {"tokens"}),
    "a merge lost": ({"tokenizer.ggml.merges": lambda merges: merges[:-1]}, {}, {"tokens"}),
    "another pre-tokenizer": ({"tokenizer.ggml.pre": lambda pre: "gpt-2"}, {}, {"tokens"}),
    "a word that is a control token": (
        {"tokenizer.ggml.token_type": with_a_control_token},
        {},
        {"vocabulary"},
    ),
    "a marker that is text": (
        {"tokenizer.ggml.token_type": without_the_last_control_token},
        {},
        {"tokens", "metadata"},
    ),
    "a token before each prompt": (
        {"tokenizer.ggml.add_bos_token": lambda adds: not adds},
        {},
        {"tokens"},
    ),
    "another template": (
        {"tokenizer.chat_template": lambda text: text.replace("<think>", "<thought>")},
        {},
        {"template"},
    ),
    "no template": ({"tokenizer.chat_template": lambda text: None}, {}, {"template"}),
    "another tau": ({"sr_edge.handback.tau": lambda tau: 0.7}, {}, {"metadata"}),
    "another min_span": ({"sr_edge.handback.min_span": lambda n: 5}, {}, {"metadata"}),
    "another base of positions": (
        {"qwen2.rope.freq_base": lambda base: 10000.0},
        {},
        {"metadata", "logits"},
    ),
    "another end of answers": ({"tokenizer.ggml.eos_token_id": lambda id: 65}, {}, {"metadata"}),
    "a shorter context": ({"qwen2.context_length": lambda n: n // 2}, {}, {"metadata"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_differs_in_the_right_row(
    name: str, right: Path, checkpoint: Path, tmp_path: Path
) -> None:
    fields, tensors, rows = WRONG[name]
    wrong = rewritten(right, tmp_path / "wrong.gguf", fields=fields, tensors=tensors)
    verdict = verify(wrong, checkpoint)
    found = {what for what, judgement in judged(verdict).items() if judgement == "differs"}
    must = rows - {"text"}  # greedy text may happen to stay the same
    assert must <= found <= rows | {"text", "template", "markers"}, list(remarks(verdict))
    assert all(row_of(verdict, what).detail for what in found)
    assert verdict.exit_code == 1
    with pytest.raises(DifferentError, match="convert the checkpoint again") as caught:
        verdict.check()
    assert caught.value.exit_code == 1


def test_tokens_that_differ_are_shown_with_what_stands_before(
    right: Path, checkpoint: Path, tmp_path: Path
) -> None:
    merges = {"tokenizer.ggml.merges": lambda merges: merges[:-1]}
    detail = row_of(verify(rewritten(right, tmp_path / "x.gguf", fields=merges), checkpoint), "tokens").detail
    assert "the checkpoint has" in detail
    assert "; the file" in detail


def test_logits_that_are_no_numbers_are_a_damaged_tensor(
    right: Path, checkpoint: Path, tmp_path: Path
) -> None:
    wrong = rewritten(right, tmp_path / "wrong.gguf", tensors={"output.weight": with_no_number})
    verdict = verify(wrong, checkpoint)
    assert row_of(verdict, "logits").detail == "the file's logits are not numbers: a tensor is damaged"
    assert row_of(verdict, "weights").judgement == "differs"
    json.dumps(verdict.as_json(), allow_nan=False)


def test_another_training_of_the_same_model_differs(right: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", "qwen2", layers=4, markers="token", seed=1)
    rows = judged(verify(right, other))
    assert rows["vocabulary"] == rows["tokens"] == rows["template"] == rows["metadata"] == "equal"
    assert rows["weights"] == rows["logits"] == rows["text"] == "differs"


def test_a_word_that_llama_cpp_takes_for_an_end_is_no_difference(
    right: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Qwen's vocabulary has an ordinary `</s>`, and llama.cpp makes a control token of it by its name."""
    from tokenizers import Tokenizer

    other = shutil.copytree(checkpoint, tmp_path / "c")
    path = other / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    spelling = Tokenizer.from_file(str(path)).id_to_token(500)
    assert all(spelling not in pair for pair in told["model"]["merges"][-20:])
    told["model"]["merges"] = [
        pair for pair in told["model"]["merges"] if spelling not in (*pair, "".join(pair))
    ]
    told["model"]["vocab"]["</s>"] = told["model"]["vocab"].pop(spelling)
    path.write_text(json.dumps(told), encoding="utf-8")
    verdict = verify(converted(other, tmp_path / "x.gguf"), other, positions=8)
    assert judged(verdict)["vocabulary"] == judged(verdict)["tokens"] == "equal", list(remarks(verdict))
    assert "llama.cpp itself takes </s> for the end" in row_of(verdict, "vocabulary").detail


def test_a_threshold_that_was_chosen_by_hand_is_no_difference(
    right: Path, checkpoint: Path, tmp_path: Path
) -> None:
    chosen = rewritten(right, tmp_path / "x.gguf", fields={"sr_edge.handback.tau": lambda tau: 0.7})
    assert verify(chosen, checkpoint, tau=0.7, positions=8).judgement == "equal"


# --- an adapter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, shelf: Path) -> Path:
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"])
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(shelf / "adapter")
    return shelf / "adapter"


@pytest.mark.filterwarnings("ignore")  # peft's, while the fixture trains nothing
def test_a_merged_adapter_is_compared_with_peft(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    file = converted(checkpoint, tmp_path / "x.gguf", adapter=adapter)
    verdict = verify(file, checkpoint, adapter=adapter)
    assert verdict.judgement == "equal", list(remarks(verdict))
    assert str(adapter) in verdict.summary
    rows = judged(verify(file, checkpoint))
    assert rows["weights"] == rows["logits"] == "differs"


@pytest.mark.filterwarnings("ignore")
def test_without_peft_the_logits_of_an_adapter_are_not_checked(
    checkpoint: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "peft")
    file = converted(checkpoint, tmp_path / "x.gguf", adapter=adapter)
    verdict = verify(file, checkpoint, adapter=adapter)
    assert verdict.unchecked == ("logits", "text", "markers")
    assert "pip install peft" in row_of(verdict, "logits").detail
    assert verdict.exit_code == 0


# --- what is missing -------------------------------------------------------------------------------------


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    real = reference.find_spec
    monkeypatch.setattr(reference, "find_spec", lambda name: None if name in packages else real(name))


def test_without_torch_all_but_logits_is_checked(
    right: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "torch", "transformers")
    verdict = verify(right, checkpoint)
    assert verdict.unchecked == ("logits", "text", "markers")
    assert "pip install 'sr-edge[verify]'" in row_of(verdict, "logits").detail
    assert (verdict.judgement, verdict.exit_code) == ("equal", 0)
    assert verdict.summary.endswith("as far as it was checked: logits, text and markers not")
    change = {"tokenizer.chat_template": lambda text: text.replace("<think>", "<thought>")}
    wrong = rewritten(right, tmp_path / "wrong.gguf", fields=change)
    assert judged(verify(wrong, checkpoint))["template"] == "differs"


def test_a_checkpoint_that_does_not_fit_in_memory_is_not_loaded(
    right: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "memory", lambda: Memory(8 << 30, 100 << 20))
    monkeypatch.setattr(comparing, "Reference", None)
    verdict = verify(right, checkpoint)
    assert verdict.unchecked == ("logits", "text", "markers")
    assert "GB of memory in float32, 0.1 GB are free" in row_of(verdict, "logits").detail


def test_progress_says_what_it_reads_and_how_large_that_is(right: Path, checkpoint: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    verify(right, checkpoint, positions=8, progress=lambda *said: seen.append(said))
    assert [*dict.fromkeys(what for what, _, _ in seen)] == [
        "tokens",
        "weights",
        "the file's logits",
        "reading the checkpoint, 0.6 GB in float32",
        "the checkpoint's logits",
    ]
    assert all(0 <= done <= whole for _, done, whole in seen)


def test_no_positions_are_a_wrong_use(right: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="256 are usual"):
        verify(right, checkpoint, positions=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "get the checkpoint with a tokenizer"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("tokenizer_config.json", "[1]", "no JSON object"),
        ("sr_edge.json", "{", "sr_edge.json"),
        ("config.json", "{", "config.json"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_named(
    name: str, content: str | None, message: str, right: Path, checkpoint: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    (broken / name).unlink(missing_ok=True)
    if content is not None:
        (broken / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        verify(right, broken)


def test_a_file_that_is_no_gguf_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(ModelError, match=r"x\.gguf"):
        verify(tmp_path / "x.gguf", checkpoint)


# --- its parts -------------------------------------------------------------------------------------------


def test_the_corpus_is_as_keyboards_write_it_and_without_markers_has_none() -> None:
    everything = texts(markers=True)
    assert all(unicodedata.is_normalized("NFC", one.text) for one in everything)
    assert len({one.kind for one in everything}) == len(everything)
    unmarked = texts(markers=False)
    assert not any("<bigmodel>" in one.text or "</bigmodel>" in one.text for one in unmarked)
    assert 0 < len(unmarked) < len(everything)
    assert len(passages()) > 20
    assert all(turn[-1].role == "user" for turn in CONVERSATIONS)
    assert all("bigmodel" not in one.plain_answer for one in MARKED)


def one_passage(*ids: int, decisions: tuple[Decision, ...] = ()) -> Passage:
    return Passage(ids, decisions)


def test_divergence_and_perplexity_are_those_of_the_textbook() -> None:
    own = np.log(np.array([[0.4, 0.3, 0.3], [0.8, 0.1, 0.1]], np.float32))
    theirs = np.log(np.array([[0.3, 0.4, 0.3], [0.8, 0.1, 0.1]], np.float32)) + 3  # the offset means nothing
    figures = judge_logits(compare(own, theirs, one_passage(0, 1), ()), limits_of("q4_0")).figures
    assert figures["mean_kl"] == pytest.approx(0.1 * math.log(4 / 3) / 2, abs=1e-6)
    assert figures["top1"] == 0.5
    assert figures["clear_positions"] == 1
    assert figures["top1_clear"] == 1
    assert figures["perplexity_ratio"] == pytest.approx(0.3 / 0.4)  # only the second id has one before it
    assert figures["max_logit_difference"] == pytest.approx(3 + math.log(4 / 3), abs=1e-5)


def test_few_positions_are_judged_by_their_divergence_alone() -> None:
    own = np.log(np.array([[0.7, 0.2, 0.1]] * 5, np.float32))
    theirs = np.log(np.array([[0.2, 0.7, 0.1]] * 5, np.float32))
    row = judge_logits(compare(own, theirs, one_passage(0, 0, 0, 0, 0), ()), limits_of("q2_k"))
    assert row.judgement == "close"  # none of the first choices is the same, and the perplexity is threefold
    assert "5 positions, which are few" in row.detail
    assert "5 first choices are clear, too few to judge by" in row.detail
    many = judge_logits(
        compare(np.tile(own, (20, 1)), np.tile(theirs, (20, 1)), one_passage(*[0] * 100), ()),
        limits_of("q2_k"),
    )
    assert many.judgement == "differs"


def test_ids_that_were_added_count_for_nothing() -> None:
    own = np.zeros((3, 4), np.float32)
    theirs = np.zeros((3, 6), np.float32)
    theirs[:, [1, 5]] = 50
    compared = compare(own, theirs, one_passage(0, 2, 3), (1, 5))
    row = judge_logits(compared, EXACT)
    assert row.judgement == "equal"
    assert row.figures["max_logit_difference"] == 0
    assert row.figures["mean_kl"] == 0
    assert row.figures["perplexity_ratio"] == 1


def test_a_near_tie_is_no_other_choice_but_a_wrong_first_choice_is() -> None:
    own = np.array([[1.0, 1.00005, 0.0]], np.float32)
    other = np.array([[1.00005, 1.0, 0.0]], np.float32)
    assert judge_logits(compare(own, other, one_passage(0), ()), EXACT).judgement == "equal"
    own[0, 1] = 1.0004
    row = judge_logits(compare(own, other, one_passage(0), ()), EXACT)
    assert row.judgement == "differs"
    assert "another first choice" in row.detail


def test_a_marker_that_would_be_decided_otherwise_differs() -> None:
    markers = Markers("token", (1,), (2,), tau=0.5)
    decisions = (Decision(0, 1, "open"), Decision(1, 2, "close"))
    passage = one_passage(0, 0, decisions=decisions)
    own = np.log(np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], np.float32))
    same = compare(own, own, passage, ())
    assert judge_markers(same, decisions, markers, EXACT).judgement == "equal"
    theirs = np.log(np.array([[0.8, 0.1, 0.1], [0.6, 0.1, 0.3]], np.float32))
    row = judge_markers(compare(own, theirs, passage, ()), decisions, markers, limits_of("q8_0"))
    assert row.judgement == "differs"
    assert row.detail == "where the checkpoint gives the close marker 0.800, the file gives it 0.300"
    assert row.figures["same_decisions"] == 0.5


def test_text_may_part_where_the_checkpoint_hardly_prefers_its_own(checkpoint: Path) -> None:
    words = read_words(checkpoint)
    own = np.zeros((3, 80), np.float32)
    own[0, 65], own[1, 66], own[1, 67], own[2, 68] = 9, 5, 4.9, 9
    near = judge_text(words, own, [65, 67, 70], (), limits_of("f16"))
    assert near.judgement == "close"
    assert near.figures["equal_tokens"] == 1
    far = judge_text(words, own, [65, 66, 70], (), limits_of("f16"))
    assert far.judgement == "differs"
    assert "the checkpoint prefers its own by 9 nats" in far.detail
    assert judge_text(words, own, [65, 66, 68], (), EXACT).judgement == "equal"


def test_a_marker_token_is_decided_on_at_every_place_of_the_answer(checkpoint: Path) -> None:
    words = read_words(checkpoint)
    ids = [words.tokenizer.token_to_id(one) for one in ("<bigmodel>", "</bigmodel>")]
    markers = Markers("token", (ids[0],), (ids[1],))
    render = client_renderer(words.template, None, "<|im_end|>")
    for passage in marked_passages(words, render, markers, 512):
        assert len(passage.ids) <= 384
        told = {one.position: one.marker for one in passage.decisions}
        places = [*told]
        assert places == list(range(places[0], places[-1] + 1))
        is_open = False
        for at, marker in told.items():
            assert marker == ("close" if is_open else "open")
            following = passage.ids[at + 1] if at + 1 < len(passage.ids) else None
            is_open = (is_open or following == ids[0]) and following != ids[1]


def test_plain_windows_have_as_many_positions_as_asked_for(checkpoint: Path) -> None:
    words = read_words(checkpoint)
    for positions in (1, 63, 64, 65, 256, 300):
        found = plain_passages(words, positions, 512)
        assert sum(len(one.ids) for one in found) == positions
        assert all(len(one.ids) <= 64 for one in found)
    everything = plain_passages(words, 1_000_000, 512)
    assert 256 < sum(len(one.ids) for one in everything) < 1_000_000


def every_type() -> Iterator[str]:
    for one in gguf.LlamaFileType:
        if one is not gguf.LlamaFileType.GUESSED:
            yield file_type(int(one))


def test_coarser_types_have_wider_limits() -> None:
    order = ["f32", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"]
    assert set(order) <= set(every_type())
    found = [limits_of(one) for one in order]
    measures: list[Callable[[Any], float]] = [
        *(lambda one: one.mean_kl, lambda one: -one.top1, lambda one: one.perplexity, lambda one: one.gap)
    ]
    for measure in measures:
        assert [measure(one) for one in found] == sorted(measure(one) for one in found)
    assert limits_of("iq4_xs") == limits_of("q4_0") == limits_of(file_type(None))
    assert limits_of("bf16").max_logit is None


def test_the_report_is_a_table_and_an_object() -> None:
    rows = (
        Row("tokens", "equal", "3 ids", "every id equal", figures={"ids": 3}),
        Row("logits", "differs", "max |Δ| 2", "max |Δ| < 0.001", "the largest is 2"),
        Row("markers", "not checked", "", "", "the file has none"),
    )
    verdict = Verdict(Path("a.gguf"), Path("c"), None, "f32", rows)
    assert render(verdict)[1] == ("logits", "differs", "max |Δ| 2", "max |Δ| < 0.001")
    assert list(remarks(verdict)) == ["logits: the largest is 2", "markers: the file has none"]
    told = json.loads(json.dumps(verdict.as_json()))
    assert told["verdict"] == "differs"
    assert told["not_checked"] == ["markers"]
    assert told["rows"][0]["figures"] == {"ids": 3}
    assert verdict.summary == "a.gguf differs from c in logits"
    assert Verdict(Path("a.gguf"), Path("c"), Path("l"), "q8_0", rows[2:]).exit_code == 0
