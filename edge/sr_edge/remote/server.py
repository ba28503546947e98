"""What all requests to one endpoint share: its address and key, what was learned of it, the kept line."""

from __future__ import annotations

import re
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from sr_edge.remote.deadlines import Deadlines
from sr_edge.remote.dialects import Capabilities, Dialect, Quirks
from sr_edge.remote.egress import Door, Site
from sr_edge.remote.reply import plain_line

if TYPE_CHECKING:
    from sr_edge.remote.line import Line


class Server:
    """The only owner of what was learned and of the line that is kept for the next request."""

    def __init__(
        self,
        site: Site,
        door: Door,
        *,
        key: str | None,
        model: str | None,
        pinned: Dialect | None,
        capabilities: Capabilities | None,
        learned: Callable[[Capabilities], None],
        deadlines: Deadlines,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        pinned: the user named it: no other is tried.
        learned: told of capabilities that were found out, on the thread that did.
        """
        self.site = site
        self.deadlines = deadlines
        self.clock = clock
        self.has_key = key is not None
        self.pinned = pinned
        self._door = door
        self._key = key
        self._learned = learned
        self._lock = threading.Lock()
        self._model = model
        self._is_model_known = model is not None
        self._capabilities = capabilities
        self._quirks = Quirks() if capabilities is None else capabilities.quirks
        self.was_surveyed = False
        """In this process: what is known is no old story."""
        self._kept: Line | None = None
        self._is_closed = False

    @property
    def model(self) -> str | None:
        return self._model

    @property
    def is_model_known(self) -> bool:
        return self._is_model_known

    @property
    def capabilities(self) -> Capabilities | None:
        return self._capabilities

    @property
    def quirks(self) -> Quirks:
        return self._quirks

    @property
    def is_offline(self) -> bool:
        return self._door.is_offline

    def learn_model(self, model: str | None) -> None:
        """None: the server names none, and is asked without a name from now on."""
        with self._lock:
            self._model, self._is_model_known = model, True

    def learn_quirks(self, quirks: Quirks) -> None:
        known = self._capabilities
        if known is not None:
            self.learn(replace(known, quirks=quirks))
        else:
            with self._lock:
                self._quirks = quirks

    def learn(self, capabilities: Capabilities) -> None:
        with self._lock:
            self._capabilities, self._quirks = capabilities, capabilities.quirks
        self._learned(capabilities)

    def headers(self, *, is_shown: bool = False) -> dict[str, str]:
        """Args:
        is_shown: to somebody other than the server: without the key.
        """
        headers = {
            "Host": self.site.where,
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",  # a few bytes saved are not worth a decompression bomb
            "User-Agent": "sr-edge",
        }
        if self._key is not None:
            headers["Authorization"] = f"Bearer {'***' if is_shown else self._key}"
        return headers

    def safe_line(self, text: str, limit: int = 300) -> str:
        """Whatever may quote the server, as one harmless line without the key."""
        return plain_line(text if self._key is None else _without(self._key, text), limit)

    def take_line(self) -> Line:
        """The kept line, now the caller's alone, or a new one.

        Raises:
            OfflineError: there are no more lines.
        """
        with self._lock:
            line, self._kept = self._kept, None
        if line is not None and line.can_send:
            return line
        if line is not None:
            line.close()
        return self._door.line(self.site, connect_timeout=self.deadlines.connect)

    def keep_line(self, line: Line) -> None:
        """Keep it for the next request. Of two only the newer is kept, and after `close` none."""
        with self._lock:
            unwanted: Line | None = line
            if not self._is_closed:
                unwanted, self._kept = self._kept, line
        if unwanted is not None:
            unwanted.close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            line, self._kept = self._kept, None
        if line is not None:
            line.close()


_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Mn", "Me"})
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols by their category, and yet nothing to be seen
_MIN_PIECE = 6  # characters of a key at the end of a text that was cut


def _without(key: str, text: str) -> str:
    """The text without the key as it stands, as JSON or a URL may spell it, or with what is invisible in it;
    and without its beginning at the very end, where it was cut."""
    seen = [at for at, c in enumerate(text) if unicodedata.category(c) not in _INVISIBLE and c not in _BLANK]
    visible = "".join(text[at] for at in seen)
    pieces, end = [], 0
    for match in re.finditer("".join(map(_spellings, key)), visible):
        pieces += [text[end : seen[match.start()]], "***"]
        end = seen[match.end() - 1] + 1
    rest = text[end:]
    tail = rest.rstrip("\u2026\"' ).]}")
    cut = next((n for n in range(len(key) - 1, _MIN_PIECE - 1, -1) if tail.endswith(key[:n])), 0)
    return "".join([*pieces, f"{tail[:-cut]}***" if cut else rest])


def _spellings(character: str) -> str:
    """A pattern for one character of a key."""
    code = f"{ord(character):02x}"
    escaped = rf"(?i:\\{{1,4}}(?:u00|x){code}|%{code})"
    return (
        rf"(?:{escaped}|\\{{1,4}})"
        if character == "\\"
        else rf"(?:\\{{0,4}}{re.escape(character)}|{escaped})"
    )
