"""Which cursor a question gets, and what becomes of the others' cells meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.local import LlamaLocal
from sr_edge.serve.pool import MAX_BYTES_AWAY, Pool

TALKS = [[10 * n + k for k in range(40)] for n in range(1, 5)]


@pytest.fixture
def cursors(tmp_path: Path) -> Iterator[list[LlamaLocal]]:
    with LlamaLocal.open(write_tiny_gguf(tmp_path / "tiny.gguf"), temperature=0, cursors=4) as first:
        yield [first, *(first.another() for _ in range(3))]


def read_all(pool: Pool) -> list[LlamaLocal]:
    """One talk after the other; the cursor of each."""
    taken = []
    for talk in TALKS:
        cursor = pool.take_for(talk)
        cursor.rewind(0)
        cursor.feed(talk)
        pool.give(cursor)
        taken.append(cursor)
    return taken


def test_a_talk_goes_on_where_it_was_with_nothing_but_its_own_in_cells(cursors: list[LlamaLocal]) -> None:
    pool = Pool(cursors)
    known = read_all(pool)
    assert len(set(map(id, known))) == len(TALKS)
    for talk, cursor in zip(TALKS, known, strict=True):
        assert pool.take_for([*talk, 7, 7]) is cursor
        assert list(cursor.ids) == talk
        lengths = {id(one): one._llama.length(one._sequence) for one in cursors}
        assert lengths.pop(id(cursor)) == len(talk)
        assert not any(lengths.values())
        pool.give(cursor)


def test_what_the_prompt_asks_again_is_not_held_twice(cursors: list[LlamaLocal]) -> None:
    pool = Pool(cursors)
    cursor = pool.take_for(TALKS[0])
    cursor.feed([*TALKS[0], *range(100, 250)])  # and a long answer
    pool.give(cursor)
    assert pool.take_for(TALKS[0]) is cursor


@pytest.mark.parametrize(("most", "kept"), [(0, 1), (MAX_BYTES_AWAY, 4)])
def test_memory_for_those_who_wait_is_bounded(most: int, kept: int, cursors: list[LlamaLocal]) -> None:
    pool = Pool(cursors, max_bytes_away=most)
    read_all(pool)
    pool.take_for(TALKS[-1])
    assert sum(bool(cursor.ids) for cursor in cursors) == kept
