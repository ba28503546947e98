"""What a typed command means, and what is no command."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.errors import UsageError
from sr_edge.tui.slash import COMMANDS, Command, Typed, completed, completions, parse

NAMES = (
    "new model remote policy budget effort think regen continue edit fork copy export stats offline rename"
    " help quit"
)


def test_the_commands_are_these() -> None:
    assert [command.name for command in COMMANDS] == NAMES.split()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_command_is_understood(command: Command) -> None:
    if not command.takes:
        assert parse(f"/{command.name}") == Typed(command.name, "")
        with pytest.raises(UsageError, match="takes nothing after it"):
            parse(f"/{command.name} word")
    else:
        assert parse(f"/{command.name}  two  words\n") == Typed(command.name, "two words")
    if command.takes.startswith("["):
        assert parse(f"/{command.name} ") == Typed(command.name, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/NEW", Typed("new", "")),
        ("/exit", Typed("quit", "")),
        ("/?", Typed("help", "")),
        ("/budget 0.05", Typed("budget", "0.05")),
        ("/rename \x1b[31mred\x1b[0m", Typed("rename", "red")),
        ("/etc/hosts is what?", None),
        ("/2 of them", None),
        (" /new", None),
        ("what is /new?", None),
        ("/", None),
        ("", None),
    ],
)
def test_what_is_a_command_and_what_is_not(text: str, expected: Typed | None) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/polcy ask", "there is no command /polcy: did you mean /policy?"),
        ("/regnerate", "did you mean /regen?"),
        ("/xyzzy", "/help lists them"),
        ("/rename", "/rename needs its TITLE: /rename TITLE"),
    ],
)
def test_a_mistake_is_a_line_that_says_what_is_near(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/ren", "/rename "),
        ("/re", "/re"),
        ("/reg", "/regen"),
        ("/ed", "/edit"),
        ("/mo", "/model "),
        ("/rename x", "/rename x"),
        ("/xyz", "/xyz"),
        ("text", "text"),
        ("/", "/"),
    ],
)
def test_as_much_is_completed_as_is_certain(text: str, expected: str) -> None:
    assert completed(text) == expected


@given(st.text(max_size=40))
def test_any_text_is_a_command_or_a_prompt_or_a_line(text: str) -> None:
    found, problem = None, ""
    try:
        found = parse(text)
    except UsageError as error:
        problem = str(error)
    assert not problem or text.startswith("/")
    assert "\n" not in problem
    assert found is None or found.name in NAMES.split()
    assert completed(text).startswith(text)
    assert all(command.name.startswith(text[1:]) for command in completions(text))
