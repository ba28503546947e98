"""Which answers are right, and that no answer can hold up or mislead whoever asks."""

from __future__ import annotations

import io
import signal
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.train.scripted_rollouts import rollout

from sr_edge.markers import CLOSE, OPEN
from sr_train import grading
from sr_train.grading import CUT, answer_text, is_gradable, is_right, is_same, own_answer


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("33", "033"),
        ("1,234", "1234"),
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "0.5"),
        ("(1,2)", "(1, 2)"),
        ("42", r"42^\circ"),
        (r"\text{Evelyn}", "Evelyn"),
        ("x^2+1", "1+x^2"),
        ("$7$", "7"),
        ("hello", "hello"),
    ],
)
def test_same_value(gold, answer):
    assert is_same(gold, answer) is True


@pytest.mark.parametrize(("gold", "answer"), [("33", "34"), ("(1,2)", "(2,1)"), ("12", r"12 \text{ or } 13")])
def test_other_value(gold, answer):
    assert is_same(gold, answer) is False


@given(st.integers(), st.integers())
def test_integers_are_compared_as_integers(gold, answer):
    assert is_same(str(gold), str(answer)) is (gold == answer)
    assert is_same(f"{gold:,}", f"{gold:05d}") is True


def test_unreadable_gold_says_so():
    assert is_same("", "3") is None
    assert not is_gradable("")
    assert is_gradable("(1,2)")
    assert is_gradable("7")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (r"\boxed{7}", True),
        (r"first \boxed{12} then \boxed{7}", True),  # math-verify alone would join them
        (r"first \boxed{7} then \boxed{12}", False),
        (r"\boxed{7}</think> no box", False),
        (r"\boxed{8}</think> \boxed{7}", True),
        ("7", False),
        ("", False),
        (rf"{OPEN}\boxed{{7}}{CLOSE}", False),
        (rf"\boxed{{{OPEN}7{CLOSE}}}", False),
        (rf"\boxed{{7{OPEN} {CLOSE}}}", False),
        (rf"\boxed{{7}}{OPEN}\boxed{{8}}{CLOSE}", True),
        (rf"{OPEN}\boxed{{7}}", False),
        (r"\boxed{\frac{14}{2}}", True),
    ],
)
def test_last_box_outside_spans_and_after_the_reasoning(text, verdict):
    assert is_right("7", text) is verdict


def test_own_answer_shows_what_the_large_model_wrote_as_a_gap():
    transcript = rollout(r"so</think>\boxed{<>}", "7").transcript
    assert own_answer(transcript) == rf"\boxed{{{CUT}}}"
    assert answer_text(transcript) == r"\boxed{7}"
    assert is_right("7", own_answer(transcript)) is False
    assert is_right("7", answer_text(transcript)) is True


def test_reasoning_that_has_not_ended_is_no_answer():
    transcript = replace(rollout(r"\boxed{7}").transcript, opening="<think>\n")
    assert own_answer(transcript) == ""


def test_think_tag_of_the_large_model_ends_the_reasoning():
    transcript = replace(rollout(r"so<>\boxed{7}", "</think>").transcript, opening="<think>\n")
    assert own_answer(transcript) == r"\boxed{7}"


def test_threads_grade_at_once():
    verdicts = {}

    def grade(n):
        verdicts[n] = is_right(str(n), rf"\boxed{{\frac{{{2 * n}}}{{2}}}}")

    threads = [threading.Thread(target=grade, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == dict.fromkeys(range(8), True)


def test_tower_of_powers_is_given_up_and_the_next_answer_graded():
    checker = grading._Checker(seconds=0.5)
    assert checker.same("7", "2023^{2023^{2023^{2023}}}") is False
    patient = grading._Checker()
    assert patient.same("7", r"\frac{14}{2}") is True


def test_killed_child_is_replaced():
    checker = grading._Checker()
    assert checker.same("7", r"\frac{14}{2}") is True
    checker._child.kill()
    assert checker.same("8", r"\frac{16}{2}") is True


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="this system has no alarms")
def test_child_that_waits_for_a_question_is_not_ended_by_the_alarm_of_the_last_one():
    verdicts = io.StringIO()
    grading._serve(io.StringIO('["7", "8"]\n'), verdicts)
    assert verdicts.getvalue() == "ready\nfalse\n"
    assert signal.alarm(0) == 0


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(grading, "__name__", "sr_train.no_such_room")
    with pytest.raises(grading.GradingError, match="math-verify"):
        grading._Checker().same("7", "x")
