"""How long a conversation takes to begin again in another process: had back from disk, or read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from sr_edge.bench.fresh import fresh
from sr_edge.bench.pairs import Spread, in_rounds, ratios
from sr_edge.bench.report import Found, Row, Side, Skipped, failures
from sr_edge.bench.setting import Setting
from sr_edge.bench.synthetic import words
from sr_edge.bench.writing import open_model, trained_context
from sr_edge.llama import BATCH

SUBJECT: Final = "reopening"
LONG: Final = 1024
_MARGIN = 64  # tokens that nobody writes


@dataclass(frozen=True, slots=True)
class Reopened:
    """Seconds, and what they were for."""

    read: float
    """To read the conversation, up to the first token after it."""
    had_back: float
    """To check the file and load it, up to the same token."""
    written: float
    """To write the file, once the conversation is over."""
    tokens: int
    """That were had back."""
    file_bytes: int


def rows(setting: Setting) -> Iterator[Found]:
    if trained_context(setting.model) < LONG + _MARGIN:
        yield Skipped(SUBJECT, "all of it", f"the model's context has no room for {LONG} tokens")
        return
    measured = in_rounds(
        {SUBJECT: lambda: fresh(partial(reopen, setting.model, setting.threads), setting.own_environ)},
        setting.pairs,
        say=setting.say,
    )
    yield from failures(SUBJECT, measured.failures)
    for got in measured.values.values():
        had_back, read = [one.had_back for one in got], [one.read for one in got]
        file_mb = got[0].file_bytes / 1e6
        yield Row(
            SUBJECT,
            f"a conversation of {LONG // 1024}k opens again: from disk / read",
            ratios(had_back, read),
            "x",
            None,
            (Side("from disk", Spread.of(had_back), "s"), Side("read", Spread.of(read), "s")),
            f"the file has {file_mb:.0f} MB and took {Spread.of([one.written for one in got]).median:.2f} s",
        )


def reopen(model: Path, threads: int, tokens: int = LONG) -> Reopened:
    """Read so many tokens and keep them; then, with the model opened anew, have them back."""
    context = tokens + _MARGIN
    with TemporaryDirectory() as folder:
        path = Path(folder) / "one.kv"
        with open_model(model, threads, context) as local:
            ids = local.tokenize(" ".join(words(tokens)))[:tokens]
            began = time.perf_counter()
            for at in range(0, len(ids), BATCH):
                local.feed(ids[at : at + BATCH])
            local.sample()
            read = time.perf_counter() - began
            began = time.perf_counter()
            local.save_state(path)
            written = time.perf_counter() - began
        size = path.stat().st_size
        with open_model(model, threads, context) as local:
            began = time.perf_counter()
            loaded = local.load_state(path)
            local.sample()
            had_back = time.perf_counter() - began
        return Reopened(read, had_back, written, loaded, size)
