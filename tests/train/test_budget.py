"""The price that holds a share."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_train.budget import LIMIT, DualAscent


def share_at(price: float) -> float:
    """A policy that asks less the dearer it is; at price 0 for a third of its tokens."""
    return 1 / (1 + math.exp(0.7 + 2.0 * price))


@pytest.mark.parametrize("target", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("lag", [5, 20])
def test_share_of_a_policy_that_follows_with_delay_is_held(target, lag):
    dual = DualAscent(target, rate=0.2)
    share = share_at(0.0)
    shares = []
    for _ in range(400):
        dual.update(share)
        share += (share_at(dual.price()) - share) / lag
        shares.append(share)
    assert all(abs(share - target) < 0.01 for share in shares[-50:])


@pytest.mark.parametrize("target", [0.05, 0.1, 0.2])
def test_share_of_a_policy_that_drifts_with_the_price_comes_to_rest(target):
    """As under a policy gradient: what the price changes is how the share moves, not where it is."""
    dual = DualAscent(target, rate=2.0)
    logit, shares = 0.0, []
    for _ in range(300):
        shares.append(1 / (1 + math.exp(-logit)))
        dual.update(shares[-1])
        logit += 0.05 * (0.3 - dual.price())
    assert all(abs(share - target) < 0.02 for share in shares[-150:])


def test_price_may_pay_for_asking():
    dual = DualAscent(0.2, rate=0.5)
    for _ in range(5):
        dual.update(0.0)
    assert dual.price() < 0


@given(st.lists(st.floats(0, 1)), st.floats(0.01, 0.99), st.floats(0.01, 10))
def test_state_goes_along(shares, target, rate):
    dual, again = DualAscent(target, rate), DualAscent(target, rate)
    for share in shares:
        dual.update(share)
    again.restore(dual.state())
    for share in (0.3, 0.6):
        assert again.price() == dual.price()
        assert abs(dual.price()) <= LIMIT
        dual.update(share)
        again.update(share)


def test_step_without_tokens_changes_nothing():
    dual = DualAscent(0.2, 1.0)
    dual.update(0.5)
    before = dual.state()
    dual.update(math.nan)
    assert dual.state() == before
