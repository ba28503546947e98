"""A conversation as Markdown: settings in front, prompts and reasoning literally, answers to be rendered.

Every line of a trace begins with the mark of its writer, so that no text can end the fence that it stands
in: `│` the small model, `┃` a remote, with `◆` and the span's number where it begins, `╎ ◇` help that did not
come. An answer stands in a quotation: its own headings, fences and rules end there.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sr_edge.exporting.parts import (
    Piece,
    models,
    of_part,
    pieces,
    remotes,
    share_line,
    span_line,
    totals,
    turn_notes,
    when,
)
from sr_edge.extract import split_reasoning
from sr_edge.report import usage_line
from sr_edge.terminal import safe, safe_line

if TYPE_CHECKING:
    from sr_edge.store import Conversation, Turn
    from sr_edge.transcript import Transcript

_WIDTH = 96


def markdown(conversation: Conversation, turns: Sequence[Turn]) -> str:
    """The conversation with these of its turns, in their order."""
    blocks = [_front_matter(conversation, turns), f"# {plain(conversation.title) or 'Conversation'}"]
    for turn in turns:
        blocks += _prompt(turn) if turn.role == "user" else _answer(turn)
    return "\n\n".join(blocks) + "\n"


def _front_matter(conversation: Conversation, turns: Sequence[Turn]) -> str:
    whole = totals(turns)
    asked = remotes(turns)
    lines = [
        f"title: {_yaml(conversation.title)}",
        f"id: {_yaml(conversation.id)}",
        f"created: {_yaml(when(conversation.created))}",
        f"updated: {_yaml(when(conversation.updated))}",
        f"models: [{', '.join(map(_yaml, models(turns)))}]",
        f"remotes: [{', '.join(map(_yaml, asked))}]",
        f"local_tokens: {whole.local_tokens}",
        f"remote_tokens: {whole.remote_tokens}",
        f"remote_share: {whole.remote_share:.4f}",
        f"spans: {whole.spans}",
        f"sent_bytes: {whole.sent_bytes}",
        f"cost_usd: {'null' if whole.cost is None else f'{whole.cost:.8f}'}",
    ]
    return "\n".join(["---", *lines, "---"])


def _yaml(text: str) -> str:
    """On one line in double quotes, in which YAML and JSON agree; YAML has no place for the last two."""
    line = json.dumps(safe_line(text), ensure_ascii=False)
    return re.sub("[\ufdd0-\ufdef\ufffe\uffff]", lambda match: f"\\u{ord(match[0]):04x}", line)


def _prompt(turn: Turn) -> list[str]:
    branch = f" (branch {turn.branch} of {turn.branches})" if turn.branches > 1 else ""
    return [f"## Prompt{branch}", _fenced(safe(turn.text).split("\n"))]


def _answer(turn: Turn) -> list[str]:
    branch = f" (branch {turn.branch} of {turn.branches})" if turn.branches > 1 else ""
    blocks = [f"## Answer{branch}"]
    transcript = turn.transcript
    if transcript is None:
        blocks.append(quoted(turn.text))
    else:
        blocks += _traced(transcript)
    blocks += [f"*{plain(note)}*" for note in turn_notes(turn)]
    return blocks


def _traced(transcript: Transcript) -> Iterator[str]:
    shown = pieces(transcript)
    reasoning, answer = of_part(shown, "reasoning"), of_part(shown, "answer")
    yield plain(usage_line(transcript))
    if reasoning:
        yield f"### Reasoning: {plain(share_line(transcript))}"
        yield _fenced(trace_lines(reasoning))
    if any(piece.span is not None for piece in answer):
        yield "### Who wrote the answer" + ("" if reasoning else f": {plain(share_line(transcript))}")
        yield _fenced(trace_lines(answer))
    text = split_reasoning(transcript.opening, transcript.text)[1].strip()
    if text:
        yield quoted(text)


def trace_lines(shown: Iterable[Piece]) -> Iterator[str]:
    """Each with the mark of its writer in front."""
    for piece in shown:
        if piece.span is None:
            yield from _marked("│ ", "│ ", piece.text)
        elif not piece.span.text:
            yield from _marked(f"╎ ◇{piece.span.span} ", "╎   ", safe_line(span_line(piece.span)))
        else:
            begin = f"┃ ◆{piece.span.span} " if piece.is_first else "┃ "
            yield from _marked(begin, "┃ ", piece.text)
            yield f"┃   [{safe_line(span_line(piece.span))}]"


def _marked(first: str, further: str, text: str) -> Iterator[str]:
    """The text's lines, wrapped at words; a piece that begins or ends within a line has one of its own."""
    mark = first
    for line in safe(text).strip("\n").split("\n"):
        wrapped = textwrap.wrap(
            line, _WIDTH, drop_whitespace=False, replace_whitespace=False, break_on_hyphens=False
        )
        for part in wrapped or [""]:
            yield (mark + part).rstrip()
            mark = further


def _fenced(lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    longest = max((len(run) for run in re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{body}\n{fence}"


# --- an answer, to be rendered ------------------------------------------------------------------------

_FENCE = re.compile(r"(`{3,})[^`]*|(~{3,}).*")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def quoted(text: str) -> str:
    """Markdown that somebody wrote, as a quotation, without tags and images of its own.

    A tag is shown as text, and an image, which would be fetched from wherever it says, as a link. Only in a
    fence that begins at the margin do they stay as they are: of that alone it is certain where it ends.
    """
    lines = []
    fence, is_certain = "", True
    for line in safe(text).strip("\n").split("\n"):
        if not fence:
            begun = _FENCE.fullmatch(line) if is_certain else None
            if begun:
                fence = begun[1] or begun[2]
            else:
                is_certain = is_certain and "```" not in line and "~~~" not in line  # in a list, or indented
                line = _TAG.sub("&lt;", line).replace("![", "!\\[")
        elif set(line.strip(" \t")) == {fence[0]} and len(line.strip(" \t")) >= len(fence):
            is_certain = re.match(" {0,3}[^ \t]", line) is not None  # a tab may or may not be too much
            fence = ""
        lines.append(f"> {line}" if line else ">")  # a space less, and another line could be a fence
    return "\n".join(lines)


_PUNCTUATION = re.compile(r"([\\`*_\[\]#!|<>~&$])")


def plain(text: str) -> str:
    """Text that means itself where Markdown is read, on one line."""
    return _PUNCTUATION.sub(r"\\\1", safe_line(text))
