"""A checkpoint's vocabulary as a GGUF has it: a token for every row of the embedding, merges, special ids.

Only byte-level BPE is read, with the `tokenizers` library and without transformers. Where transformers adds
tokens on its own (those that tokenizer_config.json names), so does this. How text is cut before the merges
is decided in `pre_tokenizers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer

from sr_convert.fields import Field, boolean, int32s, string, strings, uint32
from sr_convert.pre_tokenizers import decide_pre
from sr_edge.errors import ModelError
from sr_edge.markers import CLOSE, OPEN

Json: TypeAlias = dict[str, Any]

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Of special tokens, in the order in which they are looked for."""

_ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # so spelled in the format
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
_ADD_KEYS = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
}

_QWEN_DEFAULT = "<|endoftext|>"
"""What Qwen's tokenizer class takes for the unknown, last and padding token where none is named."""

_WITHOUT_BOS = 49152
"""Rows of a Llama whose tokenizer is StarCoder's or SmolLM's: nothing is put before its texts."""


@dataclass(frozen=True)
class Words:
    """A vocabulary. `tokens` and `types` have an item for each row of the embedding."""

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    pre: str
    """llama.cpp's name for how text is cut before the merges."""
    special_ids: Mapping[str, int]
    """By kind: "bos", "eos", ..."""
    adds: Mapping[str, bool]
    """By kind: whether that token is put around a text."""
    templates: Mapping[str, str]
    """Chat templates by name; the usual one is "default"."""
    add_space_prefix: bool | None = None
    encode: Callable[[str], tuple[int, ...]] = field(default=lambda text: (), repr=False, compare=False)
    """Ids of a text as the checkpoint's own tokenizer cuts it, without a beginning of sequence."""

    @property
    def ids(self) -> Mapping[str, int]:
        """Rows by token, the unused ones left out."""
        used = zip(self.tokens, self.types, strict=True)
        return {token: id for id, (token, kind) in enumerate(used) if kind is not TokenType.UNUSED}

    @property
    def unused_rows(self) -> tuple[int, ...]:
        return tuple(id for id, kind in enumerate(self.types) if kind is TokenType.UNUSED)


def read_tokenizer(folder: Path, num_rows: int, config: Mapping[str, Any]) -> Words:
    """The vocabulary in `folder`: a checkpoint's, or an adapter's that brings its own.

    Args:
        num_rows: rows of the embedding; ids that no token has become unused tokens.
        config: the checkpoint's config.json, for the special ids that only it has.
    Raises:
        ModelError: there is no tokenizer.json, it is damaged, or it is not one that a GGUF can hold.
    """
    path = folder / TOKENIZER
    written = _read_tokenizer_json(folder)
    model = _check_model(path, written)
    settings = _read(folder / SETTINGS)
    tokenizer = _load(path, written)
    _add_named_tokens(tokenizer, settings, _is_qwen_class(config, settings or {}), folder)
    tokens, types = _rows(path, tokenizer, num_rows)
    merges = _merges(path, model, folder)
    special_ids, adds = _special_tokens(written, settings, config)
    is_llama = config.get("model_type") == "llama"
    if is_llama and num_rows == _WITHOUT_BOS:
        adds["bos"] = False
    space = (settings or {}).get("add_prefix_space") if is_llama else None

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    return Words(
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(merges),
        pre=decide_pre(tokenizer, str(path)),
        special_ids={kind: id for kind, id in special_ids.items() if 0 <= id < num_rows},
        adds=adds,
        templates=_chat_templates(folder, settings),
        add_space_prefix=space if isinstance(space, bool) else None,
        encode=encode,
    )


def tokenizer_fields(words: Words) -> list[Field]:
    """The `tokenizer.*` entries of a GGUF."""
    fields = [
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", words.pre),
        strings("tokenizer.ggml.tokens", words.tokens),
        int32s("tokenizer.ggml.token_type", [int(kind) for kind in words.types]),
        strings("tokenizer.ggml.merges", words.merges),
    ]
    fields += [uint32(_ID_KEYS[kind], id) for kind, id in words.special_ids.items() if kind in _ID_KEYS]
    fields += [boolean(_ADD_KEYS[kind], add) for kind, add in words.adds.items() if kind in _ADD_KEYS]
    if words.add_space_prefix is not None:
        fields.append(boolean("tokenizer.ggml.add_space_prefix", words.add_space_prefix))
    others = sorted(name for name in words.templates if name != "default")
    fields += [string(f"tokenizer.chat_template.{name}", words.templates[name]) for name in others]
    if others:
        fields.append(strings("tokenizer.chat_templates", others))
    if "default" in words.templates:
        fields.append(string("tokenizer.chat_template", words.templates["default"]))
    return fields


# --- reading and refusing ----------------------------------------------------------------------


def _read_tokenizer_json(folder: Path) -> Json:
    path = folder / TOKENIZER
    if not path.exists():
        if (folder / "tokenizer.model").exists() or (folder / "spiece.model").exists():
            raise ModelError(
                f"{folder}: its tokenizer is a SentencePiece model (tokenizer.model) without {TOKENIZER}; "
                "only byte-level BPE is converted, as Qwen2, Qwen3 and Llama 3 have it"
            )
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            raise ModelError(
                f"{folder}: there is no {TOKENIZER}, only vocab.json and merges.txt: save the tokenizer once "
                "with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...)), which writes it"
            )
        raise ModelError(
            f"{folder}: there is no {TOKENIZER}: copy the tokenizer's files from the model that this one was "
            "trained from"
        )
    written = _read(path)
    assert written is not None
    return written


def _read(path: Path) -> Json | None:
    """A JSON object; None if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path}: the file cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
        raise ModelError(f"{path}: the file is not JSON ({error}): get it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: the file holds no JSON object but a {type(value).__name__}: get it again")
    return value


def _check_model(path: Path, written: Json) -> Json:
    model = written.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        raise ModelError(f"{path}: there is no vocabulary in it: get the file again")
    kind = model.get("type")
    if kind is None:  # files of early versions of the library name no type
        has_scores = isinstance(model["vocab"], list)
        kind = "BPE" if "merges" in model else "Unigram" if has_scores else "WordPiece"
    if kind != "BPE":
        origin = " (SentencePiece)" if kind == "Unigram" else ""
        raise ModelError(
            f"{path}: the tokenizer is of the kind {kind}{origin}; only byte-level BPE is converted, as "
            "Qwen2, Qwen3 and Llama 3 have it"
        )
    if model.get("byte_fallback"):
        raise ModelError(
            f"{path}: the tokenizer is SentencePiece's BPE (with byte fallback), as Llama 2 and Mistral have "
            "it; only byte-level BPE is converted, as Qwen2, Qwen3 and Llama 3 have it"
        )
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            raise ModelError(
                f"{path}: the tokenizer has {option} = {model[option]!r}, which a GGUF cannot express"
            )
    if not isinstance(model["vocab"], dict):
        raise ModelError(f"{path}: the vocabulary is a list where BPE has a table of ids: get the file again")
    return model


def _load(path: Path, written: Json) -> Tokenizer:
    _check_ids(path, written)
    _check_merges(path, written["model"])
    try:
        tokenizer = Tokenizer.from_str(json.dumps(written))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path}: the tokenizers library cannot read it: {error}") from None
    for token in _added(written):
        id = tokenizer.token_to_id(token["content"])
        if id != token["id"]:
            raise ModelError(
                f"{path}: the added token {token['content']!r} has the id {token['id']}, but the tokenizers "
                f"library gives it {id}, the next one that is free: the ids before it have a hole. Save the "
                "tokenizer again with transformers, and check that the embedding's rows are the same"
            )
    return tokenizer


def _check_ids(path: Path, written: Json) -> None:
    seen: dict[int, str] = {}
    for token, id in written["model"]["vocab"].items():
        if not isinstance(id, int) or isinstance(id, bool) or id < 0:
            raise ModelError(f"{path}: the token {token!r} has no id but {id!r}: get the file again")
        if id in seen:
            raise ModelError(
                f"{path}: the tokens {seen[id]!r} and {token!r} have the same id {id}: get the file again"
            )
        seen[id] = token
    for entry in _added(written, path):
        token, id = entry["content"], entry["id"]
        if seen.setdefault(id, token) != token:
            raise ModelError(
                f"{path}: the tokens {seen[id]!r} and {token!r} have the same id {id}: get the file again"
            )


def _added(written: Json, path: Path | None = None) -> Iterator[Json]:
    """The added tokens as they are written down; each has a content and an id."""
    added = written.get("added_tokens") or []
    for entry in added if isinstance(added, list) else [added]:
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("content"), str)
            and isinstance(entry.get("id"), int)
            and entry["id"] >= 0
        ):
            yield entry
        elif path is not None:
            raise ModelError(f"{path}: an added token has no content or no id ({entry!r:.60}): get it again")


def _check_merges(path: Path, model: Json) -> None:
    """Before the library reads them: its own message names no merge."""
    vocab = model["vocab"]
    for number, pair in enumerate(model.get("merges") or [], start=1):
        parts = pair.split(" ") if isinstance(pair, str) else pair
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
            raise ModelError(
                f"{path}: merge {number} is no pair of tokens ({pair!r:.80}): get the file again"
            )
        for token in (*parts, "".join(parts)):
            if token not in vocab:
                raise ModelError(
                    f"{path}: merge {number} ({' + '.join(map(repr, parts))}) needs the token {token!r}, "
                    "which the vocabulary does not have: get the file again"
                )


def _merges(path: Path, model: Json, folder: Path) -> list[str]:
    pairs = model.get("merges") or []
    if not pairs:
        raise ModelError(
            f"{path}: there are no merges in it, so that every byte would be a token of its own, which "
            "llama.cpp refuses: get the file again"
        )
    if isinstance(pairs[0], str):
        return list(pairs)
    # the space is what parts a pair, and inside a token it is spelled as byte-level BPE spells it
    return [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]


# --- tokens that are added by name -------------------------------------------------------------


def _is_qwen_class(config: Mapping[str, Any], settings: Json) -> bool:
    """Whether transformers would take its own class for Qwen's tokenizers."""
    name = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if isinstance(name, str) and name.removesuffix("Fast") == "Qwen2Tokenizer":
        return True
    return config.get("model_type") == "qwen2" or (config.get("model_type") == "qwen3" and not name)


def _add_named_tokens(tokenizer: Tokenizer, settings: Json | None, is_qwen: bool, folder: Path) -> None:
    """Tokens that only tokenizer_config.json and its old companions know, added as transformers adds them."""
    if settings is None:
        return
    settings = dict(settings)
    declared = settings.get("added_tokens_decoder")
    if not isinstance(declared, dict):
        special_map = _read(folder / "special_tokens_map.json") or {}
        settings |= {name: entry for name, entry in special_map.items() if entry is not None}
    names = [name for name in settings if name.endswith("_token") and not name.startswith("add_")]
    if is_qwen:
        for name in ("unk_token", "eos_token", "pad_token"):
            if name not in settings:
                settings[name] = _QWEN_DEFAULT
                names.append(name)
    usual = [f"{kind}_token" for kind in KINDS]
    names.sort(key=lambda name: usual.index(name) if name in usual else len(usual))
    special = {content: True for name in names if (content := _content(settings[name]))}
    own = settings.get("model_specific_special_tokens")
    special |= {content: True for entry in _entries(own) if (content := _content(entry))}
    for entry in _entries(settings.get("extra_special_tokens") or settings.get("additional_special_tokens")):
        if content := _content(entry):
            by_itself = entry.get("special") is True if isinstance(entry, dict) else True
            special.setdefault(content, by_itself or is_qwen)
    if isinstance(declared, dict):
        known = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
        tokens = {id: _added_token(entry) for id, entry in sorted(declared.items(), key=_by_id)}
        _add(
            tokenizer,
            {id: token for id, token in tokens.items() if token and repr(token) not in known},
            folder,
        )
    else:
        written = sorted((_read(folder / "added_tokens.json") or {}).items(), key=lambda item: str(item[1]))
        _add(
            tokenizer,
            {
                str(id): AddedToken(content, normalized=content not in special, special=content in special)
                for content, id in written
                if tokenizer.token_to_id(content) is None
            },
            folder,
        )
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for content, is_special in special.items():
        # the class for Qwen makes a named token special even where tokenizer.json says that it is not
        if is_qwen or content not in added:
            tokenizer.add_tokens([AddedToken(content, special=is_special, normalized=False)])


def _add(tokenizer: Tokenizer, tokens: Mapping[str, AddedToken], folder: Path) -> None:
    """Add them, each under its id."""
    for id, token in tokens.items():
        tokenizer.add_tokens([token])
        given = tokenizer.token_to_id(token.content)
        if str(given) != id:
            raise ModelError(
                f"{folder}: {SETTINGS} or added_tokens.json gives {token.content!r} the id {id}, {TOKENIZER} "
                f"would give it {given}: the files are not of one save; save the tokenizer again"
            )


def _by_id(item: tuple[str, object]) -> int:
    return int(item[0]) if item[0].isdecimal() else -1


def _added_token(entry: object) -> AddedToken | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        return None
    special = entry.get("special") is True
    return AddedToken(
        entry["content"],
        single_word=entry.get("single_word") is True,
        lstrip=entry.get("lstrip") is True,
        rstrip=entry.get("rstrip") is True,
        normalized=entry.get("normalized", not special) is True,
        special=special,
    )


def _entries(named: object) -> list[object]:
    """Tokens in tokenizer_config.json that are a list, or a table by their purposes."""
    if isinstance(named, dict):
        return list(named.values())
    return named if isinstance(named, list) else []


def _content(entry: object) -> str | None:
    """A token in tokenizer_config.json: its spelling, or a table that has it."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


# --- rows --------------------------------------------------------------------------------------


def _rows(path: Path, tokenizer: Tokenizer, num_rows: int) -> tuple[list[str], list[TokenType]]:
    spellings = {id: token for token, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.get_added_tokens_decoder()
    last = max(spellings)
    if last >= num_rows:
        raise ModelError(
            f"{path}: the token {spellings[last]!r} has the id {last}, the embedding has {num_rows} rows: "
            "the tokenizer and the weights are not of the same model, or tokens were added and the embedding "
            "was not resized (model.resize_token_embeddings)"
        )
    tokens: list[str] = []
    types: list[TokenType] = []
    for id in range(num_rows):
        token, kind = spellings.get(id), TokenType.NORMAL
        if token is None:
            token, kind = f"[PAD{id}]", TokenType.UNUSED
        elif id in added:
            token, kind = _added_row(tokenizer, added[id])
        tokens.append(token)
        types.append(kind)
    return tokens, types


def _added_row(tokenizer: Tokenizer, added: AddedToken) -> tuple[str, TokenType]:
    token = added.content
    if token in (OPEN, CLOSE):
        return token, TokenType.CONTROL
    if not added.normalized:  # llama.cpp looks for the text that the token stands for, not for its spelling
        token = tokenizer.decode(
            tokenizer.encode(token, add_special_tokens=False).ids, skip_special_tokens=False
        )
    if added.special or _looks_special(token):
        return token, TokenType.CONTROL
    return token.replace("▁", " "), TokenType.USER_DEFINED


def _looks_special(token: str) -> bool:
    """Control tokens of known models whose tokenizers do not call them special."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))  # noqa: RUF001  DeepSeek's bars
        or (token.startswith("<unused") and token.endswith(">"))
    )


# --- special ids, and what is put around a text ------------------------------------------------


def _special_tokens(
    written: Json, settings: Json | None, config: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, bool]]:
    """Ids by kind, and whether a token of that kind is put around a text.

    From tokenizer.json's post-processor first, then tokenizer_config.json, then config.json.
    """
    kinds = list(KINDS)
    names: Json | None = None if settings is None else dict(settings)
    if names is not None:
        for kind, other in (("bos", "cls"), ("eos", "sep")):
            if not names.get(f"{kind}_token") and names.get(f"{other}_token"):
                names[f"{kind}_token"] = names[f"{other}_token"]
    adds: dict[str, bool] = {}
    for processor in _processors(written):
        processing = processor.get("type")
        if processing == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        elif processing == "RobertaProcessing":
            adds |= {"bos": True, "eos": True, "sep": True}
            if names is not None:
                for name in ("cls", "sep"):
                    pair = processor.get(name)
                    if not names.get(f"{name}_token") and isinstance(pair, list) and pair:
                        names[f"{name}_token"] = pair[0]
        elif processing == "TemplateProcessing":
            _read_template(processor, names, kinds, adds)
    ids: dict[str, int] = {}
    if names is not None:
        by_content = {entry["content"]: entry["id"] for entry in reversed(list(_added(written)))}
        for kind in kinds:
            add = names.get(f"add_{kind}_token")
            if isinstance(add, bool):
                adds.setdefault(kind, add)
            content = _content(names.get(f"{kind}_token"))
            if content is not None and content in by_content:
                ids.setdefault(kind, by_content[content])
    for kind in kinds:
        id = config.get(f"{kind}_token_id")
        if isinstance(id, int) and not isinstance(id, bool):
            ids.setdefault(kind, id)
    return ids, adds


def _processors(written: Json) -> Sequence[Json]:
    processor = written.get("post_processor")
    if not isinstance(processor, dict):
        return []
    inner = processor.get("processors", [processor])
    return [entry for entry in inner if isinstance(entry, dict)] if isinstance(inner, list) else []


def _read_template(processor: Json, names: Json | None, kinds: list[str], adds: dict[str, bool]) -> None:
    """What a template puts before, between and after texts.

    A last token other than the named end becomes the end, and the named one the end of a turn.
    """
    single, pair = (_items(processor.get(name)) for name in ("single", "pair"))
    first = last = None
    bos, cls, eos = (None if names is None else names.get(f"{kind}_token") for kind in ("bos", "cls", "eos"))
    if len(single) > 1:
        first, last = _special(single[0]), _special(single[-1])
    if first is not None:
        if names is None:
            bos = first
        elif first not in (bos, cls):
            if not bos:
                names["bos_token"] = bos = first
            if not cls:
                names["cls_token"] = cls = first
        adds["bos"] = first in (bos, cls)
    if last is not None:
        if names is not None and last != eos:
            for kind in ("eot", "eom"):
                if kind not in kinds:
                    kinds.append(kind)
                    names[f"{kind}_token"] = eos
                    break
            names["eos_token"] = last
        eos = last
        adds["eos"] = True
    _read_separator(pair, first, last, eos, names, adds)


def _read_separator(
    pair: list[Json],
    first: str | None,
    last: str | None,
    eos: object,
    names: Json | None,
    adds: dict[str, bool],
) -> None:
    """Whether a separator stands between two texts."""
    start = 1 if pair and first is not None and _special(pair[0]) == first else 0
    stop = -1 if pair and last is not None and _special(pair[-1]) == last else None
    between = pair[start:stop]
    if not between or _sequence(between[0]) != "A" or _sequence(between[-1]) != "B":
        return
    between = between[1:-1]
    if not between:
        return
    sep = None if names is None else names.get("sep_token")
    separators = [_special(item) for item in between]
    adds["sep"] = (separators[0] is not None and separators[0] in (sep, eos) and last is None) or (
        len(separators) == 2 and separators[1] is not None and separators[1] in (sep, eos)
    )
    if adds["sep"] and not sep and names is not None:
        names["sep_token"] = eos


def _items(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _special(item: Json) -> str | None:
    return _id_of(item.get("SpecialToken"))


def _sequence(item: Json) -> str | None:
    return _id_of(item.get("Sequence"))


def _id_of(value: object) -> str | None:
    id = value.get("id") if isinstance(value, dict) else None
    return id if isinstance(id, str) and id else None


# --- chat templates ----------------------------------------------------------------------------


def _chat_templates(folder: Path, settings: Json | None) -> dict[str, str]:
    """Those of tokenizer_config.json, or else those of their own files."""
    if settings is not None and "chat_template" in settings:
        return _named_templates(settings["chat_template"])
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        templates = {"default": _read_text(alone)}
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            templates |= _named_templates([{"name": path.stem, "template": _read_text(path)}])
        return templates
    return _named_templates((_read(folder / "chat_template.json") or {}).get("chat_template"))


def _named_templates(value: object) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value} if value else {}
    templates = {}
    for entry in value if isinstance(value, list) else []:
        if not isinstance(entry, dict):
            continue
        name, template = entry.get("name"), entry.get("template")
        if isinstance(name, str) and name and isinstance(template, str):
            key = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
            templates[key] = template
    return templates


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: the chat template cannot be read: {error}") from None
