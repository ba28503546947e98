"""The table of keys: no two meanings for one key, none that a terminal cannot tell apart."""

from itertools import combinations

import pytest
from textual.widgets import TextArea

from sr_edge.keymap import EDITING, KEYMAP, Key, check_keys, clash, names

FORBIDDEN = {"ctrl+i", "ctrl+m", "ctrl+h", "ctrl+s", "ctrl+z"}
PLACES = [{"app", "chat", "transcript"}, {"app", "chat", "prompt"}, {"app", "chat", "sidebar"}]
OVER_EDITING = {"app.interrupt", "app.leave"}
"""They are heard where there is no text to copy or to delete."""


def test_ids_are_unique_and_none_is_a_table_of_another() -> None:
    ids = [key.id for key in KEYMAP]
    assert len(set(ids)) == len(ids)
    assert not [pair for pair in combinations(ids, 2) if pair[0].startswith(f"{pair[1]}.")]
    assert not [pair for pair in combinations(ids, 2) if pair[1].startswith(f"{pair[0]}.")]


def test_no_two_keys_clash_where_both_are_heard() -> None:
    for places in PLACES:
        heard = [(name, key) for key in KEYMAP if key.where in places for name in names(key.keys)]
        assert len({name for name, _ in heard}) == len(heard), places
    assert clash({}) is None


@pytest.mark.parametrize("key", KEYMAP, ids=lambda key: key.id)
def test_a_key_is_one_that_terminals_send_and_editing_leaves(key: Key) -> None:
    taken = set(names(key.keys))
    assert not taken & FORBIDDEN
    assert check_keys(key.id, key.keys) == key.keys
    if key.id not in OVER_EDITING:
        assert not taken & EDITING
    assert key.description == key.description.strip(". ")


def test_what_editing_takes_is_what_the_text_area_binds() -> None:
    bound = {name for binding in TextArea.BINDINGS for name in names(binding.key)}  # type: ignore[union-attr]
    of_editing = {
        name
        for name in bound
        if name.startswith(("ctrl+", "f")) and "shift" not in name and "back" not in name
    }
    assert of_editing == EDITING


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"nav.new": "ctrl+t"}, ("ctrl+t", "view.reasoning", "nav.new")),
        (
            {"chat.edit": "escape"},
            ("escape", "chat.stop", "chat.edit"),
        ),  # transcript and chat are heard together
        ({"nav.up": "j"}, ("j", "nav.up", "nav.down")),
        ({"sidebar.open": "u"}, None),  # sidebar and transcript are not
        ({"nav.new": "ctrl+b", "nav.sidebar": "ctrl+n"}, None),
    ],
)
def test_a_changed_key_that_clashes_is_found(
    changed: dict[str, str], expected: tuple[str, str, str] | None
) -> None:
    found = clash(changed)
    assert (found and (found[0], found[1].id, found[2].id)) == expected


def test_the_same_key_twice_in_one_row_is_no_clash() -> None:
    assert check_keys("nav.new", "f5, f5") == "f5"
    assert clash({"nav.new": "f5,f5"}) is None
