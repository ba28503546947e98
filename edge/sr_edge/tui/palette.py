"""What the palette finds: everything that a key or a command does, and past conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.dom import DOMNode
from textual.fuzzy import Matcher

from sr_edge.keymap import KEYMAP, Key, Where
from sr_edge.terminal import safe_line
from sr_edge.tui.slash import COMMANDS, Command
from sr_edge.tui.widgets.transcript import Talk

if TYPE_CHECKING:
    from sr_edge.store import Hit as Found

_PLACES: tuple[Where, ...] = ("chat", "transcript", "app")
_LEFT_OUT = ("app.palette", "app.interrupt", "app.leave")
_MOVES = ("nav.up", "nav.down", "nav.top", "nav.bottom")
_NUM_FOUND = 8
_LOW = 0.01  # what was said comes after what can be done


@runtime_checkable
class Host(Protocol):
    """The screen that the palette is opened on."""

    def run_command(self, name: str, argument: str) -> None:
        """As if `/name argument` had been sent."""

    def prepare_command(self, text: str) -> None:
        """Put the beginning of a command into the prompt: the user has to say what it takes."""

    def search_history(self, text: str) -> list[Found]:
        """Past turns with these words."""

    def open_found(self, found: Found) -> None:
        """Show that turn."""


@dataclass(frozen=True, slots=True)
class Entry:
    title: str
    help: str
    run: Callable[[], object]


class ChatCommands(Provider):
    """Keys and commands. An action that cannot be done now is not offered."""

    async def discover(self) -> Hits:
        for entry in self._entries():
            yield DiscoveryHit(Content(entry.title), entry.run, text=entry.title, help=entry.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for entry in self._entries():
            score = max(matcher.match(entry.title), matcher.match(entry.help) / 2)
            if score > 0:
                yield Hit(score, _marked(matcher, entry.title), entry.run, text=entry.title, help=entry.help)

    def _entries(self) -> Iterator[Entry]:
        known: set[str] = set()
        for key in KEYMAP:
            if key.where not in _PLACES or key.id in (*_LEFT_OUT, *_MOVES):
                continue
            target = self._target(key)
            if target is not None:
                known.add(key.description)
                yield Entry(key.description, f"key {self._shown(key)}", self._runner(target, key.action))
        host = self.screen
        if isinstance(host, Host):
            for command in COMMANDS:
                if command.description not in known:
                    yield Entry(command.description, command.usage, _command(host, command))

    def _target(self, key: Key) -> DOMNode | None:
        """Whose action it is, as it can be called now."""
        nodes: tuple[DOMNode, ...] = (self.screen, self.app, *self.screen.query(Talk))
        for node in nodes:
            if hasattr(node, f"action_{key.action}") and node.check_action(key.action, ()):
                return node
        return None

    def _runner(self, target: DOMNode, action: str) -> Callable[[], object]:
        return lambda: self.app.call_later(self.app.run_action, action, target)

    def _shown(self, key: Key) -> str:
        keys = self.app._keymap.get(key.id, key.keys)
        return keys.replace(",", " or ")


class History(Provider):
    """Past conversations, by what was said in them."""

    async def search(self, query: str) -> Hits:
        host = self.screen
        if not isinstance(host, Host) or len(query.strip()) < 3:
            return
        for number, found in enumerate(host.search_history(query)[:_NUM_FOUND]):
            title = safe_line(found.conversation.title) or "untitled"
            said = safe_line(found.snippet.replace("\x02", "").replace("\x03", ""))
            yield Hit(_LOW - number / 1e6, Content(title), _opener(host, found), text=title, help=said)


def _command(host: Host, command: Command) -> Callable[[], object]:
    if command.takes:
        return lambda: host.prepare_command(f"/{command.name} ")
    return lambda: host.run_command(command.name, "")


def _opener(host: Host, found: Found) -> Callable[[], object]:
    return lambda: host.open_found(found)


def _marked(matcher: Matcher, title: str) -> Content:
    return matcher.highlight(title)
