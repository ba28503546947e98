"""Which of llama.cpp's ways to cut text before the merges a tokenizer has: decided by what it does.

llama.cpp knows each way by a name and has it in code; a GGUF only names it. The checkpoint's own
tokenizer cuts the probe below, and so does each row of the table; the row that cuts all of it alike is the
answer. A tokenizer that no row agrees with is refused: its model would read other tokens than it was
trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tokenizers import Regex, Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as InTurn

from sr_edge.errors import ModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + _END
_LLAMA3 = _CONTRACTIONS + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + _END
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SEED = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+" + _END
_QWEN35 = _CONTRACTIONS + (
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+" + _END
)
_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+" + _END
)


@dataclass(frozen=True, slots=True)
class Known:
    """One way to cut text, and the names that llama.cpp has for it."""

    name: str
    splits: tuple[str, ...]
    """Patterns in turn: what one matches stands alone, the next ones cut what is left."""
    ignores_merges: bool = False
    """A piece that is a token as a whole is that token, even where the merges do not lead to it."""
    first_token: str | None = None
    """What a tokenizer of this name puts before a text; None: what it puts there tells nothing."""


KNOWN = (
    Known("deepseek-r1-qwen", (_QWEN2,), first_token="<｜begin▁of▁sentence｜>"),  # noqa: RUF001
    Known("qwen2", (_QWEN2,)),
    Known("llama-bpe", (_LLAMA3,), ignores_merges=True),
    Known("smaug-bpe", (_LLAMA3,)),
    Known("gpt-2", (_GPT2,)),
    Known("smollm", (r"\p{N}", _GPT2)),
    Known("qwen35", (_QWEN35,)),
    Known("seed-coder", (_SEED,)),
    Known("deepseek-v3", (r"\p{N}{1,3}", "[一-龥\u3040-\u30ff]+", _DEEPSEEK3)),
    Known(
        "deepseek-llm",
        (
            r"[\r\n]",
            r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",  # noqa: RUF001
            r"\s+$",
            _CJK,
            r"\p{N}+",
        ),
    ),
    Known("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
)
"""In the order in which they are asked: of rows that cut alike, the narrower first.

Not here: names whose patterns llama.cpp only approximates (tekken and gpt-4o cut marks otherwise).
"""

PROBE = (
    "Hello, world! It's a TEST, isn't it? WE'LL SEE; I'D say they'Re here, you'vE won, 'Tis Bob's 'twas 'S",
    "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 0x7F3a v2.0.1 1e-10 a1b22c333 ½ ² Ⅷ ٣٤٥ 一二 ①②③",
    "  two   three    four \t tab\t\ttabs \n\n\n three\r\nlines\r\r\n  \n \n\tend   ",
    "camelCase XMLHttpRequest snake_case SCREAMING_CASE ÄÖÜäöü Ǆungla ǅ Straße ÉCOLE façade IJsland_ƻ ǀǁ",
    'def f(x: int) -> str:\n    """doc"""\n    return f"{x!r}:>{10}" // 2 ** -1  # done\n\n\n',
    "// a/b /* c */\n/\n\\frac{-b \\pm \\sqrt{b^2-4ac}}{2a} $$\\int_0^\\infty e^{-x^2}\\,dx$$ \\[x_{i+1}\\].",
    "a+b=c; d<=e&&f!=g || h==~i ^ j % k @l #m `n` [o] {p} (q) <r> \"s\" 't' -- --- ... ??? !!! *** ///\n",
    "你好，世界！我们考虑方程 x²+1=0 的解。こんにちは、カタカナとひらがな。안녕하세요 여러분!「引用」〜々〆",  # noqa: RUF001
    "Привет, мир! Это ПРИМЕР. Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया। สวัสดีชาวโลก ពិសេស",  # noqa: RUF001
    "😀 🎉🎉 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ✅→∑∞≠≤ €£¥ ©®™ “quotes” ‘single’ – — … ¿¡ §¶ °C ♥️ ①",  # noqa: RUF001
    "no\u00a0break\u00a0\u00a0here\u2009thin\u3000wide\u3000\u3000x\u200bzero\ufeffbom\u2028line\u0085next",
    "<|im_star <bigmodel>x</bigmodel> <think>\n\nOkay</think>\n\n<｜User｜> [INST] <s>a</s> user\n\nbot",  # noqa: RUF001
    "q\u0323\u0307 a\u0334b e\u20dd\u20dd k\u0338\u0338l \u0301 \u0301\u0301x ก\u0e49า न\u094d م\u064eb",
    *(
        " leading space",
        "trailing space ",
        "   ",
        "\n",
        "a",
        " ",
        "'",
        "''''",
        "\n\n\n\n",
        "x\n",
        "x \n y",
        "9",
    ),
)
"""Composed already (NFC), so that whether a tokenizer composes first makes no difference."""


def decide_pre(tokenizer: Tokenizer, where: str = "the tokenizer") -> str:
    """llama.cpp's name for how this tokenizer cuts text.

    Args:
        where: what a message calls the tokenizer.
    Raises:
        ModelError: it cuts text as nothing that llama.cpp knows.
    """
    _check_normalizer(tokenizer, where)
    own = [_cut(tokenizer.pre_tokenizer, text) for text in PROBE]
    alike = [known for known in KNOWN if own == cuts_of(known)]
    if not alike:
        raise ModelError(f"{where}: {_nearest(own)}")
    first = _first_token(tokenizer)
    alike = [known for known in alike if known.first_token in (None, first)]
    ignores = bool(getattr(tokenizer.model, "ignore_merges", False))
    same = [known for known in alike if known.ignores_merges == ignores]
    if same:
        return same[0].name
    token = _never_merged(tokenizer)
    if token is not None:
        whole = "takes such a piece as a whole" if ignores else "merges such a piece from its parts"
        raise ModelError(
            f"{where}: the token {token!r} cannot be reached by merges; this tokenizer {whole}, and that of "
            f"llama.cpp which cuts alike ({alike[0].name}) does not: a GGUF of it would read other tokens"
        )
    return alike[0].name


def cuts_of(known: Known) -> list[list[str]]:
    """The pieces of each text of the probe."""
    cutter = cutter_of(known)
    return [_cut(cutter, text) for text in PROBE]


def cutter_of(known: Known) -> PreTokenizer:
    splits: list[Any] = [Split(Regex(pattern), behavior="isolated") for pattern in known.splits]
    return InTurn([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


def _cut(cutter: PreTokenizer | None, text: str) -> list[str]:
    """Pieces, spelled as byte-level BPE spells bytes."""
    if cutter is None:
        return [text]
    return [piece for piece, _ in cutter.pre_tokenize_str(text)]


def _check_normalizer(tokenizer: Tokenizer, where: str) -> None:
    if tokenizer.normalizer is None:
        return
    for text in PROBE:
        changed = tokenizer.normalizer.normalize_str(text)
        if changed == text:
            continue
        if "▁" in changed:
            raise ModelError(
                f"{where}: the tokenizer writes spaces as '▁', as SentencePiece does (Llama 2, Mistral); "
                "only byte-level BPE is converted, as Qwen2, Qwen3 and Llama 3 have it"
            )
        old, new = _first_difference(list(text), list(changed))
        raise ModelError(
            f"{where}: the tokenizer changes a text before it cuts it ({old} becomes {new} in {text[:40]!r}),"
            " which llama.cpp does not: a GGUF of it would read other tokens"
        )


def _first_token(tokenizer: Tokenizer) -> str | None:
    """What it puts before a text."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    if len(whole) > len(plain) and whole[0] != plain[0]:
        return tokenizer.id_to_token(whole[0])
    return None


def _never_merged(tokenizer: Tokenizer) -> str | None:
    """A token that its merges never yield; None if they yield every one."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    plain = Tokenizer.from_str(tokenizer.to_str()).model
    assert isinstance(plain, models.BPE)
    plain.ignore_merges = False
    for token in tokenizer.get_vocab(with_added_tokens=False):
        if token not in added and len(plain.tokenize(token)) != 1:
            return token
    return None


def _nearest(own: Sequence[Sequence[str]]) -> str:
    """The message for a tokenizer that nothing agrees with: what comes nearest, and where they part first."""
    distances = [
        (sum(mine != theirs for mine, theirs in zip(own, cuts_of(known), strict=True)), known)
        for known in KNOWN
    ]
    wrong, nearest = min(distances, key=lambda pair: pair[0])
    if all("Ġ" not in piece for pieces in own for piece in pieces):
        return (
            "the tokenizer is no byte-level BPE (it does not write a space as 'Ġ'); only byte-level BPE is "
            "converted, as Qwen2, Qwen3 and Llama 3 have it"
        )
    text, mine, theirs = next(
        trio for trio in zip(PROBE, own, cuts_of(nearest), strict=True) if list(trio[1]) != trio[2]
    )
    here, there = _first_difference(list(mine), theirs)
    return (
        "its tokenizer cuts text as nothing that llama.cpp knows: a GGUF of it would read other tokens. "
        f"Nearest is {nearest.name}, which differs in {wrong} of {len(PROBE)} texts, first in {text[:40]!r}: "
        f"this one has {here} where {nearest.name} has {there}"
    )


def _first_difference(mine: list[str], theirs: list[str]) -> tuple[str, str]:
    for here, there in zip_longest(mine, theirs):
        if here != there:
            return _shown(here), _shown(there)
    raise AssertionError("they are equal")


def _shown(piece: str | None) -> str:
    return "nothing" if piece is None else repr(piece)
