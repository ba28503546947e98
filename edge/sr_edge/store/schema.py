"""The tables, and the steps from one version of them to the next."""

from __future__ import annotations

APPLICATION_ID = 0x73722D65  # "sr-e": marks the file as ours

_FIRST = """
CREATE TABLE conversation(
    id TEXT PRIMARY KEY,
    title TEXT NOT NULL,
    model TEXT NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    touched INTEGER NOT NULL UNIQUE,  -- order of use: clocks go back
    head TEXT
) WITHOUT ROWID;

CREATE TABLE turn(
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of being; never used again
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
    parent TEXT REFERENCES turn(id) DEFERRABLE INITIALLY DEFERRED,
    role TEXT NOT NULL,
    created REAL NOT NULL,
    text TEXT NOT NULL,  -- the user's; an answer's is in its parts
    status TEXT NOT NULL,
    writer TEXT,  -- while it runs: the file that its writer keeps locked
    edited INTEGER NOT NULL,
    policy TEXT NOT NULL,
    seed INTEGER,
    taken_from TEXT,  -- the answer that the beginning of this one was taken over from
    indexed INTEGER NOT NULL  -- whether search finds it
);
CREATE INDEX turn_place ON turn(conversation, parent);
CREATE INDEX turn_parent ON turn(parent);
CREATE INDEX turn_running ON turn(status) WHERE status = 'running';

CREATE TABLE part(  -- the events of an answer in order, those of one kind that follow each other in one row
    turn INTEGER NOT NULL REFERENCES turn(seq) ON DELETE CASCADE,
    first INTEGER NOT NULL,  -- number of its first event, from 0
    count INTEGER NOT NULL,
    kind TEXT NOT NULL,
    span INTEGER,
    text TEXT NOT NULL,
    detail TEXT NOT NULL,  -- JSON: what is not in the other columns and not in table span
    PRIMARY KEY (turn, first)
) WITHOUT ROWID;

CREATE TABLE span(  -- all fields of span_opened and span_closed
    turn INTEGER NOT NULL REFERENCES turn(seq) ON DELETE CASCADE,
    span INTEGER NOT NULL,
    "trigger" TEXT NOT NULL,
    p_open REAL,
    remote TEXT,
    sent_tokens INTEGER NOT NULL,
    sent_bytes INTEGER NOT NULL,
    opened_at REAL NOT NULL,
    ids TEXT,  -- JSON
    "end" TEXT,
    tokens INTEGER,
    p_close REAL,
    remote_prompt_tokens INTEGER,
    remote_completion_tokens INTEGER,
    cost REAL,
    ttft REAL,
    seconds REAL,
    resume REAL,
    error TEXT,
    closed_at REAL,
    PRIMARY KEY (turn, span)
) WITHOUT ROWID;

CREATE VIRTUAL TABLE said USING fts5(  -- prompts and answers; rowid is turn.seq
    text, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
);
CREATE VIRTUAL TABLE thought USING fts5(  -- reasoning
    text, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
);
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)
"""Each makes the next version. What was released is never changed: add one."""
