"""Totals of the history, and whether its file is sound."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sr_edge.store.alive import is_alive
from sr_edge.store.records import RemoteStats, Stats


def stats(connection: sqlite3.Connection, path: Path) -> Stats:
    def one(query: str) -> tuple[int, ...]:
        row: tuple[int, ...] = connection.execute(query).fetchone()
        return row

    running = connection.execute("SELECT writer FROM turn WHERE status = 'running'").fetchall()
    spans, tokens, sent, cost = connection.execute(
        "SELECT count(*), coalesce(sum(tokens), 0), coalesce(sum(sent_bytes), 0), sum(cost) FROM span"
    ).fetchone()
    remotes = connection.execute(
        "SELECT remote, count(*), coalesce(sum(tokens), 0), sum(sent_bytes), sum(cost) FROM span"
        " WHERE remote IS NOT NULL GROUP BY remote ORDER BY 3 DESC, remote"
    ).fetchall()
    oldest, newest = connection.execute("SELECT min(created), max(updated) FROM conversation").fetchone()
    return Stats(
        conversations=one("SELECT count(*) FROM conversation")[0],
        prompts=one("SELECT count(*) FROM turn WHERE role = 'user'")[0],
        answers=one("SELECT count(*) FROM turn WHERE role = 'assistant'")[0],
        cut=sum(not is_alive(path, writer) for (writer,) in running),
        local_tokens=one("SELECT coalesce(sum(count), 0) FROM part WHERE kind = 'local'")[0],
        remote_tokens=tokens,
        spans=spans,
        sent_bytes=sent,
        cost=cost,
        remotes=tuple(RemoteStats(*row) for row in remotes),
        oldest=oldest,
        newest=newest,
        file_bytes=one("PRAGMA page_count")[0] * one("PRAGMA page_size")[0],
    )


def problems(connection: sqlite3.Connection, *, can_write: bool) -> list[str]:
    """One line each."""
    lines = [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
    lines += [
        f"a row of {row[0]} belongs to nothing" for row in connection.execute("PRAGMA foreign_key_check")
    ]
    if can_write:
        for table in ("said", "thought"):
            try:
                connection.execute(f"INSERT INTO {table}({table}) VALUES ('integrity-check')")
            except sqlite3.DatabaseError as error:
                lines.append(f"the index of search {table}: {error}")
    return lines
