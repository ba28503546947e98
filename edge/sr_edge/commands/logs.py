"""`sr-edge logs`: the conversations that were kept on this machine. No model, no network."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sr_edge.budget import dollars
from sr_edge.commands import STYLE
from sr_edge.commands.listing import print_json, print_table, say
from sr_edge.commands.output import note, width_of
from sr_edge.errors import UsageError
from sr_edge.report import Look, Spans, StreamView, choose_look, notes, size, span_table, usage_line
from sr_edge.states import forget_states
from sr_edge.store import Conversation, Hit, Store, Turn, history_path
from sr_edge.terminal import safe, safe_line

app = typer.Typer(**STYLE)

Id = Annotated[str, typer.Argument(metavar="ID", help="Of a conversation; its beginning will do.")]
AsObject = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ExportFormat = Literal["md", "json", "jsonl", "html"]

_UNFINISHED = {
    "running": "it is being written",
    "cut": "cut in the middle: whoever wrote it died",
    "stopped": "stopped by you",
}
_FOUND, _PLAIN = "\x1b[1m", "\x1b[0m"


@app.callback(invoke_without_command=True)
def logs(ctx: typer.Context) -> None:
    """The conversations that were kept: list, show, search, export, remove.

    Without a command: `list`.
    """
    if ctx.invoked_subcommand is None:
        list_()


@app.command("list")
def list_(
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="Only those with TEXT in their title.")
    ] = "",
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, metavar="N", help="At most so many.")] = 20,
    as_object: AsObject = False,
) -> None:
    """The conversations, the one used last first."""
    with _store() as store:
        found = store.conversations(limit=limit, title=title)
    if as_object:
        print_json([dataclasses.asdict(conversation) for conversation in found])
    elif not found:
        note("no such conversation" if title else "no conversation is kept yet")
    else:
        rows = [[one.id, _when(one.updated), str(one.turns), one.title, one.model] for one in found]
        print_table(["id", "used", "turns", "title", "model"], rows, right=[2])


@app.command()
def show(
    id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Of a conversation; its beginning will do. Default: the latest."),
    ] = None,
    spans: Annotated[
        Spans | None,
        typer.Option(
            "--spans",
            help="How the reasoning and who wrote it are shown: not at all, with marks, with marks and "
            "colour, or with a table of the spans. Default: color on a terminal, else marks.",
            show_default=False,
        ),
    ] = None,
    as_object: Annotated[
        bool, typer.Option("--json", help="Print JSON: each answer as `ask --json` prints it.")
    ] = False,
) -> None:
    """A conversation as text, and who wrote what in it."""
    with _store() as store:
        conversation = _chosen(store, id)
        turns = store.thread(conversation.head) if conversation.head else []
        if as_object:
            from sr_edge.exporting import as_object as exported

            print_json(exported(conversation, turns))
            return
        say(f"{conversation.id}  {conversation.title}")
        for turn in turns:
            print()
            if turn.role == "user":
                _show_prompt(turn)
            else:
                _show_answer(store, turn, spans)


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words, or beginnings of them.")],
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Search the reasoning, not prompts and answers.")
    ] = False,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, metavar="N", help="At most so many.")] = 20,
    as_object: AsObject = False,
) -> None:
    """Where words stand in prompts and answers, the newest first."""
    with _store() as store:
        hits = store.search(text, reasoning=reasoning, limit=limit)
    if as_object:
        print_json([_hit(hit) for hit in hits])
        return
    if not hits:
        note("nothing found")
    is_bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for hit in hits:
        say(f"{hit.conversation.id}  {_when(hit.at)}  {hit.role}  {hit.conversation.title}")
        print("    " + _marked(hit.snippet, is_bold))


@app.command()
def export(
    id: Id,
    form: Annotated[
        ExportFormat,
        typer.Option("--format", help="Markdown, JSON, events of one answer, a web page."),
    ] = "md",
    to: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="A new file. Default: stdout.", show_default=False
        ),
    ] = None,
    answer: Annotated[
        int | None,
        typer.Option(
            "--answer",
            min=1,
            metavar="N",
            help="With jsonl, which holds one: from 1. Default: the last.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """A conversation for others to read, with who wrote what."""
    from sr_edge import exporting

    if answer is not None and form != "jsonl":
        raise UsageError("--answer goes with --format jsonl: the other formats hold all answers")
    with _store() as store:
        conversation = store.conversation(id)
        turns = store.thread(conversation.head) if conversation.head else []
        match form:
            case "md":
                text = exporting.markdown(conversation, turns)
            case "json":
                text = exporting.json_text(conversation, turns)
            case "html":
                text = exporting.html(conversation, turns)
            case "jsonl":
                text = exporting.json_lines(store.events(_answer(turns, answer).id))
    if to is None:
        sys.stdout.write(text)
    else:
        say(str(exporting.write(to, text)))


@app.command()
def rename(id: Id, title: Annotated[str, typer.Argument(metavar="TITLE")]) -> None:
    """Give a conversation another title."""
    if not title.strip():
        raise UsageError("the title is empty")
    with _store() as store:
        store.rename(id, title.strip())


@app.command()
def rm(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Of conversations.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Forget conversations: their text is overwritten on the disk, and in no backup of ours."""
    with _store() as store:
        chosen = {one.id: one for one in map(store.conversation, ids)}
        if not yes:
            _confirm([*chosen.values()])
        for conversation in chosen.values():
            store.remove(conversation.id)
            forget_states(conversation.id)
            say(f"forgotten: {conversation.id}  {conversation.title}")


@app.command()
def stats(as_object: AsObject = False) -> None:
    """What was kept, and what the large models had of it."""
    with _store() as store:
        figures = store.stats()
    if as_object:
        print_json(dataclasses.asdict(figures))
        return
    total = figures.local_tokens + figures.remote_tokens
    share = f" ({100 * figures.remote_tokens / total:.1f} %)" if total else ""
    facts = [
        ("conversations", str(figures.conversations)),
        ("prompts", str(figures.prompts)),
        ("answers", str(figures.answers) + (f" ({figures.cut} cut)" if figures.cut else "")),
        ("local tokens", str(figures.local_tokens)),
        ("remote tokens", f"{figures.remote_tokens}{share}"),
        ("spans", str(figures.spans)),
        ("sent", size(figures.sent_bytes)),
        ("cost", "unknown" if figures.cost is None else dollars(figures.cost)),
        ("since", "-" if figures.oldest is None else _when(figures.oldest)),
        ("on disk", size(figures.file_bytes)),
    ]
    for name, value in facts:
        say(f"{name:14}{value}", keeps_spaces=True)
    if figures.remotes:
        print()
        rows = [
            [one.remote, str(one.spans), str(one.tokens), size(one.sent_bytes), _cost(one.cost)]
            for one in figures.remotes
        ]
        print_table(["remote", "spans", "tokens", "sent", "cost"], rows, right=[1, 2, 3, 4])


@app.command()
def backup(file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")]) -> None:
    """Copy the whole history into one file, also while it is in use."""
    with _store() as store:
        store.backup(file)


@app.command()
def path() -> None:
    """Where the history lies."""
    say(str(history_path(os.environ)))


# --- helpers -----------------------------------------------------------------------------------------


def _store() -> Store:
    return Store.open(history_path(os.environ), warn=note, create=False)


def _chosen(store: Store, id: str | None) -> Conversation:
    if id is not None:
        return store.conversation(id)
    latest = store.latest()
    if latest is None:
        raise UsageError("no conversation is kept yet")
    return latest


def _answer(turns: list[Turn], number: int | None) -> Turn:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers or (number or 1) > len(answers):
        count = f"{len(answers)} answer" + ("" if len(answers) == 1 else "s")
        raise UsageError(f"this conversation has {count}" + ("" if number is None else f": no {number}"))
    return answers[-1 if number is None else number - 1]


def _when(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # a clock that was far out
        return "-"


def _cost(cost: float | None) -> str:
    return "-" if cost is None else dollars(cost)


def _branch(turn: Turn) -> str:
    return f" [branch {turn.branch} of {turn.branches}]" if turn.branches > 1 else ""


def _show_prompt(turn: Turn) -> None:
    for line in safe(turn.text).split("\n"):
        print(f"> {line}".rstrip())
    if turn.branches > 1:
        print(f">{_branch(turn)}")


def _show_answer(store: Store, turn: Turn, spans: Spans | None) -> None:
    transcript = turn.transcript
    assert transcript is not None
    look = _look(spans)
    view = StreamView(look, sys.stdout if look.streams else io.StringIO(), sys.stdout)
    try:
        for event in store.events(turn.id):
            view.add(event)
    finally:
        view.close()
    if view.failure is not None:
        raise view.failure
    lines = []
    if look.table and transcript.spans:
        lines += span_table(transcript.spans, width=width_of(sys.stdout), ellipsis=look.ellipsis)
    lines += [f"-- {safe_line(line)}" for line in notes(transcript)]
    if turn.status in _UNFINISHED:
        lines.append(f"-- {_UNFINISHED[turn.status]}")
    lines.append(f"-- {usage_line(transcript, look.separator)}{_branch(turn)}")
    print("\n".join(lines))


def _look(spans: Spans | None) -> Look:
    is_terminal = sys.stdout.isatty()
    wanted = spans or ("color" if is_terminal else "marks")
    return choose_look(wanted, is_terminal=is_terminal, encoding=sys.stdout.encoding, environ=os.environ)


def _marked(snippet: str, is_bold: bool) -> str:
    before, *rest = snippet.split("\x02")
    shown = safe(before)
    for piece in rest:
        found, _, after = piece.partition("\x03")
        shown += (f"{_FOUND}{safe(found)}{_PLAIN}" if is_bold else safe(found)) + safe(after)
    return shown.replace("\n", " ")


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "conversation": hit.conversation.id,
        "title": hit.conversation.title,
        "turn": hit.turn,
        "role": hit.role,
        "at": hit.at,
        "snippet": hit.snippet.replace("\x02", "").replace("\x03", ""),
    }


def _confirm(chosen: list[Conversation]) -> None:
    """Raises: UsageError: nobody is there to say yes. Exit: they did not."""
    if not sys.stdin.isatty():
        raise UsageError("this cannot be undone, and nobody is there to ask: --yes says that it is meant")
    for conversation in chosen:
        note(f"{conversation.id}  {conversation.title}  ({conversation.turns} turns)")
    try:
        is_meant = typer.confirm("Forget for good?", default=False, err=True)
    except typer.Abort:
        is_meant = False
    if not is_meant:
        raise typer.Exit(1)
