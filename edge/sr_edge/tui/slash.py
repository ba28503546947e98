"""Commands that are typed into the prompt: what there is, and what a line of it means."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from sr_edge.errors import UsageError
from sr_edge.terminal import safe_line


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    takes: str
    """What stands after it: empty for nothing, in brackets where it may be left out."""
    description: str

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.takes}".rstrip()


@dataclass(frozen=True, slots=True)
class Typed:
    """A command as it was typed."""

    name: str
    argument: str


COMMANDS: tuple[Command, ...] = (
    Command("new", "", "new conversation"),
    Command("model", "[NAME]", "another small model, or which one it is"),
    Command("remote", "[NAME]", "another remote, or which one it is"),
    Command("policy", "[auto|ask|local]", "who may write"),
    Command("budget", "[DOLLARS]", "what an answer may cost"),
    Command("effort", "[+|-|NUMBER]", "how readily the remote is asked"),
    Command("think", "[auto|always|never]", "when reasoning is unfolded"),
    Command("regen", "", "another answer: a new branch"),
    Command("continue", "", "go on with a stopped answer"),
    Command("edit", "", "edit the last prompt: a new branch"),
    Command("fork", "", "a new conversation from here"),
    Command("copy", "[answer|code|all]", "copy the answer, its code, or everything"),
    Command("export", "[FORMAT]", "write the conversation to a file"),
    Command("stats", "", "tokens, share, cost and time so far"),
    Command("offline", "[on|off]", "open no socket"),
    Command("rename", "TITLE", "rename the conversation"),
    Command("help", "", "keys and commands"),
    Command("quit", "", "leave"),
)

_BY_NAME = {command.name: command for command in COMMANDS}
_FORM = re.compile(r"/([A-Za-z]+|\?)(?:\s+(\S.*))?\s*", re.DOTALL)
_ALSO = {"?": "help", "exit": "quit", "bye": "quit", "clear": "new", "regenerate": "regen", "title": "rename"}


def parse(text: str) -> Typed | None:
    """The command that a prompt is; None for one that is to be answered.

    `/etc/hosts` is a path and ` /new` with its space is text, so neither is a command.

    Raises:
        UsageError: it looks like a command and is none, or what it takes is missing or too much.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    name, argument = match[1].lower(), safe_line(match[2] or "")
    command = _BY_NAME.get(_ALSO.get(name, name))
    if command is None:
        near = difflib.get_close_matches(name, [*_BY_NAME, *_ALSO], n=1, cutoff=0.6)
        hint = f"did you mean /{_ALSO.get(near[0], near[0])}?" if near else "/help lists them"
        raise UsageError(f"there is no command /{name[:40]}: {hint} A space before it sends it as text")
    if argument and not command.takes:
        raise UsageError(f"/{command.name} takes nothing after it; a space before it sends it as text")
    if not argument and command.takes and not command.takes.startswith("["):
        raise UsageError(f"/{command.name} needs its {command.takes}: {command.usage}")
    return Typed(command.name, argument)


def completions(text: str) -> list[Command]:
    """The commands that a line may become: none once the name is over."""
    if not re.fullmatch(r"/[a-z]*", text):
        return []
    return [command for command in COMMANDS if command.name.startswith(text[1:])]


def completed(text: str) -> str:
    """With as much of the name as is certain, and a space behind a whole one that takes something."""
    found = completions(text)
    if not found:
        return text
    if len(found) == 1:
        return f"/{found[0].name}" + (" " if found[0].takes else "")
    shared = found[0].name
    for command in found[1:]:
        while not command.name.startswith(shared):
            shared = shared[:-1]
    return f"/{shared}"
