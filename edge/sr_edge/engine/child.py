"""The process that decodes: commands come in on stdin, events and reports go out where stdout was.

A thread of its own listens, so that a stop takes effect in the middle of a step, and so that the process ends
when its host does, whatever it is doing then.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn, TextIO

from sr_edge.engine.messages import (
    Answer,
    Answered,
    Answering,
    Asked,
    Choices,
    Command,
    Decide,
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
    Working,
    decode,
    encode,
)
from sr_edge.errors import EdgeError, UsageError
from sr_edge.events import Event
from sr_edge.roles import Message, SpanRequest

if TYPE_CHECKING:
    from sr_edge.session import Session

_POLL = 0.02  # seconds between two looks at `cancelled` while the user decides
_LAST_SECONDS = 0.5  # once the host is gone: to hang up, and to take down what was spent
_ALL = sys.maxsize  # answers
_KEEP_SECONDS = 5.0  # after an answer, before its cache is written: the next prompt goes first
_KEEPING_SECONDS = 5.0  # for that, once the host is gone
_LEAST_STEP = 0.01  # of the loading, between two reports


def main() -> NoReturn:
    """Serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the host decides what Ctrl-C means
    _offer_to_the_oom_killer()
    _leave_no_core()
    commands = os.fdopen(os.dup(0), "rb")
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")  # as JSON has it too
    os.dup2(2, 1)  # whatever native code prints must not get in between
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # and whatever reads has no commands to take away
    os.close(nothing)
    Child(commands, wire, os.environ).serve()


class Child:
    """Owns the session; `serve` runs on the main thread, `_listen` beside it."""

    def __init__(self, commands: BinaryIO, wire: TextIO, environ: Mapping[str, str]) -> None:
        self._commands = commands
        self._wire = wire
        self._environ = environ
        self._writing = threading.Lock()
        self._todo: queue.SimpleQueue[Open | Answer | Draft | Forget | None] = queue.SimpleQueue()
        self._verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
        self._session: Session | None = None
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._stopped = 0  # answers up to this number are to end
        self._steering: Steer | None = None
        self._is_offline = False
        self._handing = threading.Lock()
        self._is_reading_ahead = False  # under `_handing`: what comes then stops it
        self._is_over = threading.Event()  # nothing more is decoded, and all is kept

    def serve(self) -> NoReturn:
        threading.Thread(target=self._listen, daemon=True).start()
        has_written = False  # since its cache was kept last
        while True:
            try:
                command = self._todo.get(timeout=_KEEP_SECONDS if has_written else None)
            except queue.Empty:
                self._keep()
                has_written = False
                continue
            match command:
                case Open(choices):
                    self._open(choices)
                case Answer() as wanted:
                    self._answer(wanted)
                    has_written = True
                case Draft(messages, conversation):
                    self._read_ahead(messages, conversation)
                case Forget(conversation):
                    if self._session is not None:
                        self._session.forget(conversation)
                case None:
                    self._keep()
                    self._is_over.set()

    def _listen(self) -> None:
        try:
            for line in self._commands:
                command = decode(line.decode())
                assert isinstance(command, Command)
                self._obey(command)
        except Exception:  # a process that hears nothing any more could not even be stopped
            traceback.print_exc()
            os._exit(1)
        self._stop(_ALL)  # the host is gone: there is nobody to write for
        if self._is_idle.wait(_LAST_SECONDS) and self._session is not None:
            self._hand_over(None)
            self._is_over.wait(_KEEPING_SECONDS)
        os._exit(0)

    def _obey(self, command: Command) -> None:
        match command:
            case Open() | Answer() | Draft() | Forget():
                self._hand_over(command)
            case Stop(number):
                self._stop(number)
            case Steer():
                self._steering = command
                self._take_steering()
            case Decide(verdict):
                self._verdicts.put(verdict)
            case GoOffline():
                self._is_offline = True
                self._take_steering()

    def _hand_over(self, command: Open | Answer | Draft | Forget | None) -> None:
        """To the main thread, which leaves what it only reads ahead."""
        with self._handing:
            self._todo.put(command)
            if self._is_reading_ahead and self._session is not None and not isinstance(command, Draft):
                self._session.stop()

    def _stop(self, number: int) -> None:
        self._stopped = max(self._stopped, number)
        if self._session is not None:
            self._session.stop()

    def _take_steering(self) -> None:
        if self._session is None:
            return
        if self._steering is not None:
            self._session.dial, self._session.bias = self._steering.dial, self._steering.bias
        if self._is_offline and self._session.outside is not None:
            self._session.outside.go_offline()

    # --- models --------------------------------------------------------------------------------------

    def _open(self, choices: Choices) -> None:
        if self._session is not None:
            self._keep()
            self._session.close()
            self._session = None
        try:
            self._session = self._opened(choices)
        except EdgeError as error:
            self._say(Failed(str(error)))
            return
        except Exception as error:
            self._say(Failed(f"{type(error).__name__}: {error}. This is a bug"))
            return
        self._take_steering()
        self._say(self._ready(self._session))

    def _opened(self, choices: Choices) -> Session:
        from sr_edge.config import load_config
        from sr_edge.session import Session, settings_of

        config = load_config(
            environ=self._environ,
            path=None if choices.config is None else Path(choices.config),
            profile=choices.profile,
            flags=choices.flags,
        )
        settings = settings_of(
            config,
            big=choices.big,
            big_model=choices.big_model,
            hedge=choices.hedge,
            lora=None if choices.lora is None else Path(choices.lora),
        )
        return Session.open(
            settings,
            environ=self._environ,
            warn=lambda line: self._say(Note(line)),
            progress=self._loading(),
        )

    def _loading(self) -> _Steps:
        return _Steps(lambda done: self._say(Loading(done)))

    def _ready(self, session: Session) -> Ready:
        outside = session.outside
        markers = session.local.markers
        price = outside.price if outside else None
        return Ready(
            model=session.local.name,
            context=len(session.local.ids) + session.local.room,
            big=session.remote.name if session.remote else None,
            leaves=outside is not None,
            where=outside.endpoint.where if outside else None,
            can_ask=markers is not None and markers.form == "token",
            offline=session.is_offline or self._is_offline,
            hears_one_question=session.hears_one_question,
            price=(price.input, price.output) if price else None,
            notices=session.notices,
        )

    # --- while nobody waits --------------------------------------------------------------------------

    def _read_ahead(self, messages: Sequence[Message], conversation: str | None) -> None:
        session = self._session
        if session is None or self._stopped == _ALL:
            return
        with self._handing:
            self._is_reading_ahead = True
            session.go_on()
        try:
            if self._todo.empty():
                session.turn_to(conversation)
                session.read_ahead(messages, goes_on=self._todo.empty)
        except EdgeError:
            pass  # the answer says so, if it is ever asked for
        except Exception as error:
            self._say(Note(f"{type(error).__name__}: {error}. This is a bug"))
        finally:
            with self._handing:
                self._is_reading_ahead = False

    def _keep(self) -> None:
        if self._session is not None:
            self._session.keep()

    # --- answers -------------------------------------------------------------------------------------

    def _answer(self, wanted: Answer) -> None:
        self._is_idle.clear()
        session = self._session
        error: str | None = None
        try:
            if session is None:
                raise UsageError("no model is open: choose one that can be")
            if wanted.past and wanted.past_model not in (None, session.local.name):
                raise UsageError(
                    f"{wanted.past_model} wrote this, and {session.local.name} cannot go on from there: "
                    "ask anew, or open the model that wrote it"
                )
            if self._stopped < wanted.number:
                self._write(session, wanted)
        except EdgeError as failed:
            error = str(failed)
        except Exception as failed:
            error = f"{type(failed).__name__}: {failed}. This is a bug"
        outside = session.outside if session else None
        spent = outside.spent_today() if outside else None
        self._is_idle.set()
        self._say(Answered(wanted.number, error, (spent.usd, spent.tokens) if spent else None))

    def _write(self, session: Session, wanted: Answer) -> None:
        def is_stopped() -> bool:
            return self._stopped >= wanted.number

        def consent(request: SpanRequest) -> bool:
            return self._consent(session, session.told(wanted.messages), request, is_stopped)

        session.go_on()
        self._say(Answering(wanted.number))
        session.turn_to(wanted.conversation)
        events = session.answer(
            wanted.messages,
            past=wanted.past,
            first=wanted.first,
            consent=consent,
            cancelled=is_stopped,
            progress=lambda progress: self._say(Working(progress.doing, progress.done, progress.total)),
        )
        for event in events:
            self._say(event)

    def _consent(
        self,
        session: Session,
        messages: Sequence[Message],
        request: SpanRequest,
        is_stopped: Callable[[], bool],
    ) -> bool:
        """Show what would leave, and wait until the user has decided, stops, or turns the dial."""
        outside = session.outside
        assert outside is not None
        preview = outside.preview(messages, request.answer, request.max_tokens)
        body = json.dumps(preview.body, ensure_ascii=False)
        while not self._verdicts.empty():
            self._verdicts.get()  # to a question that is no more
        self._say(
            Asked(
                span=request.span,
                remote=outside.model.name,
                where=outside.endpoint.where,
                tokens=request.sent_tokens,
                size=len(body.encode("utf-8", "surrogatepass")),
                text=json.dumps(preview.body, ensure_ascii=False, indent=2),
                cost=outside.price.cost(request.sent_tokens, request.max_tokens) if outside.price else None,
            )
        )
        while session.dial == "ask" and not (is_stopped() or self._is_offline):
            with suppress(queue.Empty):
                return self._verdicts.get(timeout=_POLL) == "yes"
        return session.dial == "auto" and not (is_stopped() or self._is_offline)

    def _say(self, message: Report | Event) -> None:
        line = encode(message) + "\n"
        try:
            with self._writing:
                self._wire.write(line)
                self._wire.flush()
        except OSError:
            self._stopped = _ALL  # the host is gone: `_listen` ends the process


class _Steps:
    """Passes on progress that can be seen."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._last = -1.0

    def __call__(self, done: float) -> None:
        if done >= 1 or done < self._last or done - self._last >= _LEAST_STEP:
            self._last = done
            self._report(done)


def _leave_no_core() -> None:
    """The memory of this process holds conversations and a key."""
    if sys.platform != "win32":
        import resource

        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _offer_to_the_oom_killer() -> None:
    """Where memory runs out, this process is what the machine can best do without."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
