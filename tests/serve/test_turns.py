"""Who computes: one at a time, first come first served, and a stop reaches nobody else."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from sr_edge.serve.turns import Player, Turns


class Model:
    """Says whether it would compute."""

    def __init__(self) -> None:
        self.is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True

    def go_on(self) -> None:
        self.is_stopped = False


def in_order(turns: Turns, players: Sequence[Player], first: Player) -> list[int]:
    """Whose turn it was, where all came one after the other while the first had it."""
    order: list[int] = []
    threads = []
    with turns.turn(first):
        for n, player in enumerate(players):

            def play(n: int = n, player: Player = player) -> None:
                with turns.turn(player):
                    order.append(n)

            thread = threading.Thread(target=play)
            thread.start()
            threads.append(thread)
            while len(turns._waiting) <= n:
                pass
        assert not order
    for thread in threads:
        thread.join()
    return order


def test_who_comes_first_is_served_first() -> None:
    assert in_order(Turns([]), [Player() for _ in range(8)], Player()) == list(range(8))


def test_who_has_the_turn_may_take_it_again() -> None:
    turns, player = Turns([]), Player()
    with turns.turn(player), turns.turn(player):
        pass
    with turns.turn(Player()):
        pass


def test_a_stop_reaches_who_computes_and_nobody_after() -> None:
    small, big = Model(), Model()
    turns, one, two = Turns([small, big]), Player(), Player()
    with turns.turn(one):
        turns.stop(two)
        assert not small.is_stopped
        turns.stop(one)
        assert small.is_stopped
        assert big.is_stopped
    assert not small.is_stopped
    with turns.turn(Player()):
        assert not small.is_stopped
    with turns.turn(two):  # it was stopped while it had no turn
        assert small.is_stopped
    assert not big.is_stopped


def test_a_stop_reaches_who_waits_once_its_turn_comes() -> None:
    model = Model()
    turns, one, two = Turns([model]), Player(), Player()
    seen: list[bool] = []

    def play() -> None:
        with turns.turn(two):
            seen.append(model.is_stopped)

    with turns.turn(one):
        thread = threading.Thread(target=play)
        thread.start()
        while not turns._waiting:
            pass
        turns.stop(two)
        assert not model.is_stopped
    thread.join()
    assert seen == [True]
    assert not model.is_stopped
