"""Where added markers go, and how their rows begin."""

import numpy as np
import pytest

from sr_edge.marker_rows import first_row, free_ids


@pytest.mark.parametrize(
    ("taken", "free"),
    [
        (range(5), (5, 6)),
        ((0, 1, 3, 4, 6), (2, 5)),
        ((), (0, 1)),
    ],
)
def test_the_lowest_ids_without_a_token(taken, free):
    assert free_ids(set(taken), 2) == free


def test_a_row_begins_as_the_mean_of_its_spelling():
    rows = np.array([[1, 2, 3], [3, 2, 1], [2, 8, -1]], np.float32)
    row = first_row(rows)
    assert row.dtype == np.float32
    assert row.tolist() == [2, 4, 1]


def test_the_order_of_the_rows_does_not_matter():
    rows = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)
    assert np.array_equal(first_row(rows), first_row(rows[::-1].copy()))
