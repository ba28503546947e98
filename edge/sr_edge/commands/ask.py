"""`sr-edge ask`: one problem in, one answer out."""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self, TextIO

import typer

from sr_edge.commands import INTERRUPTED
from sr_edge.commands.completion import model_names, remote_names
from sr_edge.commands.interrupt import ENDING, Interrupt
from sr_edge.commands.keeping import Keeping
from sr_edge.commands.leaving import disclosure, print_preview
from sr_edge.commands.output import Extract, Output, boxed_of, note
from sr_edge.config.schema import MAX_SEED
from sr_edge.errors import GenerationError, ModelError, RemoteError, UsageError
from sr_edge.events import Event, SpanOpened, to_json
from sr_edge.policy import Dial
from sr_edge.report import FAILED, Spans, as_json, is_full
from sr_edge.terminal import safe, safe_json
from sr_edge.transcript import Fold, Transcript


def ask(
    problem: Annotated[
        str | None, typer.Argument(metavar="PROBLEM", help="The problem; - or nothing reads it from stdin.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            metavar="REF",
            autocompletion=model_names,
            help="The small model: a GGUF, or its name in `sr-edge models`. Default: the built-in one.",
        ),
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option("--lora", metavar="GGUF", help="An adapter for the small model; see `sr-edge convert`."),
    ] = None,
    big: Annotated[
        str | None,
        typer.Option(
            "--big",
            metavar="GGUF|URL",
            help="The large model: a file, or an OpenAI-compatible endpoint, whose key is read from the "
            "environment variable SR_EDGE_API_KEY. Default: the default remote; else the built-in one, if "
            "the small one is.",
        ),
    ] = None,
    big_model: Annotated[
        str | None, typer.Option("--big-model", metavar="NAME", help="The endpoint's name for its model.")
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            "-r",
            "--remote",
            metavar="NAME",
            autocompletion=remote_names,
            help="The large model: an endpoint set up by `sr-edge remote add`.",
        ),
    ] = None,
    policy: Annotated[
        Dial | None,
        typer.Option(
            "--policy",
            help="Who writes: both; both, and you are asked before anything leaves; the small model "
            "alone; or the large one alone. Default: auto.",
            show_default=False,
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Open no socket; a --big file still works.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the request that the first span would send, and send nothing."),
    ] = False,
    hedge: Annotated[
        bool | None,
        typer.Option(
            "--hedge/--no-hedge",
            help="Go on locally while an endpoint has not begun, and keep that if it comes too late.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", min=0.0, metavar="USD", help="Of this answer, where the remote's prices are set."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MAX_SEED, metavar="N", help="Make sampling repeatable.")
    ] = None,
    temp: Annotated[
        float | None,
        typer.Option(
            "--temp", min=0.0, metavar="T", help="Temperature; 0 takes the likeliest token. Default: 0.6."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, metavar="N", help="Of the whole answer. Default: 4096."),
    ] = None,
    max_span_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-span-tokens", min=1, metavar="N", help="Of one span of the large model. Default: 512."
        ),
    ] = None,
    max_spans: Annotated[
        int | None, typer.Option("--max-spans", min=0, metavar="N", help="Of one answer. Default: 12.")
    ] = None,
    spans: Annotated[
        Spans | None,
        typer.Option(
            "--spans",
            help="How stderr shows the reasoning and who wrote it: not at all, with marks, with marks and "
            "colour, or with a table at the end. Default: color on a terminal, else none.",
            show_default=False,
        ),
    ] = None,
    usage: Annotated[bool, typer.Option("-u", "--usage", help="Tokens, speed and share, on stderr.")] = False,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    as_lines: Annotated[bool, typer.Option("--jsonl", help="Print each event as a JSON line.")] = False,
    extract: Annotated[
        Extract | None,
        typer.Option("-x", "--extract", help=r"Print only the content of the answer's last \boxed{}."),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option("--events", metavar="FILE", help="Write the events to FILE too, for `sr-edge replay`."),
    ] = None,
    goes_on: Annotated[
        bool, typer.Option("-c", "--continue", help="Go on with the conversation that was used last.")
    ] = False,
    cid: Annotated[
        str | None, typer.Option("--cid", metavar="ID", help="Go on with this one; see `sr-edge logs`.")
    ] = None,
    keeps: Annotated[
        bool | None,
        typer.Option(
            "--log/--no-log",
            help="Keep the question and the answer on this machine. Default: the setting log.enabled, true.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="Settings of this profile go first.")
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings from FILE, not from your own.")
    ] = None,
) -> None:
    """Answer one problem; the large model writes the hard steps.

    stdout carries the final answer only; the reasoning, the marks of the spans and the usage go to stderr.
    """
    from sr_edge.commands.consenting import consent_of
    from sr_edge.config import load_config
    from sr_edge.session import Session, settings_of

    if as_object and as_lines:
        raise UsageError("--json and --jsonl exclude each other")
    if as_lines and extract:
        raise UsageError("--jsonl streams the whole answer: -x does not go with it")
    if temp is not None and not math.isfinite(temp):
        raise UsageError(f"--temp {temp} is no temperature")
    if big is not None and remote is not None:
        raise UsageError("--big and --remote exclude each other: there is one large model")
    if goes_on and cid is not None:
        raise UsageError("-c and --cid exclude each other: there is one conversation")
    config = load_config(
        environ=os.environ,
        path=config_path,
        profile=profile,
        flags={
            "default_remote": remote,
            "model": None if model is None else str(model),
            "offline": offline or None,
            "offload.policy": policy,
            "offload.hedge": hedge,
            "offload.max_span_tokens": max_span_tokens,
            "offload.max_spans": max_spans,
            "budget.usd_per_answer": budget,
            "sampling.temperature": temp,
            "sampling.max_tokens": max_tokens,
            "sampling.seed": seed,
            "log.enabled": keeps,
        },
    )
    settings = settings_of(config, big=big, big_model=big_model, hedge=hedge, lora=lora, dry_run=dry_run)
    question = read_question(problem)
    if as_lines and spans is None:
        spans = "none"  # one stream is enough
    output = Output(spans, is_answer_text=not (as_object or as_lines or extract))
    folding = Fold()

    def stop_reading() -> None:
        """A long prompt is seconds of work in one step; all that follows is done in small ones."""
        if not folding.transcript.model:
            session.stop()

    with (
        Interrupt(*ENDING) as interrupt,
        Keeping(keeps=config.log.enabled and not dry_run, goes_on=goes_on, id=cid) as keeping,
        Session.open(settings, warn=note, progress=interrupt.check) as session,
        interrupt.ending(stop_reading),
        EventLog(events) as log,
    ):
        gc.freeze()  # else the first look would be at all that a start makes
        gc.enable()
        for notice in session.notices:
            note(notice)
        outside = session.outside
        rehearsal = outside.rehearsal if outside else None

        def is_over() -> bool:
            return interrupt() or (rehearsal is not None and rehearsal.preview is not None)

        has_disclosed = rehearsal is not None
        try:
            keeping.begin(question, policy=settings.policy, seed=settings.seed)
            session.turn_to(keeping.conversation)
            told = session.told(keeping.told(question))
            consent = consent_of(session, told, output.view, interrupt)
            for event in session.answer(told, consent=consent, cancelled=is_over):
                folding.add(event)
                keeping.add(event)
                log.write(event)
                if outside and isinstance(event, SpanOpened) and event.sent_bytes and not has_disclosed:
                    output.view.make_way()
                    note(disclosure(event, outside.endpoint.where))
                    has_disclosed = True
                if as_lines:
                    print(safe_json(to_json(event), sys.stdout.encoding), flush=True)
                output.view.add(event)
        finally:
            output.view.close()
        transcript = folding.transcript
        if rehearsal is not None and not interrupt():
            print_preview(rehearsal.preview, transcript, as_object=as_object)
            raise typer.Exit(0)
        boxed = boxed_of(transcript)
        if as_object:
            line = json.dumps(as_json(transcript), ensure_ascii=False)
            print(safe_json(line, sys.stdout.encoding), flush=True)
        elif extract and boxed is not None:
            print(safe(boxed), flush=True)
        elif not as_lines and not extract:
            output.print_answer(transcript)
        redacted = outside.redactor.summary() if outside and outside.redactor else None
        if redacted:
            note(redacted)
        output.print_summary(transcript, max_tokens=settings.max_tokens, usage=usage)
        unkept = keeping.finish()
        if not interrupt():
            session.keep()
    code = exit_code(transcript, policy=settings.policy)
    if code == INTERRUPTED:
        code = interrupt.code
    if unkept:
        from sr_edge.store import HistoryError

        note(unkept)
        code = code or HistoryError.exit_code
    if extract and boxed is None and transcript.finish != "refused":
        note("the answer has no \\boxed{}")
        code = code or GenerationError.exit_code
    if log.error:
        note(log.error)
        code = code or GenerationError.exit_code
    raise typer.Exit(code)


def read_question(problem: str | None) -> str:
    """The problem from the argument or from stdin.

    Raises:
        UsageError: there is none, or it is not text.
    """
    if problem in (None, "-"):
        if sys.stdin is None or (problem is None and sys.stdin.isatty()):
            raise UsageError('no problem given: `sr-edge ask "PROBLEM"`, or pipe it in')
        data: bytes = sys.stdin.buffer.read()
    else:
        data = os.fsencode(problem)
    try:
        question = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"the problem is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not question:
        raise UsageError("the problem is empty")
    return question


def exit_code(transcript: Transcript, *, policy: Dial) -> int:
    match transcript.finish:
        case "stop":
            return 0
        case "length":
            return GenerationError.exit_code if is_full(transcript) else 0
        case "cancelled":
            return INTERRUPTED
        case "refused":
            return ModelError.exit_code
    if policy == "remote" and any(
        span.end in FAILED or span.status == "skipped" for span in transcript.spans
    ):
        return RemoteError.exit_code
    return GenerationError.exit_code


class EventLog:
    """Writes events to a file as they happen, a whole line at a time; without a path nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self.error: str | None = None
        """What went wrong with the file while the answer went on."""

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._file = self._path.open("w", encoding="utf-8", buffering=1)
            except OSError as error:
                raise UsageError(f"--events {self._path}: {error.strerror}") from None
        return self

    def write(self, event: Event) -> None:
        if self._file is not None and self.error is None:
            try:
                self._file.write(safe_json(to_json(event)) + "\n")
            except OSError as error:
                self._fail(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as failed:
                self._fail(failed)

    def _fail(self, error: OSError) -> None:
        self.error = self.error or f"--events {self._path}: {error.strerror}; the file is incomplete"
