"""Nothing that a model or a server wrote may steer the terminal, in one piece or in many."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.terminal import can_show, safe, safe_json, safe_line

TEXT = st.text(st.characters(blacklist_categories=()))  # half characters too: a server can send them
ATTACKS = {
    "colour": "\x1b[31mred\x1b[0m",
    "window title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;ZXZpbA==\x1b\\",
    "one-character CSI": "\x9b2J",
    "overwriting the line": "sum = 4\rsum = 5",
    "backspaces": "5\b4",
    "reversed reading": "abc\u202edef",
    "isolates": "\u2066x\u2069",
    "invisible tags": "\U000e0041\U000e0042",
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS.keys())
def test_text_that_steers_a_terminal_does_not_pass(text: str) -> None:
    assert safe(text) != text
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t" for c in safe(text))


@pytest.mark.parametrize("text", ["28 * 4 = 112\n\tso", "naïve ≡ 数学", "👩‍💻", "[bold]not markup[/bold]"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert safe(text) == text


@given(st.lists(TEXT))
def test_pieces_are_as_safe_as_the_whole(pieces: list[str]) -> None:
    assert "".join(map(safe, pieces)) == safe("".join(pieces))


@given(TEXT)
def test_a_safe_line_is_one_line(text: str) -> None:
    assert len(safe_line(text).splitlines()) <= 1
    assert "\x1b" not in safe_line(text)


@given(TEXT, st.sampled_from(["utf-8", "ascii", "latin-1", "UTF8"]))
def test_safe_json_means_the_same_and_can_be_written(text: str, encoding: str) -> None:
    line = safe_json(json.dumps({"text": text}, ensure_ascii=False), encoding)
    assert json.loads(line) == json.loads(json.dumps({"text": text}))
    assert can_show(line, encoding)
    assert safe(line) == line
    assert len(line.splitlines()) == 1
