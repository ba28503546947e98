"""Every key of the chat in one table: what it is called, which key has it, and where it is heard.

The settings, the screens' bindings, the palette and the documentation all follow the table. Nothing here
knows how keys are read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Where = Literal["app", "chat", "transcript", "prompt", "sidebar"]


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    keys: str
    """Names with commas between them; a character stands for itself."""
    action: str
    """The method that it calls, without `action_`."""
    description: str
    where: Where
    show: bool = False
    """Whether the line at the foot of the screen has it."""
    is_first: bool = False
    """Whether it goes before what the focused widget would do with the key."""


KEYMAP: tuple[Key, ...] = (
    Key("chat.send", "enter", "send", "send", "prompt", show=True),
    Key("chat.newline", "ctrl+j,shift+enter", "newline", "newline", "prompt", show=True),
    Key("chat.editor", "ctrl+g", "editor", "the prompt in your editor", "prompt"),
    Key("prompt.history", "up", "older", "older prompts, from the first line", "prompt"),
    Key("prompt.newer", "down", "newer", "newer prompts, from the last line", "prompt"),
    Key("prompt.complete", "tab", "complete", "complete a /command, else the next part", "prompt"),
    Key("chat.stop", "escape", "stop", "stop", "chat", show=True),
    Key("chat.policy", "shift+tab", "policy", "policy", "chat", show=True),
    Key("view.reasoning", "ctrl+t", "reasoning", "thinking", "chat", show=True),
    Key("view.details", "ctrl+o", "details", "details of spans", "chat"),
    Key("nav.sessions", "ctrl+r", "sessions", "history", "chat", show=True),
    Key("nav.new", "ctrl+n", "new", "new conversation", "chat"),
    Key("nav.sidebar", "ctrl+b", "sidebar", "list of conversations", "chat"),
    Key("nav.block.prev", "alt+up", "previous_block", "previous span or answer", "chat"),
    Key("nav.block.next", "alt+down", "next_block", "next span or answer", "chat"),
    Key("app.palette", "ctrl+p", "command_palette", "commands", "app"),
    Key("app.help", "f1", "help", "help", "app", show=True),
    Key("app.settings", "f2", "settings", "settings", "app"),
    Key("app.interrupt", "ctrl+c", "interrupt", "copy, clear, stop or leave", "app", is_first=True),
    Key("app.quit", "ctrl+q", "quit", "leave", "app", is_first=True),
    Key("app.leave", "ctrl+d", "quit", "leave, while the prompt is empty", "app"),
    Key("nav.up", "k,up", "move_up", "up", "transcript"),
    Key("nav.down", "j,down", "move_down", "down", "transcript"),
    Key("nav.top", "g,home", "move_top", "to the top", "transcript"),
    Key("nav.bottom", "G,end", "move_bottom", "to the end", "transcript"),
    Key("span.prev", "[", "previous_span", "span before", "transcript", show=True),
    Key("span.next", "]", "next_span", "span after", "transcript", show=True),
    Key("span.detail", "enter", "span_detail", "details", "transcript", show=True),
    Key("span.view", "v", "span_view", "what was sent for this span", "transcript"),
    Key("span.why", "w", "span_why", "why this span was written where it was", "transcript"),
    Key("span.local", "l", "rerun_local", "this span again, locally", "transcript"),
    Key("span.remote", "b", "rerun_remote", "this span again, on the remote", "transcript"),
    Key("block.copy", "y", "copy_block", "copy this", "transcript", show=True),
    Key("answer.copy", "Y", "copy_answer", "copy the answer", "transcript"),
    Key("block.code", "u", "copy_code", "copy the next block of code", "transcript"),
    Key("block.pager", "o", "open_pager", "open in your pager", "transcript"),
    Key("block.save", "s", "save_block", "save this to a file", "transcript"),
    Key("chat.edit", "e", "edit", "edit the prompt: a new branch", "transcript"),
    Key("chat.regenerate", "r", "regenerate", "another answer: a new branch", "transcript"),
    Key("chat.continue", "c", "continue", "go on with a stopped answer", "transcript"),
    Key("chat.fork", "f", "fork", "a new conversation from here", "transcript"),
    Key("branch.prev", "<", "previous_branch", "previous branch", "transcript"),
    Key("branch.next", ">", "next_branch", "next branch", "transcript"),
    Key("chat.export", "x", "export", "export", "transcript"),
    Key("chat.offline", "O", "offline", "offline, or not", "transcript"),
    Key("chat.effort.up", "+", "effort_up", "ask the remote more often", "transcript"),
    Key("chat.effort.down", "-", "effort_down", "ask the remote less often", "transcript"),
    Key("sidebar.open", "enter", "open", "open", "sidebar", show=True),
    Key("sidebar.filter", "/", "filter", "filter by title", "sidebar", show=True),
    Key("sidebar.rename", "r", "rename", "rename", "sidebar"),
    Key("sidebar.remove", "d,delete", "remove", "remove", "sidebar"),
    Key("sidebar.up", "k,up", "cursor_up", "up", "sidebar"),
    Key("sidebar.down", "j,down", "cursor_down", "down", "sidebar"),
)

EDITING = frozenset(
    f"ctrl+{letter}" for letter in ("a", "c", "d", "e", "k", "u", "v", "w", "x", "y", "z", "left", "right")
) | {"f6", "f7"}
"""What editing text takes, so that elsewhere it would not be heard while a prompt is typed."""

_SAME = {"ctrl+i": "Tab", "ctrl+m": "Enter", "ctrl+h": "Backspace", "ctrl+[": "Escape"}
_MODIFIERS = ("ctrl", "alt", "shift", "super", "meta", "hyper")
_NAMED = {
    *("up", "down", "left", "right", "home", "end", "pageup", "pagedown", "insert", "delete"),
    *("enter", "escape", "tab", "backspace", "space", "slash", "backslash", "at", "minus", "plus"),
    *("underscore", *(f"f{number}" for number in range(1, 25))),
}


def check_keys(id: str, text: str) -> str:
    """The keys as they are kept: without spaces, and each once.

    Raises:
        ValueError: not all of them can be meant; says which.
    """
    where = next(key.where for key in KEYMAP if key.id == id)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name:
            raise ValueError("must be one key, or several with commas between them; comma is one's name")
        if name.lower() in _SAME:
            raise ValueError(f"can't be {name}: on a terminal that is {_SAME[name.lower()]}")
        *modifiers, base = name.split("+") if name != "+" else ["+"]
        is_known = (len(base) == 1 and base.isprintable()) or base in _NAMED or _is_character(base)
        if not is_known or not set(modifiers) <= set(_MODIFIERS):
            raise ValueError(
                f"holds no key's name: {_shown(name)}; keys are ctrl+t, alt+up, f3, G, left, tab"
            )
        if where == "prompt" and not modifiers and (len(base) == 1 or _is_character(base)):
            raise ValueError(f"can't be {name}: nobody could type it any more")
    return ",".join(dict.fromkeys(names))


def clash(changed: Mapping[str, str]) -> tuple[str, Key, Key] | None:
    """A key that would mean two things at once, and both; with those that the user changed.

    Args:
        changed: keys by id, instead of the table's.
    """
    taken: dict[str, list[Key]] = {}
    for key in KEYMAP:
        for name in names(changed.get(key.id, key.keys)):
            for other in taken.setdefault(name, []):
                if other.id != key.id and _are_heard_together(key, other):
                    return name, other, key
            taken[name].append(key)
    return None


def names(keys: str) -> Iterator[str]:
    return (name.strip() for name in keys.split(","))


def _are_heard_together(one: Key, other: Key) -> bool:
    return one.where == other.where or bool({one.where, other.where} & {"app", "chat"})


def _is_character(name: str) -> bool:
    """Such as `left_square_bracket`."""
    try:
        return unicodedata.lookup(name.replace("_", " ")).isprintable()
    except KeyError:
        return False


def _shown(name: str) -> str:
    return '"' + "".join(char if char.isprintable() else "?" for char in name[:40]) + '"'
