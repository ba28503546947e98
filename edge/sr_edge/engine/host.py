"""The side that asks: starts the child, sends it commands, hands on what it says, and starts the next.

Everything that is heard arrives in order, on threads of this module's, of which only one speaks at a time.
An answer that is stopped before the child has begun it, because it still loads, is over at once.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias, get_args

from sr_edge.engine.messages import (
    Answer,
    Answered,
    Answering,
    Choices,
    Command,
    Decide,
    Died,
    Draft,
    Failed,
    Forget,
    GoOffline,
    Loading,
    Note,
    Open,
    Ready,
    Report,
    Steer,
    Stop,
    Verdict,
    decode,
    encode,
)
from sr_edge.events import Event
from sr_edge.policy import Dial
from sr_edge.roles import First, Message

Heard: TypeAlias = Report | Event

STOP_SECONDS = 2.0
"""How long the child may take to stop before it is killed. A stop takes milliseconds."""

_CLOSE_SECONDS = 1.0
_HEARD = (*get_args(Report), *get_args(Event))
_LAST_WORDS = 20  # lines of stderr that are kept


class Engine:
    """One child at a time. Any thread may call, and none waits for the child.

    `hear` is called on threads of the engine's own, one at a time, and must not raise.
    """

    def __init__(
        self,
        choices: Choices,
        hear: Callable[[Heard], None],
        *,
        environ: Mapping[str, str] = os.environ,
        command: Sequence[str] = (sys.executable, "-P", "-m", "sr_edge.engine"),
    ) -> None:
        """Nothing is started yet.

        Args:
            command: what runs as the child.
        """
        self._choices = choices
        self._hear = hear
        self._environ = dict(environ)
        self._command = list(command)
        self._lock = threading.RLock()
        self._one_speaks = threading.Lock()
        self._child: _Child | None = None
        self._speaking: threading.Thread | None = None
        self._number = 0
        self._steer: Steer | None = None
        self._is_offline = False

    @property
    def is_running(self) -> bool:
        return self._child is not None

    @property
    def pid(self) -> int | None:
        child = self._child
        return child.pid if child else None

    def start(self) -> None:
        """Start the child and let it load; what comes of it is heard. Nothing if it runs already."""
        with self._lock:
            self._start()

    def reopen(self, choices: Choices) -> None:
        """Load other models. Not while an answer is written."""
        with self._lock:
            self._choices = choices
            if self._child is None:
                self._start()
            else:
                self._child.send(Open(choices))

    def answer(
        self,
        messages: Sequence[Message],
        *,
        past: Sequence[Event] = (),
        past_model: str | None = None,
        first: First | None = None,
        conversation: str | None = None,
    ) -> int:
        """Ask for an answer; arguments as in `messages.Answer`. Returns its number."""
        with self._lock:
            self._number += 1
            child = self._start(self._number)
            if child is not None:
                child.expect(self._number)
                child.send(
                    Answer(
                        self._number,
                        tuple(messages),
                        tuple(past),
                        past_model=past_model,
                        first=first,
                        conversation=conversation,
                    )
                )
            return self._number

    def draft(self, messages: Sequence[Message], *, conversation: str | None = None) -> None:
        """The last of these is still being typed: the child may read it while it has nothing else to do."""
        with self._lock:
            if self._child is not None and not self._child.expected:
                self._child.send(Draft(tuple(messages), conversation))

    def forget(self, conversation: str) -> None:
        """The user removed it: nothing of it may come to disk any more."""
        with self._lock:
            if self._child is not None:
                self._child.send(Forget(conversation))

    def stop(self) -> None:
        """End the answer that is written, whatever is under way; a child that doesn't is killed."""
        with self._lock:
            child = self._child
            dropped = child.stop() if child is not None else []
        if dropped:
            threading.Thread(target=self._say_dropped, args=(child, dropped), daemon=True).start()

    def steer(self, *, dial: Dial, bias: float) -> None:
        """Turn the dials, now and for what follows."""
        with self._lock:
            self._steer = Steer(dial, bias)
            if self._child is not None:
                self._child.send(self._steer)

    def decide(self, verdict: Verdict) -> None:
        """Answer the last `Asked`."""
        with self._lock:
            if self._child is not None:
                self._child.send(Decide(verdict))

    def go_offline(self) -> None:
        """Whatever child there is: what is being sent is hung up on, and nothing leaves after it."""
        with self._lock:
            self._is_offline = True
            if self._child is not None:
                self._child.send(GoOffline())

    def go_online(self) -> None:
        """Undo `go_offline`: a child that went offline stays so, and another one takes its place and loads.

        Not while an answer is written.
        """
        with self._lock:
            if not self._is_offline:
                return
            self._is_offline = False
            child, self._child = self._child, None
            if child is not None:
                threading.Thread(target=child.close, daemon=True).start()
                self._start()

    def close(self) -> None:
        """End the child; nothing is heard from it any more."""
        with self._lock:
            child, self._child = self._child, None
            speaking = self._speaking
        if child is not None:
            child.close()
        if speaking is not None and speaking is not threading.current_thread():
            speaking.join(_CLOSE_SECONDS)

    def _start(self, number: int | None = None) -> _Child | None:
        """The child. None if there can be none, which is heard as the end of the answer `number`."""
        if self._child is not None:
            return self._child
        try:
            self._child = child = _Child(self._command, self._environ)
        except OSError as error:
            reason = f"the decoder cannot be started: {error.strerror or error}: {self._command[0]}"
            self._speak(lambda: self._tell(Died(reason, number)))
            return None
        self._speak(lambda: self._listen(child))
        if self._is_offline:
            child.send(GoOffline())
        if self._steer is not None:
            child.send(self._steer)
        child.send(Open(self._choices))
        return child

    def _speak(self, say: Callable[[], None]) -> None:
        """On a thread of its own, once all is heard that came before."""
        before = self._speaking

        def speak() -> None:
            if before is not None:
                before.join()
            say()

        self._speaking = threading.Thread(target=speak, daemon=True)
        self._speaking.start()

    def _tell(self, *all_heard: Heard) -> None:
        with self._one_speaks:
            for heard in all_heard:
                self._hear(heard)

    def _say_dropped(self, child: _Child, dropped: Sequence[int]) -> None:
        if self._child is child:
            self._tell(*map(Answered, dropped))

    def _listen(self, child: _Child) -> None:
        for heard in child.reports():
            with self._lock:
                is_wanted = child.is_wanted(heard)
            if is_wanted and self._child is child:
                self._tell(heard)
        reason = child.last_words()
        with self._lock:
            is_expected = self._child is not child
            if not is_expected:
                self._child = None
            expected = list(child.expected)
        if not is_expected:
            died = Died(reason, expected[0] if expected else None)
            self._tell(died, *(Answered(number, reason) for number in expected[1:]))


class _Child:
    """One process, and the threads of its pipes: each closes the one that it uses."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,  # signals from the terminal are the host's
        )
        self.expected: list[int] = []
        """Answers that have not ended."""
        self._begun: int | None = None  # the answer that it writes, expected or not
        self._is_given_up = False
        self._backstop: threading.Timer | None = None
        self._unsent: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=_LAST_WORDS)
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._write, self._keep_errors)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: Command) -> None:
        """Returns at once, even where the child takes nothing."""
        self._unsent.put(command)

    def expect(self, number: int) -> None:
        self.expected.append(number)

    def stop(self) -> list[int]:
        """End all that is expected, at the latest by ending the process.

        Returns the answers that it has not begun: they are not expected any more.
        """
        if not self.expected:
            return []
        self.send(Stop(self.expected[-1]))
        dropped = [number for number in self.expected if number != self._begun]
        self.expected = [number for number in self.expected if number == self._begun]
        if self.expected and self._backstop is None:
            self._backstop = threading.Timer(STOP_SECONDS, self._give_up, list(self.expected))
            self._backstop.daemon = True
            self._backstop.start()
        return dropped

    def is_wanted(self, heard: Heard) -> bool:
        """Whether it is no part of an answer, or part of one that is expected."""
        match heard:
            case Loading() | Ready() | Failed() | Note():
                return True
            case Answering(number):
                self._begun = number
                return number in self.expected
            case Answered(number):
                self._begun = None
                if number not in self.expected:
                    return False
                self.expected.remove(number)
                self._call_off()
                return True
        return self._begun in self.expected

    def reports(self) -> Iterator[Heard]:
        """What it says, until it says no more."""
        assert self._process.stdout
        with self._process.stdout as lines, suppress(OSError):
            for line in lines:
                with suppress(ValueError):  # not ours: a library that prints
                    heard = decode(line.decode())
                    if isinstance(heard, _HEARD):
                        yield heard

    def close(self) -> None:
        self._call_off()
        self._unsent.put(None)  # it ends when its commands do
        self._await_end()

    def last_words(self) -> str:
        """Why it ended, in one line. It has no other way to say anything: it is ended if it hasn't."""
        code = self._await_end()
        self._call_off()
        self._unsent.put(None)
        lines = [line for line in self._errors if line]
        if self._is_given_up:
            return "the decoder did not stop, so it was ended"
        if code == -signal.SIGKILL:
            return "the decoder was killed (out of memory?)"
        if code < 0:
            why = next((line for line in reversed(lines) if "GGML" in line or "assert" in line.lower()), "")
            return f"the decoder died ({_signal_name(-code)})" + (f": {why[:200]}" if why else "")
        return f"the decoder ended ({code})" + (f": {lines[-1][:200]}" if lines else "")

    def _await_end(self) -> int:
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        code = self._process.wait()
        self._unsent.put(None)
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)  # in vain where a process that it started holds the other end
        return code

    def _give_up(self, number: int) -> None:
        if number in self.expected:
            self._is_given_up = True
            self._process.kill()
        self._backstop = None

    def _call_off(self) -> None:
        backstop, self._backstop = self._backstop, None
        if backstop is not None:
            backstop.cancel()

    def _write(self) -> None:
        assert self._process.stdin
        with suppress(OSError), self._process.stdin as commands:  # if it is dead, `last_words` says why
            while (command := self._unsent.get()) is not None:
                commands.write(encode(command).encode() + b"\n")
                commands.flush()

    def _keep_errors(self) -> None:
        assert self._process.stderr
        with self._process.stderr as lines, suppress(OSError):
            for line in lines:
                self._errors.append(line.decode("utf-8", "replace").strip())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
