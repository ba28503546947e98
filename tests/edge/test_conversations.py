"""Several conversations over one model: each goes on as if it were alone, whatever the others do.

Two may be under way at once; the others are parked, and put away where cells are short.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.errors import ContextFullError, GenerationError
from sr_edge.local import LlamaLocal, SamplerSettings

CONTEXT = 256
ACTIVE, ALL = 2, 4
TOLERANCE = 0.02
"""Between logits that were computed in other batches or cells; they range over some 10."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def cursors(tiny: Path) -> Iterator[list[LlamaLocal]]:
    with LlamaLocal.open(tiny, temperature=0, n_ctx=CONTEXT, cursors=ALL, contexts=ACTIVE) as first:
        yield [first, *(first.another() for _ in range(ALL - 1))]


@pytest.fixture(scope="module")
def fresh(tiny: Path) -> Iterator[LlamaLocal]:
    with LlamaLocal.open(tiny, temperature=0) as model:
        yield model


def expect_as_fresh(cursor: LlamaLocal, fresh: LlamaLocal) -> None:
    fresh.rewind(0)
    fresh.feed(list(cursor.ids))
    assert np.abs(cursor._logits().copy() - fresh._logits()).max() < TOLERANCE


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_each_goes_on_as_a_fresh_one_would(seed: int, cursors: list[LlamaLocal], fresh: LlamaLocal) -> None:
    rng = random.Random(seed)
    for cursor in cursors:
        cursor.rewind(0)
        cursor.park()
    active: list[LlamaLocal] = []
    known: dict[int, list[int]] = {n: [] for n in range(ALL)}  # what each is believed to hold
    for _ in range(rng.randint(1, 25)):
        if len(active) < ACTIVE and rng.random() < 0.5:
            cursor = rng.choice([one for one in cursors if one not in active])
            number = cursors.index(cursor)
            assert list(cursor.ids) == known[number]
            if rng.random() < 0.2:
                keep = rng.randint(0, len(cursor.ids))
                cursor.rewind(keep)
                del known[number][keep:]
            cursor.unpark()
            active.append(cursor)
            if not cursor.ids and rng.random() < 0.5:
                lender = rng.choice([one for one in cursors if one is not cursor])
                cursor.borrow(lender, rng.randint(0, len(lender.ids)))
            known[number] = list(cursor.ids)
        if not active:
            continue
        cursor = rng.choice(active)
        ids = known[cursors.index(cursor)]
        deed = rng.choice(["feed", "feed", "sample", "sample", "sample", "rewind", "fork", "adopt", "park"])
        if deed == "feed":
            new = [rng.randrange(276) for _ in range(rng.choice([3, 40, 120]))]
            if len(new) <= CONTEXT - len(ids):
                cursor.feed(new, probe=rng.random() < 0.3)
                ids += new
            else:
                with pytest.raises(ContextFullError):
                    cursor.feed(new)
        elif deed == "sample" and ids and cursor.room:
            ids.append(cursor.sample().id)
        elif deed == "rewind":
            keep = rng.randint(0, len(ids))
            cursor.rewind(keep)
            del ids[keep:]
        elif deed in ("fork", "adopt") and ids:
            branch = cursor.fork(rng.randint(1, len(ids)))
            if rng.random() < 0.8 and branch.room > 3:
                branch.sample()
                branch.sample()
            if deed == "adopt":
                ids[:] = branch.ids
                cursor.adopt(branch)
            else:
                branch.close()
        elif deed == "park":
            active.remove(cursor)
            cursor.park()
            if rng.random() < 0.5:
                cursor.put_away()
        for one in active:
            assert list(one.ids) == known[cursors.index(one)]
            assert one.room == CONTEXT - len(one.ids)
    for one in cursors:
        one.unpark()
        if one.ids and one.room:
            expect_as_fresh(one, fresh)
        if one not in active:
            one.park()


def test_what_waits_to_be_decoded_goes_along(cursors: list[LlamaLocal]) -> None:
    """Two conversations that go on in turns take one step of the model for both."""
    one, two = cursors[:2]
    for cursor in cursors:
        cursor.rewind(0)
        cursor.unpark()
    one.feed([*range(60, 80)])
    two.feed([*range(80, 100)])
    one.sample()
    two.sample()
    before = one._llama.decodes
    for _ in range(8):
        one.sample()
        two.sample()
    assert one._llama.decodes - before == 8


def test_who_is_put_away_reads_nothing_again(cursors: list[LlamaLocal], fresh: LlamaLocal) -> None:
    one, two, three, *_ = cursors
    for cursor in cursors:
        cursor.rewind(0)
        cursor.unpark()
    ids = [n % 250 for n in range(7, 157)]
    one.feed(ids)
    one.park()
    one.put_away()
    assert one._llama.length(one._sequence) == 0
    assert one.bytes_away > 0
    two.borrow(one, 100)
    one.unpark()
    assert (one._decoded, two._decoded, one.bytes_away) == (150, 100, 0)
    assert [one._llama.length(cursor._sequence) for cursor in (one, two)] == [150, 100]
    for cursor in (one, two):
        expect_as_fresh(cursor, fresh)
    one.park()
    one.put_away()
    one.rewind(10)  # it is somebody else's now
    assert one.bytes_away == 0
    one.unpark()
    expect_as_fresh(one, fresh)
    assert not three.ids


def test_each_has_its_own_random_numbers(cursors: list[LlamaLocal]) -> None:
    def written(cursor: LlamaLocal, other: LlamaLocal | None) -> list[int]:
        cursor.rewind(0)
        cursor.feed([65, 66])
        cursor.choose(SamplerSettings(temperature=1.0, top_p=1.0, top_k=0, seed=7))
        ids = []
        for _ in range(12):
            ids.append(cursor.sample().id)
            if other is not None:
                other.sample()
        return ids

    one, two = cursors[:2]
    two.rewind(0)
    two.feed([70, 71])
    two.choose(SamplerSettings(temperature=1.0, seed=1))
    assert written(one, two) == written(one, None)
    for cursor in (one, two):
        cursor.choose(SamplerSettings(temperature=0))


def test_there_are_as_many_as_the_model_was_opened_for(tiny: Path) -> None:
    with LlamaLocal.open(tiny, cursors=2, contexts=1) as first:
        second = first.another()
        branches = [first.fork(0) for _ in range(3)]
        with pytest.raises(GenerationError, match="close one"):
            first.another()
        for branch in branches:
            branch.close()
        second.close()
        third = first.another()
        third.feed([65])
        assert list(third.ids) == [65]
    with pytest.raises(ValueError, match="closed"):
        third.sample()
