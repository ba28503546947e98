"""What the history costs: `python -m tests.store.measure`."""

from __future__ import annotations

import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.store.streams import scripted

from sr_edge.events import Finished, LocalToken, Started
from sr_edge.store import Store
from sr_edge.store.search import indexable


def cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def conversation_of(store: Store, spans: int) -> str:
    """Flushed as it would be in life, at each span and in between."""
    asked = store.say(store.new_conversation("long").id, None, "why?")
    recorder = store.begin(asked.id, policy="auto", seed=None)
    for n, event in enumerate(scripted(1, spans=spans, tokens=30)):
        recorder.add(event)
        if n % 8 == 0:
            recorder.flush()
    recorder.close()
    return recorder.turn


def tokenizers() -> None:
    """The same texts under both."""
    dice = random.Random(1)
    words = ["quadratic", "so", "the", "sum", "of", "is", "整数", "の和", "7^2"]
    texts = [" ".join(dice.choices(words, k=400)) for _ in range(500)]
    options = {
        "unicode61": "tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'",
        "trigram": "tokenize = 'trigram'",
    }
    for name, option in options.items():
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute(f"CREATE VIRTUAL TABLE t USING fts5(text, {option})")
            rows = [(indexable(text) if name == "unicode61" else text,) for text in texts]
            seconds = cpu(lambda c=connection, r=rows: c.executemany("INSERT INTO t VALUES (?)", r))
            size = connection.execute("PRAGMA page_count").fetchone()[0] * 4096
            hits = connection.execute("SELECT count(*) FROM t WHERE t MATCH '\"整\"'").fetchone()[0]
            print(f"{name}: {seconds:.2f} s, {size / 1e6:.1f} MB, {hits} of 500 for one Han character")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "history.db") as store:
        turn = conversation_of(store, 2000)
        events = store.events(turn)
        print(f"{len(events)} events, 2000 spans, {store.stats().file_bytes / 1e6:.1f} MB")
        print(f"thread: {min(cpu(lambda: store.thread(turn)) for _ in range(5)):.3f} s of CPU")
        print(f"events: {min(cpu(lambda: store.events(turn)) for _ in range(5)):.3f} s of CPU")
        waits = []
        recorder = store.begin(store.say(store.latest().id, turn, "more").id, policy="auto", seed=None)
        recorder.add(Started((1,), "small"))
        for n in range(200):
            recorder.add(LocalToken(n, "x", -0.1))
            began = time.perf_counter()
            recorder.flush()
            waits.append(time.perf_counter() - began)
        recorder.add(Finished("stop", 1, 200, 0, 1.0))
        recorder.close()
        waits.sort()
        print(f"flush: median {1000 * waits[100]:.1f} ms, p99 {1000 * waits[198]:.1f} ms")
        recorder = store.begin(store.say(store.latest().id, turn, "more").id, policy="auto", seed=None)
        seconds = cpu(lambda: [recorder.add(event) for event in events])
        print(f"add: {1e6 * seconds / len(events):.1f} us of CPU for each event, writing beside it included")
        recorder.close()
        print(f"search: {min(cpu(lambda: store.search('done')) for _ in range(5)):.4f} s of CPU")
    tokenizers()
