"""The decoder is killed, aborts, hangs, prints, or never starts; its host dies. Nobody else comes to harm."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.command_line import environment
from tests.engine.situations import (
    ENDLESS,
    PATIENCE,
    QUESTION,
    choices,
    endpoint,
    long_prompt,
    opened,
    situation,
)

from sr_edge.engine import host
from sr_edge.engine.messages import Answered, Answering, Died, Ready
from sr_edge.events import Event, Finished, LocalToken, SpanDelta
from sr_edge.transcript import fold


def child(before="", *, instead="pass"):
    """A true child that does something of its own first, and instead of writing an answer."""
    code = (
        "import os, resource, signal, sys, threading, time\n"
        "from sr_edge.engine import child\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "def instead(self, session, wanted):\n"
        "    if wanted.number == 1:\n"
        f"        {instead}\n"
        "    else:\n"
        "        write(self, session, wanted)\n"
        "write = child.Child._write\n"
        + ("child.Child._write = instead\n" if instead != "pass" else "")
        + before
        + "\nchild.main()\n"
    )
    return [sys.executable, "-P", "-c", code]


def is_gone(pid):
    """A zombie that nobody has waited for counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def answer(engine, ear):
    before = len(ear.all)
    ear.answered(engine.answer(QUESTION))
    return fold(one for one in ear.all[before:] if isinstance(one, Event))


# --- the child dies ---


@pytest.mark.parametrize("state", ["starting", "loading", "reading", "local", "streaming", "asked"])
def test_a_child_that_is_killed_ends_its_answer_and_the_next_has_another(state):
    with situation(state) as (engine, ear, number):
        pid = engine.pid
        os.kill(pid, signal.SIGKILL)
        died = ear.wait(Died)
        assert (died.number, died.reason) == (number, "the decoder was killed (out of memory?)")
        assert not ear.of(Finished)
        assert not engine.is_running
        engine.steer(dial="local", bias=0.0)
        assert answer(engine, ear).finish == "stop"
        assert engine.pid != pid
        assert len(ear.of(Died)) == 1


def test_a_child_that_aborts_says_why():
    abort = "os.write(2, b'ggml.c:42: GGML_ASSERT(n > 0) failed\\n'), os.abort()"
    with opened(command=child(instead=abort)) as (engine, ear):
        number = engine.answer(QUESTION)
        died = ear.wait(Died)
        assert died == Died("the decoder died (SIGABRT): ggml.c:42: GGML_ASSERT(n > 0) failed", number)
        assert answer(engine, ear).finish == "stop"


def test_an_idle_child_that_dies_is_replaced_when_it_is_needed():
    with opened() as (engine, ear):
        engine.start()
        ear.wait(Ready)
        os.kill(engine.pid, signal.SIGTERM)
        assert ear.wait(Died) == Died("the decoder died (SIGTERM)", None)
        assert answer(engine, ear).finish == "stop"


def test_all_answers_that_a_dead_child_owes_are_over():
    with opened(command=child(instead="time.sleep(0.2), os.abort()")) as (engine, ear):
        numbers = [engine.answer(QUESTION), engine.answer(QUESTION)]
        assert ear.wait(Died).number == numbers[0]
        assert "SIGABRT" in ear.answered(numbers[1]).error


def test_what_ends_by_itself_says_its_last_words():
    command = [sys.executable, "-c", "import sys; sys.exit('no llama here')"]
    with opened(command=command) as (engine, ear):
        number = engine.answer(QUESTION)
        assert ear.wait(Died) == Died("the decoder ended (1): no llama here", number)


def test_a_child_that_falls_silent_for_good_is_ended():
    command = [sys.executable, "-c", "import os, time; os.close(1); time.sleep(1000)"]
    with opened(command=command) as (engine, ear):
        engine.start()
        pid = engine.pid
        ear.wait(Died)
        wait_until(lambda: is_gone(pid))


def test_a_child_that_cannot_start_is_heard_of_like_one_that_died(tmp_path):
    with opened(command=[str(tmp_path / "python")]) as (engine, ear):
        number = engine.answer(QUESTION)
        died = ear.wait(Died)
        assert died.number == number
        assert died.reason.startswith("the decoder cannot be started: No such file or directory")
        engine.start()
        ear.wait(Died, lambda one: one.number is None)
        engine.stop()
        engine.steer(dial="local", bias=0.0)


# --- the child misbehaves ---


@pytest.mark.parametrize("fd", [1, 2])
def test_what_native_code_prints_does_not_get_between_the_events(fd):
    noise = (
        "def noise():\n"
        "    while True:\n"
        f"        os.write({fd}, b'llama: \\xff\\x1b[31m {{\"say\": 1}}\\n' * 20), time.sleep(0.0005)\n"
        "main = child.Child.serve\n"
        "def serve(self):\n"
        "    threading.Thread(target=noise, daemon=True).start()\n"
        "    main(self)\n"
        "child.Child.serve = serve\n"
    )
    with opened() as (engine, ear):
        quiet = answer(engine, ear)
    with opened(command=child(noise)) as (engine, ear):
        assert answer(engine, ear).ids == quiet.ids


def test_lines_that_are_none_of_ours_are_passed_over():
    before = "os.write(1, b'hello\\n{\\n[1]\\n{\"say\": [1]}\\n\\xff\\xfe\\n' + b'[' * 100000 + b'\\n')"
    with opened(command=child(before)) as (engine, ear):
        assert answer(engine, ear).finish == "stop"


def test_what_reads_the_input_has_no_commands_to_take_away():
    with opened(command=child(instead="sys.stdin.read(), os.read(0, 99)")) as (engine, ear):
        ear.answered(engine.answer(QUESTION))
        assert answer(engine, ear).finish == "stop"


def test_a_child_that_does_not_stop_is_ended(monkeypatch):
    monkeypatch.setattr(host, "STOP_SECONDS", 0.2)
    with opened(command=child(instead="self._say(child.Answering(1)), time.sleep(1000)")) as (engine, ear):
        number = engine.answer(QUESTION)
        ear.wait(Answering)
        engine.stop()
        waiting = engine.answer(QUESTION)
        engine.stop()
        assert ear.answered(waiting).error is None
        waiting = engine.answer(QUESTION)
        assert ear.wait(Died) == Died("the decoder did not stop, so it was ended", number)
        assert "did not stop" in ear.answered(waiting).error
        assert answer(engine, ear).finish == "stop"


def test_a_child_that_does_not_even_listen_holds_nobody_up(monkeypatch):
    """Its pipe is full at once: nothing here may wait for it."""
    monkeypatch.setattr(host, "STOP_SECONDS", 0.2)
    with situation("local") as (engine, ear, number):
        os.kill(engine.pid, signal.SIGSTOP)
        past = [LocalToken(id=1, text="x" * 100, logprob=-1.0)] * 20_000
        engine.answer(QUESTION, past=past)
        engine.stop()
        assert ear.wait(Died).number == number
        assert answer(engine, ear).finish == "stop"


def test_a_stop_that_was_obeyed_kills_nobody(monkeypatch):
    monkeypatch.setattr(host, "STOP_SECONDS", 0.05)
    with situation("local") as (engine, ear, _):
        pid = engine.pid
        engine.stop()
        ear.wait((Answered, Died))
        if not ear.of(Died):  # it was in time
            time.sleep(0.1)
            assert answer(engine, ear).finish == "stop"
            assert engine.pid == pid


# --- the end ---


@pytest.mark.parametrize("state", ["starting", "loading", "reading", "local", "silent", "streaming", "asked"])
def test_closing_leaves_no_process_no_thread_and_no_word(state):
    before = set(threading.enumerate())
    with situation(state) as (engine, ear, _):
        pid = engine.pid
        engine.stop()
        engine.close()
        heard = len(ear.all)
        assert is_gone(pid)
        engine.close()
        engine.stop()
        engine.steer(dial="local", bias=0.0)
        engine.go_offline()
        engine.decide("yes")
        wait_until(lambda: not any(thread.is_alive() for thread in ear.threads))
        assert len(ear.all) == heard
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_closing_a_child_that_hangs_ends_it():
    with situation("local") as (engine, _, _):
        pid = engine.pid
        os.kill(pid, signal.SIGSTOP)
        engine.close()
        assert is_gone(pid)


def test_when_the_host_dies_its_child_does_too():
    code = (
        "import time\n"
        "from tests.engine.situations import *\n"
        "ear = Ear()\n"
        "engine = Engine(choices(), ear, environ=environment())\n"
        "engine.start(), ear.wait(Ready)\n"
        "print(engine.pid, flush=True)\n"
        "while True: engine.answer(QUESTION), time.sleep(0.05)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**environment(), "PYTHONPATH": _path()}
    )
    with owner.stdout:
        pid = int(owner.stdout.readline())
    assert not is_gone(pid)
    owner.kill()
    owner.wait()
    wait_until(lambda: is_gone(pid))


def _path():
    return os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])


def test_what_was_spent_is_taken_down_though_the_host_closes_in_the_middle(tmp_path):
    env = {"SR_EDGE_HOME": str(tmp_path)}
    with endpoint(ENDLESS) as server, opened(choices(server), env=env) as (engine, ear):
        engine.answer(QUESTION)
        ear.wait(SpanDelta)
        engine.close()
    assert "tokens" in next(tmp_path.rglob("spent.json")).read_text()


# --- nothing to do ---


def test_an_idle_child_sleeps():
    """All of its threads wait in the kernel; no timer runs."""
    with opened() as (engine, ear):
        engine.start()
        ear.wait(Ready)
        answer(engine, ear)
        tasks = Path(f"/proc/{engine.pid}/task")

        def switches():
            return {
                task.name: [
                    line for line in (task / "status").read_text().splitlines() if "ctxt_switches" in line
                ]
                for task in tasks.iterdir()
            }

        wait_until(
            lambda: all("S" in (t / "stat").read_text().rpartition(")")[2][:3] for t in tasks.iterdir())
        )
        before = switches()
        time.sleep(0.5)
        assert switches() == before


def test_a_long_answer_with_a_long_prompt_after_a_death():
    with opened() as (engine, ear):
        engine.start()
        ear.wait(Ready)
        os.kill(engine.pid, signal.SIGKILL)
        number = engine.answer(long_prompt())  # perhaps before the death is known
        ear.wait((Answered, Died), lambda one: one.number == number)
        assert answer(engine, ear).finish == "stop"
