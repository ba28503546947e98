"""What is measured, and how long: all that a subject needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sr_edge.processor import default_threads

_SMALL_MODEL: Final = 64 << 20  # bytes, as in `llama`


@dataclass(frozen=True, slots=True)
class Setting:
    model: Path
    """The small model."""
    threads: int
    """Of every side that is compared."""
    pairs: int
    """Rounds."""
    environ: Mapping[str, str]
    """For processes that are started: ours, as it was before llama.cpp was loaded."""
    home: Path
    """An empty folder for a program's own files (`SR_EDGE_HOME`), so that nobody's settings are measured."""
    big: Path | None = None
    """A large model on this machine."""
    llama_bench: Path | None = None
    tokens: int = 128
    """Of each run that writes."""
    seconds: float = 10.0
    """Of each run that writes for a time."""
    say: Callable[[str], None] = lambda line: None
    """Gets what is going on, one line each."""

    @property
    def own_environ(self) -> dict[str, str]:
        """For the program itself: nobody's settings, modules compiled as an installed one has them."""
        kept = {
            name: value
            for name, value in self.environ.items()
            if not name.startswith("SR_EDGE_") and name != "PYTHONDONTWRITEBYTECODE"
        }
        return {
            **kept,
            "SR_EDGE_HOME": str(self.home),
            "PYTHONPYCACHEPREFIX": str(self.home / "compiled"),
        }


def threads_for(model: Path) -> int:
    """As many as it is opened with by default: one for a small model, whose threads would only wait."""
    return 1 if model.stat().st_size < _SMALL_MODEL else default_threads()
