"""Full-text search: what is indexed, and what the user's words mean in it.

The tokenizer splits at what is neither letter nor digit. Scripts that write words without spaces would be
one long word to it, so a sign that no one sees is put between their characters, and what is looked up in
them becomes a phrase.
"""

from __future__ import annotations

import re
import sqlite3
from typing import Literal

from sr_edge.extract import split_reasoning
from sr_edge.store import rows
from sr_edge.store.parts import whole

Index = Literal["said", "thought"]

OPEN, CLOSE = "\x02", "\x03"
"""Around what was found, in a snippet."""

_SPLIT = "\u200b"
_UNSPACED = re.compile(  # Han, kana, Bopomofo; Thai, Lao, Burmese, Khmer
    "([\u2e80-\u2fdf\u3005-\u3007\u3040-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff])"
)
_UNFIT = re.compile("[\x00-\x08\x0e-\x1f\u200b]+")
_SNIPPET_WORDS = 24


def indexable(text: str) -> str:
    return _UNSPACED.sub(rf"{_SPLIT}\1{_SPLIT}", _UNFIT.sub(" ", text))


def query_of(text: str) -> str | None:
    """The words of it, each also as the beginning of a longer one; None where nothing can be looked up so.

    Every word is quoted: nothing that a user types is an operator.
    """
    words = [word for word in indexable(text).split() if any(map(str.isalnum, word))]
    return " ".join('"' + word.replace('"', " ") + '"*' for word in words) or None


def index(connection: sqlite3.Connection, turn: str) -> None:
    """What is known of the turn by now, instead of what was."""
    found = connection.execute("SELECT seq, role, text FROM turn WHERE id = ?", (turn,)).fetchone()
    if found is None:
        return
    seq, role, said = found
    thought = ""
    if role == "assistant":
        transcript = rows.transcript(connection, seq)
        thought, said = split_reasoning(transcript.opening, transcript.text)
    for table, text in (("said", said), ("thought", thought)):
        connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (seq,))
        if text.strip():
            connection.execute(f"INSERT INTO {table}(rowid, text) VALUES (?, ?)", (seq, indexable(text)))
    connection.execute("UPDATE turn SET indexed = 1 WHERE seq = ?", (seq,))


def forget(connection: sqlite3.Connection, conversation: str) -> None:
    for table in ("said", "thought"):
        connection.execute(
            f"DELETE FROM {table} WHERE rowid IN (SELECT seq FROM turn WHERE conversation = ?)",
            (conversation,),
        )


def compact(connection: sqlite3.Connection) -> None:
    """What was deleted stays in an index until its pieces are merged."""
    for table in ("said", "thought"):
        connection.execute(f"INSERT INTO {table}({table}) VALUES ('optimize')")


def find(connection: sqlite3.Connection, text: str, table: Index, limit: int) -> list[tuple[int, str]]:
    """Numbers of turns, newest first, and what stands around the words."""
    text = whole(text)
    query = query_of(text)
    if query is not None:
        hits = connection.execute(
            f"SELECT rowid, snippet({table}, 0, ?, ?, '…', {_SNIPPET_WORDS}) FROM {table}"
            f" WHERE {table} MATCH ? ORDER BY rowid DESC LIMIT ?",
            (OPEN, CLOSE, query, limit),
        ).fetchall()
    else:
        hits = _containing(connection, text, table, limit)
    return [(seq, " ".join(snippet.replace(_SPLIT, "").split())) for seq, snippet in hits]


def _containing(connection: sqlite3.Connection, text: str, table: Index, limit: int) -> list[tuple[int, str]]:
    """For signs that are no words, such as `+` or an emoji: each text is read."""
    wanted = _UNFIT.sub(" ", text).strip()
    if not wanted:
        return []
    found = connection.execute(
        f"SELECT rowid, text, instr(text, ?) FROM {table} WHERE instr(text, ?) ORDER BY rowid DESC LIMIT ?",
        (wanted, wanted, limit),
    ).fetchall()
    hits = []
    for seq, body, at in found:
        start, end = at - 1, at - 1 + len(wanted)
        before = ("…" if start > 60 else "") + body[max(0, start - 60) : start]
        after = body[end : end + 60] + ("…" if len(body) > end + 60 else "")
        hits.append((seq, f"{before}{OPEN}{wanted}{CLOSE}{after}"))
    return hits
