"""Which colour each remote has: the same wherever it is named, as long as the program runs."""

from __future__ import annotations

HUES = ("accent", "success", "primary", "secondary")
"""Variables that every theme has, the ones that differ most first. Red and amber mean trouble elsewhere."""


class Hues:
    """Gives each remote a colour when it first appears. More remotes than colours share them in turn."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}

    def number(self, remote: str) -> int:
        """An index into `HUES`."""
        return self._names.setdefault(remote, len(self._names)) % len(HUES)

    def variable(self, remote: str) -> str:
        """For text: `$text-accent` and the like, which can be read on any background."""
        return f"$text-{HUES[self.number(remote)]}"
