"""A conversation as one HTML file that needs nothing else: no script, no font, no network.

Who wrote what shows by the shape of the bar at the left (thin: the small model; thick, with the span's
number: a remote; dashed: help that did not come) and by its colour, one for each remote. The page's own
policy forbids it to load or run anything, should an escape ever be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from sr_edge.budget import dollars
from sr_edge.exporting.parts import (
    LOCAL,
    Piece,
    models,
    of_part,
    percent,
    pieces,
    remote_of,
    remotes,
    share_line,
    shares,
    span_facts,
    span_line,
    spans_words,
    totals,
    turn_notes,
    when,
)
from sr_edge.extract import split_reasoning
from sr_edge.report import size, usage_line
from sr_edge.terminal import safe, safe_line

if TYPE_CHECKING:
    from sr_edge.store import Conversation, Turn
    from sr_edge.transcript import Transcript

_COLORS = 5
"""Remotes beyond these begin with the first colour again; their names stay."""


def html(conversation: Conversation, turns: Sequence[Turn]) -> str:
    """The conversation with these of its turns, in their order."""
    colors = {name: n % _COLORS for n, name in enumerate(remotes(turns))}
    title = _line(conversation.title) or "Conversation"
    body = [
        f"<header><h1>{title}</h1>",
        f'<p class="facts">{" · ".join(map(_line, _facts(conversation, turns)))}</p>',
        _legend(colors),
        "</header>",
    ]
    for turn in turns:
        body += _prompt(turn) if turn.role == "user" else _answer(turn, colors)
    return _PAGE.format(title=title, style=_STYLE, body="\n".join(body))


def _line(text: str) -> str:
    return escape(safe_line(text))


def _text(text: str) -> str:
    return escape(safe(text).strip("\n"))


def _facts(conversation: Conversation, turns: Sequence[Turn]) -> Iterator[str]:
    whole = totals(turns)
    yield when(conversation.created).replace("T", " ").replace("Z", " UTC")
    yield ", ".join(models(turns) or [conversation.model or "no answer"])
    yield f"{whole.local_tokens:,} local tokens"
    share = percent(whole.remote_share)
    yield f"{whole.remote_tokens:,} remote tokens in {spans_words(whole.spans)} ({share})"
    yield f"sent {size(whole.sent_bytes)}"
    if whole.cost is not None:
        yield dollars(whole.cost)


def _legend(colors: dict[str, int]) -> str:
    """What the bars mean."""
    named = "".join(
        f'<li class="piece remote r{color}"><b>◆</b> {_line(name)}</li>' for name, color in colors.items()
    )
    missing = '<li class="piece fallback"><b>◇</b> help that did not come</li>' if colors else ""
    local = '<li class="piece local">the small model, on this machine</li>'
    return f'<ul class="legend">{local}{named}{missing}</ul>'


def _branch(turn: Turn) -> str:
    return f" <small>branch {turn.branch} of {turn.branches}</small>" if turn.branches > 1 else ""


def _prompt(turn: Turn) -> list[str]:
    return [
        f'<section class="prompt"><h2>Prompt{_branch(turn)}</h2>',
        f'<div class="text">{_text(turn.text)}</div></section>',
    ]


def _answer(turn: Turn, colors: dict[str, int]) -> Iterator[str]:
    yield f'<section class="answer"><h2>Answer{_branch(turn)}</h2>'
    transcript = turn.transcript
    if transcript is None:
        yield f'<div class="text">{_text(turn.text)}</div>'
    else:
        shown = pieces(transcript)
        reasoning, answer = of_part(shown, "reasoning"), of_part(shown, "answer")
        yield _share_bar(transcript, colors)
        if reasoning:
            yield from _trace("reasoning", reasoning, colors)
        if any(piece.span is not None for piece in answer):
            yield from _trace("who wrote the answer", answer, colors)
        text = split_reasoning(transcript.opening, transcript.text)[1].strip()
        yield f'<div class="said text">{_text(text)}</div>'
    for note in turn_notes(turn):
        yield f'<p class="note">{_line(note)}</p>'
    if transcript is not None:
        yield f'<p class="usage">{_line(usage_line(transcript))}</p>'
    yield "</section>"


def _trace(name: str, shown: Iterable[Piece], colors: dict[str, int]) -> Iterator[str]:
    yield f"<details open><summary>{name}</summary>"
    for piece in shown:
        yield _piece(piece, colors)
    yield "</details>"


def _share_bar(transcript: Transcript, colors: dict[str, int]) -> str:
    counts = shares(transcript)
    whole = sum(counts.values())
    parts = []
    for n, (name, count) in enumerate(counts.items()):
        voice = LOCAL if n == 0 else f"remote r{colors[name]}"
        if count:
            parts.append(f'<i class="{voice}" style="width:{100 * count / whole:.2f}%"></i>')
    words = _line(share_line(transcript))
    return (
        f'<div class="share"><div class="bar" role="img" aria-label="{words}">{"".join(parts)}</div>'
        f"<span>{words}</span></div>"
    )


def _piece(piece: Piece, colors: dict[str, int]) -> str:
    span = piece.span
    if span is None:
        return f'<div class="piece local"><div class="text">{_text(piece.text)}</div></div>'
    badge = "◇" if piece.voice == "fallback" else "◆"
    voice = "fallback" if piece.voice == "fallback" else f"remote r{colors[remote_of(span)]}"
    begin = f'<b class="badge">{badge}{span.span}</b>' if piece.is_first else ""
    text = f'<div class="text">{_text(piece.text)}</div>' if piece.text else ""
    facts = "".join(f"<dt>{_line(name)}</dt><dd>{_line(value)}</dd>" for name, value in span_facts(span))
    more = (
        f"<details><summary>{_line(span_line(span))}</summary><dl>{facts}</dl></details>"
        if piece.is_first
        else ""
    )
    return f'<div class="piece {voice}">{begin}{text}{more}</div>'


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

# Colours with a contrast of 4.5 and more on their grounds; lightness differs too, for eyes without hue.
_STYLE = """\
:root {
  --ground: #fdfdfc; --raised: #f3f2ee; --ink: #1d1d1f; --dim: #62626a; --rule: #dcdad3; --local: #8b8b93;
  --r0: #0b62c4; --r1: #9a4a00; --r2: #8a2da5; --r3: #00705f; --r4: #b0233f; --fallback: #a06a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #17181c; --raised: #202228; --ink: #e6e6e9; --dim: #9c9ca8; --rule: #33353d; --local: #74747f;
    --r0: #6cb0ff; --r1: #ffab5e; --r2: #d79bf0; --r3: #5fd3ba; --r4: #ff8ba0; --fallback: #e5b84f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 52rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 {
  font-size: .75rem; letter-spacing: .06em; text-transform: uppercase; color: var(--dim); margin: 0 0 .5rem;
}
small, .facts, .usage, .note, .share, .legend, dl { font-size: .8125rem; color: var(--dim); }
h2 small { text-transform: none; letter-spacing: 0; }
header { border-bottom: 1px solid var(--rule); padding-bottom: 1rem; }
section { margin: 1.75rem 0; }
.prompt { background: var(--raised); border-radius: .5rem; padding: .875rem 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
.legend {
  list-style: none; padding: 0; margin: .75rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1.5rem;
}
.piece { position: relative; padding: .125rem 0 .125rem .875rem; margin: .125rem 0; }
.piece::before {
  content: ""; position: absolute; left: 0; top: 0; bottom: 0; border-left: 2px solid var(--local);
}
.piece.remote::before { border-left: 6px solid var(--voice); }
.piece.fallback::before { border-left: 2px dashed var(--fallback); }
.piece.remote { background: color-mix(in srgb, var(--voice) 7%, transparent); }
.r0 { --voice: var(--r0); } .r1 { --voice: var(--r1); } .r2 { --voice: var(--r2); }
.r3 { --voice: var(--r3); } .r4 { --voice: var(--r4); }
.badge { float: left; margin-right: .5rem; color: var(--voice, var(--fallback)); }
.legend b { color: var(--voice, var(--fallback)); }
.piece details { clear: left; font-size: .8125rem; color: var(--dim); text-align: right; }
.piece.fallback details { clear: none; text-align: left; }
.piece summary { cursor: pointer; }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: .125rem .75rem; margin: .25rem 0;
  text-align: left;
}
dd { margin: 0; overflow-wrap: anywhere; }
.answer > details > summary { cursor: pointer; color: var(--dim); font-size: .875rem; margin: .5rem 0; }
.answer > details:not([open]) { border-bottom: 1px dashed var(--rule); }
.said { margin-top: 1rem; font-size: 1.0625rem; }
.share { display: flex; align-items: center; gap: .75rem; }
.bar {
  display: flex; flex: 0 0 10rem; height: .5rem; border-radius: .25rem; overflow: hidden;
  background: var(--rule);
}
.bar i { display: block; height: 100%; }
.bar .local { background: var(--local); }
.bar .remote {
  background: var(--voice);
  background: repeating-linear-gradient(135deg, var(--voice) 0 4px,
    color-mix(in srgb, var(--voice) 70%, var(--ground)) 4px 6px);
}
.note { border-left: 2px solid var(--fallback); padding-left: .75rem; }
@media print { body { max-width: none; padding: 0; } .prompt { border: 1px solid var(--rule); } }
"""
