"""How text is cut is decided by what a tokenizer does, and each name stands for what llama.cpp does."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType
from tests.convert.making import corpus, trained
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from sr_convert.fields import Field
from sr_convert.pre_tokenizers import KNOWN, PROBE, Known, cuts_of, cutter_of, decide_pre
from sr_convert.tokenizer import Words, tokenizer_fields
from sr_edge.errors import ModelError
from sr_edge.llama import open_vocabulary

BY_NAME = {known.name: known for known in KNOWN}
DEEPSEEK_BOS = "<｜begin▁of▁sentence｜>"  # noqa: RUF001


def tokenizer_of(known: Known, num_tokens: int = 700) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=known.ignores_merges))
    tokenizer.pre_tokenizer = cutter_of(known)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=num_tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*corpus(), *PROBE], trainer)
    return tokenizer


def family(name: Any) -> Tokenizer:
    return Tokenizer.from_str(trained(name))


def with_first(tokenizer: Tokenizer, token: str) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True)])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=None, special_tokens=[(token, tokenizer.token_to_id(token))]
    )
    return tokenizer


def write_vocabulary(path: Path, tokenizer: Tokenizer, pre: str) -> None:
    """A GGUF without weights."""
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=lambda token: ids[token])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    words = Words(
        tokens=tuple(tokens),
        types=(TokenType.NORMAL,) * len(tokens),
        merges=tuple(" ".join(pair) for pair in merges),
        pre=pre,
        special_ids={},
        adds={"bos": False, "eos": False},
        templates={},
    )
    write_fields(path, tokenizer_fields(words))


def write_fields(path: Path, fields: list[Field]) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(len(fields[2].value))  # type: ignore[arg-type]
    for field in fields:
        writer.add_key_value(field.key, field.value, field.type, field.item_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize("known", KNOWN, ids=[known.name for known in KNOWN])
def test_a_name_stands_for_what_llama_cpp_does(known: Known, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(known)
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, tokenizer, known.name)
    with open_vocabulary(path) as vocabulary:
        for text in [*PROBE, *corpus()]:
            expected = tokenizer.encode(text).ids
            assert vocabulary.ordinary(text) == expected, text


def test_the_probe_tells_all_apart_that_differ() -> None:
    cuts = {known.name: cuts_of(known) for known in KNOWN}
    alike = {(a, b) for a in cuts for b in cuts if a < b and cuts[a] == cuts[b]}
    assert alike == {("deepseek-r1-qwen", "qwen2"), ("llama-bpe", "smaug-bpe")}


def test_the_probe_is_composed() -> None:
    assert all(unicodedata.is_normalized("NFC", text) for text in PROBE)


@pytest.mark.parametrize("known", KNOWN, ids=[known.name for known in KNOWN])
def test_a_tokenizer_is_known_by_what_it_does(known: Known) -> None:
    tokenizer = tokenizer_of(known, num_tokens=300)
    if known.first_token is not None:
        with_first(tokenizer, known.first_token)
    assert decide_pre(tokenizer) == known.name


def test_the_families() -> None:
    assert decide_pre(family("qwen2")) == "qwen2"
    assert decide_pre(family("llama")) == "llama-bpe"
    assert decide_pre(with_first(family("qwen2"), DEEPSEEK_BOS)) == "deepseek-r1-qwen"
    assert decide_pre(with_first(family("qwen2"), "<s>")) == "qwen2"


def test_what_is_cut_by_other_means_counts_by_its_result() -> None:
    tokenizer = family("qwen2")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    assert decide_pre(tokenizer) == "gpt-2"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert decide_pre(tokenizer) == "smollm"


def test_an_unknown_one_is_refused_with_the_nearest_and_where_they_part() -> None:
    tokenizer = family("qwen2")
    pairs = BY_NAME["qwen2"].splits[0].replace(r"\p{N}|", r"\p{N}{1,2}|")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pairs), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    with pytest.raises(ModelError, match=r"Nearest is .*first in '1 12 123") as caught:
        decide_pre(tokenizer, "model/tokenizer.json")
    assert str(caught.value).startswith("model/tokenizer.json: ")
    assert "has '12' where" in str(caught.value)


def test_a_space_put_before_every_text_is_refused() -> None:
    tokenizer = family("qwen2")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ModelError, match="Nearest is gpt-2"):
        decide_pre(tokenizer)


def test_no_byte_level_is_refused_as_that() -> None:
    tokenizer = family("qwen2")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="no byte-level BPE"):
        decide_pre(tokenizer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    with pytest.raises(ModelError, match="SentencePiece"):
        decide_pre(tokenizer)


@pytest.mark.parametrize(
    "normalizer", [normalizers.Lowercase(), normalizers.NFKC(), normalizers.NFD(), normalizers.Strip()]
)
def test_a_text_that_is_changed_first_is_refused(normalizer: Any) -> None:
    tokenizer = family("qwen2")
    tokenizer.normalizer = normalizer
    with pytest.raises(ModelError, match="changes a text before it cuts it"):
        decide_pre(tokenizer)


def test_tokens_that_merges_do_not_reach_need_the_right_name() -> None:
    """Llama 3's tokenizer takes a whole piece that is a token; one without that is another."""
    written = json.loads(trained("llama"))
    written["model"]["ignore_merges"] = False
    assert decide_pre(Tokenizer.from_str(json.dumps(written))) == "smaug-bpe"

    written = json.loads(trained("qwen2"))
    written["model"]["ignore_merges"] = True
    assert decide_pre(Tokenizer.from_str(json.dumps(written))) == "qwen2", "its merges reach every token"
    orphan = next(token for token in written["model"]["vocab"] if len(token) > 3)
    written["model"]["merges"] = [pair for pair in written["model"]["merges"] if "".join(pair) != orphan]
    with pytest.raises(ModelError, match=r"cannot be reached by merges.*\(qwen2\) does not"):
        decide_pre(Tokenizer.from_str(json.dumps(written)))
