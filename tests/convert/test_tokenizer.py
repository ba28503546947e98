"""A vocabulary is read as transformers would load it, and what cannot be converted is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tests.convert.making import MARKERS, Architecture, write_tokenizer

from sr_convert.tokenizer import Words, read_tokenizer, tokenizer_fields
from sr_edge.errors import ModelError

NUM_ROWS = 960


def folder_of(tmp_path: Path, architecture: Architecture = "qwen2", **options: Any) -> Path:
    folder = tmp_path / architecture
    write_tokenizer(folder, architecture, **options)
    return folder


def words_of(folder: Path, num_rows: int = NUM_ROWS, **config: Any) -> Words:
    return read_tokenizer(folder, num_rows, {"model_type": folder.name, **config})


def rewrite(folder: Path, change: Callable[[Any], None], name: str = "tokenizer.json") -> None:
    path = folder / name
    written = json.loads(path.read_text())
    change(written)
    path.write_text(json.dumps(written))


def settings(folder: Path, **values: Any) -> None:
    rewrite(folder, lambda written: written.update(values), "tokenizer_config.json")


def add(folder: Path, content: str, **flags: Any) -> int:
    """An added token, the next one."""
    entry = {"content": content, "single_word": False, "lstrip": False, "rstrip": False}
    entry |= {"normalized": False, "special": False} | flags

    def change(written: Any) -> None:
        entry["id"] = written["added_tokens"][-1]["id"] + 1
        written["added_tokens"].append(entry)

    rewrite(folder, change)
    return int(entry["id"])


def test_every_row_has_a_token_and_a_type(tmp_path: Path) -> None:
    words = words_of(folder_of(tmp_path))
    assert len(words.tokens) == len(words.types) == NUM_ROWS
    assert words.types[words.ids["Ġthe"]] is TokenType.NORMAL
    assert words.types[words.ids["<|im_end|>"]] is TokenType.CONTROL
    assert words.types[words.ids["<think>"]] is TokenType.USER_DEFINED
    assert words.tokens[NUM_ROWS - 1] == f"[PAD{NUM_ROWS - 1}]"
    assert words.types[NUM_ROWS - 1] is TokenType.UNUSED
    assert words.unused_rows == tuple(range(len(words.ids), NUM_ROWS))
    assert words.pre == "qwen2"
    assert words.special_ids == {"eos": words.ids["<|im_end|>"], "pad": words.ids["<|endoftext|>"]}
    assert words.adds == {"bos": False, "eos": False}


def test_llama_3(tmp_path: Path) -> None:
    words = words_of(folder_of(tmp_path, "llama"))
    assert words.pre == "llama-bpe"
    assert words.special_ids == {"bos": words.ids["<|begin_of_text|>"], "eos": words.ids["<|eot_id|>"]}
    assert words.adds["bos"] is True
    assert words.adds["eos"] is False


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_old_and_new_files_say_the_same(architecture: Architecture, tmp_path: Path) -> None:
    old = words_of(folder_of(tmp_path / "old", architecture, form="old"))
    new = words_of(folder_of(tmp_path / "new", architecture, form="new"))
    assert old.special_ids == new.special_ids
    assert (old.tokens, old.types, old.merges, old.templates) == (
        new.tokens,
        new.types,
        new.merges,
        new.templates,
    )


@pytest.mark.parametrize("special", [False, True])
def test_the_markers_are_control_tokens_whatever_they_were_added_as(special: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    ids = [add(folder, spelling, special=special) for spelling in MARKERS]
    words = words_of(folder)
    assert [words.tokens[id] for id in ids] == list(MARKERS)
    assert {words.types[id] for id in ids} == {TokenType.CONTROL}


@pytest.mark.parametrize("token", ["<|tool|>", "<｜tool｜>", "<pad>", "<unused12>"])  # noqa: RUF001
def test_what_looks_special_is_a_control_token(token: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert words_of(folder).types[add(folder, token)] is TokenType.UNUSED
    assert words_of(folder).types[words_of(folder).ids[token]] is TokenType.CONTROL


def test_the_marks_of_sentencepiece_become_spaces(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    id = add(folder, "▁▁")
    assert words_of(folder).tokens[id] == "  "


def test_tokens_that_only_the_settings_name_are_added_as_transformers_adds_them(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    settings(folder, pad_token="<|pad|>", extra_special_tokens=["<one>", "<think>"])
    words = words_of(folder)
    first = words.ids["<|pad|>"]
    assert words.tokens[first : first + 2] == ("<|pad|>", "<one>")
    assert words.types[words.ids["<one>"]] is TokenType.CONTROL
    assert words.types[words.ids["<think>"]] is TokenType.CONTROL, "Qwen's class makes a named one special"


def test_named_tokens_of_a_kind_of_its_own_are_added_too(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "qwen3")
    settings(folder, model_specific_special_tokens={"image_token": "<img>", "none": None})
    words = words_of(folder)
    assert words.types[words.ids["<img>"]] is TokenType.CONTROL
    assert words.ids["<img>"] == len(words.ids) - 1


def test_an_empty_chat_template_is_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    settings(folder, chat_template="")
    assert words_of(folder).templates == {}


def test_merges_are_the_same_in_both_forms(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    pairs = words_of(folder).merges
    assert "Ġ t" in pairs

    def joined(written: Any) -> None:
        written["model"]["merges"] = [" ".join(pair) for pair in written["model"]["merges"]]

    rewrite(folder, joined)
    assert words_of(folder).merges == pairs


def test_ids_come_from_the_config_where_nothing_else_names_them(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    words = words_of(folder, bos_token_id=7, eos_token_id=[1, 2], pad_token_id=-1, sep_token_id=10**6)
    assert words.special_ids["bos"] == 7
    assert words.special_ids["eos"] == words.ids["<|im_end|>"], "tokenizer_config.json comes first"
    assert "sep" not in words.special_ids, "no row has it"


def test_a_template_that_ends_a_text_names_the_end(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    end = "<|endoftext|>"

    def change(written: Any) -> None:
        written["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}],
            "pair": [],
            "special_tokens": {end: {"id": end, "ids": [words.ids[end]], "tokens": [end]}},
        }

    words = words_of(folder)
    rewrite(folder, change)
    ended = words_of(folder)
    assert ended.adds["eos"] is True
    assert ended.special_ids["eos"] == words.ids[end]
    assert ended.special_ids["eot"] == words.ids["<|im_end|>"], "the turn still ends as it did"


def test_chat_templates_of_the_settings_come_before_their_own_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ 'file' }}")
    assert words_of(folder).templates == {"default": "{{ 'file' }}"}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool-use.jinja").write_text("{{ 'tools' }}")
    assert words_of(folder).templates == {"default": "{{ 'file' }}", "tool_use": "{{ 'tools' }}"}
    settings(folder, chat_template="{{ 'settings' }}")
    assert words_of(folder).templates == {"default": "{{ 'settings' }}"}
    settings(folder, chat_template=[{"name": "rag", "template": "{{ 'rag' }}"}])
    fields = {field.key: field.value for field in tokenizer_fields(words_of(folder))}
    assert fields["tokenizer.chat_template.rag"] == "{{ 'rag' }}"
    assert fields["tokenizer.chat_templates"] == ["rag"]
    assert "tokenizer.chat_template" not in fields


def test_what_a_text_is_cut_into(tmp_path: Path) -> None:
    words = words_of(folder_of(tmp_path, "llama"))
    assert "".join(words.tokens[id] for id in words.encode("<bigmodel>")) == "<bigmodel>"
    assert words.ids["<|begin_of_text|>"] not in words.encode("the")


# --- refused -----------------------------------------------------------------------------------


def refused(folder: Path, match: str, num_rows: int = NUM_ROWS) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        words_of(folder, num_rows)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "tokenizer.json").unlink()
    refused(folder, "copy the tokenizer's files")
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    refused(folder, "only vocab.json and merges.txt")
    (folder / "tokenizer.model").write_bytes(b"\n")
    refused(folder, "SentencePiece")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_garbage(content: bytes, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "tokenizer.json").write_bytes(content)
    refused(folder, r"tokenizer\.json: the file (is not JSON|holds no JSON object)")


def test_damaged_settings(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "tokenizer_config.json").write_text("{]")
    refused(folder, r"tokenizer_config\.json: the file is not JSON")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.pop("model"), "there is no vocabulary in it"),
        (lambda w: w["model"].update(type="Unigram", vocab=[["a", 0.0]]), r"Unigram \(SentencePiece\)"),
        (lambda w: w["model"].update(type="WordPiece"), "the kind WordPiece"),
        (lambda w: w["model"].update(byte_fallback=True), "byte fallback"),
        (lambda w: w["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda w: w["model"].update(merges=[]), "there are no merges"),
        (lambda w: w["model"]["merges"].append(["zz", "qq"]), r"needs the token 'zz'"),
        (lambda w: w["model"]["merges"].append("onlyone"), "is no pair of tokens"),
        (lambda w: w["model"]["vocab"].update(a="b"), "has no id but 'b'"),
        (lambda w: w["model"]["vocab"].update(a=5), "have the same id 5"),
        (lambda w: w["added_tokens"][0].update(id=5), "have the same id 5"),
        (lambda w: w["added_tokens"][-1].update(id=930), "the ids before it have a hole"),
        (lambda w: w["added_tokens"].append({"content": 3}), "no content or no id"),
        (lambda w: w.update(pre_tokenizer={"type": "Nonsense"}), "the tokenizers library cannot read it"),
        (lambda w: w.update(pre_tokenizer={"type": "Whitespace"}), "no byte-level BPE"),
    ],
)
def test_what_cannot_be_converted(change: Callable[[Any], None], match: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    rewrite(folder, change)
    refused(folder, match)


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    refused(folder_of(tmp_path), "has the id 907, the embedding has 905 rows", num_rows=905)


def test_files_of_two_saves(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    token = {"content": "<new>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings(folder, added_tokens_decoder={"950": {**token, "special": True}})
    refused(folder, "the files are not of one save")
