"""Finding the opening marker in what the small model writes, in both of its forms."""

from hypothesis import given
from hypothesis import strategies as st

from sr_edge.markers import OPEN, Markers
from sr_edge.scanner import TextScanner, TokenScanner, scanner_for

PIECES = [
    "a",
    "b ",
    "<",
    "big",
    "model",
    ">",
    "<big",
    "</",
    "bigmodel>",
    "\\",
    ">\n\n",
    " <",
    ".</",
    "é",
    "3 < 4",
]


def scan(scanner, pieces):
    """Everything that was released, and the openings, until the first opening."""
    released = []
    for id, piece in enumerate(pieces):
        result = scanner.push(id, -0.5, piece)
        released += result.released
        if result.opening:
            return released, list(result.opening)
    return released + list(scanner.flush()), []


def text_of(tokens):
    return "".join(token.text for token in tokens)


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_text_form_shows_all_but_the_markers_and_loses_no_token(pieces):
    released, opening = scan(TextScanner(), [p.encode() for p in pieces])
    shown = text_of(released + opening)
    whole = "".join(pieces)
    assert [t.id for t in released + opening] == list(range(len(released) + len(opening)))
    assert OPEN not in shown
    if opening:
        assert "</bigmodel>" not in shown
    elif not any(s in whole for s in ("</bigmodel>", "<\\bigmodel>", OPEN)):
        assert shown == whole


@given(st.text(max_size=20), st.data())
def test_any_cut_of_the_bytes_gives_the_same_text(text, data):
    raw = text.encode("utf-8", "replace")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    for scanner in (TokenScanner(256), TextScanner()):
        released, opening = scan(scanner, pieces)
        assert opening or text_of(released) == raw.decode()


def test_text_form_finds_a_marker_whose_borders_merge_with_its_neighbours():
    released, opening = scan(TextScanner(), [b"So", b".<", b"big", b"model", b">\n\n"])
    assert text_of(released) == "So"
    assert [t.id for t in opening] == [1, 2, 3, 4]
    assert text_of(opening) == ".\n\n"


def test_text_form_holds_back_only_what_may_become_a_marker():
    scanner = TextScanner()
    assert text_of(scanner.push(1, 0.0, b"x <").released) == ""
    assert text_of(scanner.push(2, 0.0, b" 3").released) == "x < 3"


def test_a_stray_close_marker_is_not_shown():
    released, opening = scan(TextScanner(), [b"a", b"</bigmodel>", b"b", b"<\\bigmodel>", b"c"])
    assert (text_of(released), opening) == ("abc", [])


def test_token_form_opens_on_its_id_alone():
    markers = Markers("token", (7,), (8,))
    scanner = scanner_for(markers)
    assert scanner.push(1, -1.0, OPEN.encode()).opening == ()
    assert [t.id for t in scanner.push(7, -1.0, b"").opening] == [7]


def test_a_failed_opening_does_not_tear_a_character():
    scanner = TokenScanner(7)
    assert scanner.push(1, 0.0, "é".encode()[:1]).released[0].text == ""
    assert scanner.push(7, 0.0, b"").opening[0].text == "\ufffd"
    assert scanner.push(2, 0.0, "é".encode()[1:]).released[0].text == "é"
