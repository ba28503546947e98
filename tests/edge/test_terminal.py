"""Nothing that a model or a server wrote may steer the terminal, in one piece or in many."""

import itertools
import json
import sys
import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sr_edge.terminal import MAX_MARKS, Sanitiser, can_show, safe, safe_json, safe_line

JOINERS = "\u200c\u200d"
VISIBLE_FORMAT = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
"""Signs that stand over several figures: of category Cf, yet seen."""
BLANK = "\u034f\u115f\u1160\u3164\uffa0"
"""Of another category, yet never seen."""

SEQUENCES = {
    "colour": "\x1b[31m",
    "clear": "\x1b[2J",
    "private mode": "\x1b[?1049h",
    "cursor shape": "\x1b[4 q",
    "window title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;ZXZpbA==\x1b\\",
    "link": "\x1b]8;;https://evil.example\x1b\\",
    "link in C1": "\x9d8;;https://evil.example\x9c",
    "one-character CSI": "\x9b2J",
    "device control": '\x1bP$q"p\x1b\\',
    "device control in C1": "\x90$qm\x9c",
    "start of string": "\x1bXhello\x1b\\",
    "privacy message": "\x1b^hello\x9c",
    "application command": "\x1b_Gf=24;AAAA\x1b\\",
    "reset": "\x1bc",
    "character set": "\x1b(0",
    "tab set": "\x1bH",
}
STRAY = {
    "overwriting the line": ("sum = 4\rsum = 5", "sum = 4\nsum = 5"),
    "line ends": ("a\r\nb\r\r\nc\x0bd\x0ce\x85f\u2028g\u2029h", "a\nb\n\nc\nd\ne\nf\ng\nh"),
    "backspaces": ("5\b4", "54"),
    "bell and delete": ("a\x07b\x7fc", "abc"),
    "reversed reading": ("abc\u202edef", "abcdef"),
    "isolates": ("\u2066x\u2069", "x"),
    "no width": ("ad\u200bmin\u2060\ufeff\u00ad", "admin"),
    "letters that show nothing": ("p\u3164a\uffa0y\u115fp\u1160a\u034fl", "paypal"),
    "joiners that join nothing": ("a\u200db\u200c c\u200d", "ab c"),
    "joiner after joiner": ("👩\u200d\u200d💻", "👩\u200d💻"),
    "selectors that spell something": ("😀\ufe0f\ufe01\ufe02\U000e0105", "😀\ufe0f"),
    "invisible tags": ("x\U000e0041\U000e0042", "x"),
    "annotation": ("a\ufff9b\ufffac\ufffb", "abc"),
    "half characters": ("\ud83d\ude00", "\ufffd\ufffd"),
    "marks on marks": ("e" + "\u0301" * 40, "e" + "\u0301" * MAX_MARKS),
    "escape before a newline": ("a\x1b\nb", "a\nb"),
    "escape before a letter beyond ASCII": ("a\x1béb", "aéb"),
    "a colour that never ends": ("a\x1b[31", "a[31"),
    "a colour broken by a sequence": ("a\x1b[31\x1b[0mb", "a[31b"),
    "a title that never ends": ("a\x1b]0;title", "a]0;title"),
    "a title up to the newline": ("a\x1b]0;title\nb\x07c", "a]0;title\nbc"),
}
ORDINARY = [
    "28 * 4 = 112\n\tso",
    "naïve ≡ 数学 “quoted” – done… 10\u00a0€",
    "👩‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ 1️⃣ 🇩🇪",
    "ภาษาไทยที่นี่ ກໍ່ ខ្មែរ བོད་ཡིག",
    "हिन्दी क्षत्रिय क्‍ष বাংলা র‍্য தமிழ் ශ්‍රී മലയാളം",
    "العربية السَّلَامُ می‌خواهم עִבְרִית",
    "e\u0301 ậ Ω̄ ∑ᵢ 한국어 か\u3099",
    "⠓⠊⠀⠞ (braille has a blank)",
    "[bold]not markup[/bold] [link=https://x.example]y[/link] [/] [@click=app.quit]z",
    r"\x1b[31m \u001b ^[[0m $\frac{1}{2}$ C:\[x]",
]

TEXT = st.text(st.characters(blacklist_categories=()))  # half characters too: a server can send them
HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(
            [*SEQUENCES.values(), *"\x1b[]PX^_\\;0m \x07\x9b\x9c\x9d\x90\r\n\t\b", "\u0301" * 7, *JOINERS]
        ),
        st.sampled_from(
            ["👩", "\ufe0f", "\ufe01", "क", "्", "ب", "a", "\u202e", "\U000e0041", "\x1b]" + "x" * 4095]
        ),
        TEXT,
    ),
    max_size=12,
).map("".join)


def pieces(text: str, cuts: list[int]) -> list[str]:
    at = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(at)]


def streamed(parts: list[str]) -> str:
    sanitiser = Sanitiser()
    return "".join(map(sanitiser.push, parts)) + sanitiser.flush()


def is_harmless(text: str) -> bool:
    allowed = "\n\t" + JOINERS + VISIBLE_FORMAT
    return not any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in allowed for c in text
    )


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES.keys())
def test_an_escape_sequence_vanishes_whole_wherever_it_is_cut(sequence: str) -> None:
    text = f"a{sequence}b"
    assert safe(text) == "ab"
    assert streamed([*text]) == "ab"
    for cut in range(len(text) + 1):
        assert streamed([text[:cut], text[cut:]]) == "ab"


@pytest.mark.parametrize(("text", "shown"), STRAY.values(), ids=STRAY.keys())
def test_what_is_no_sequence_is_shown_or_dropped_by_the_character(text: str, shown: str) -> None:
    assert safe(text) == streamed([*text]) == shown
    assert is_harmless(shown)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert safe(text) == streamed([*text]) == text


def test_every_invisible_character_is_dropped_and_every_other_stays() -> None:
    steering, ordinary = [], []
    for c in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(c)
        if (category in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t" + VISIBLE_FORMAT) or c in BLANK:
            steering.append(c)
        elif category != "Cn":
            ordinary.append(c)
    assert all(safe(f"a{c}é") in ("aé", "a\né", "a\ufffdé") for c in steering)
    assert safe("a".join(ordinary)) == "a".join(ordinary)


def test_an_endless_sequence_does_not_swallow_the_answer() -> None:
    for begin in ("\x1b]0;", "\x1bP", "\x9d", "\x1b["):
        sanitiser = Sanitiser()
        body = "1" * 10_000
        shown = [sanitiser.push(c) for c in begin + body]
        held = next(n for n, text in enumerate(shown) if text)
        assert held <= 4200
        assert "".join(shown).endswith(body)
        assert all(shown[held:])


@given(HOSTILE, st.lists(st.integers(0, 10_000), max_size=8))
@example("\r\x1b[K\n", [1, 4])
def test_however_text_is_cut_the_same_comes_out(text: str, cuts: list[int]) -> None:
    assert streamed(pieces(text, cuts)) == safe(text)


@given(HOSTILE)
def test_what_comes_out_is_harmless_and_stays_as_it_is(text: str) -> None:
    shown = safe(text)
    assert is_harmless(shown)
    assert safe(shown) == shown
    run = 0
    for c in shown:
        run = run + (c not in JOINERS) if unicodedata.category(c) in ("Mn", "Me") or c in JOINERS else 0
        assert run <= MAX_MARKS


@given(HOSTILE)
def test_after_a_flush_another_text_begins(text: str) -> None:
    sanitiser = Sanitiser()
    sanitiser.push(text)
    sanitiser.flush()
    assert sanitiser.push("\nso") == "\nso"
    assert sanitiser.flush() == ""


@given(HOSTILE)
def test_a_safe_line_is_one_line(text: str) -> None:
    assert len(safe_line(text).splitlines()) <= 1
    assert "\x1b" not in safe_line(text)


@given(HOSTILE, st.sampled_from(["utf-8", "ascii", "latin-1", "UTF8"]))
def test_safe_json_means_the_same_and_can_be_written(text: str, encoding: str) -> None:
    line = safe_json(json.dumps({"text": text}, ensure_ascii=False), encoding)
    assert json.loads(line) == json.loads(json.dumps({"text": text}))
    assert can_show(line, encoding)
    assert safe(line) == line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("text", ORDINARY)
def test_safe_json_leaves_ordinary_text_readable(text: str) -> None:
    line = json.dumps({"text": text}, ensure_ascii=False)
    assert safe_json(line) == line


def test_a_token_costs_microseconds() -> None:
    sanitiser = Sanitiser()
    began = time.process_time()
    for _ in range(20_000):
        sanitiser.push(" so 28 * 4")
    assert (time.process_time() - began) / 20_000 < 20e-6  # about 0.5 here


def test_a_hostile_stream_costs_time_in_proportion() -> None:
    began = time.process_time()
    streamed([*("\x1b]" + "x" * 4000 + "\n") * 2])
    safe("\x1b]" * 100_000 + "\x1b[" * 100_000 + "\x9d\x1b" * 100_000)
    assert time.process_time() - began < 10  # about 1 here
