r"""Reads an answer as Markdown in which maths is maths and nothing that was written gets lost.

CommonMark with tables and strikethrough, but: tags are text; `5*3*2` is a product; `\( \)`, `\[ \]`, `$ $`,
`$$ $$` and `\boxed{}` are formulas, shown in Unicode; links and images are text, with where they lead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline, emphasis
from markdown_it.token import Token

from sr_edge.terminal import safe, safe_line
from sr_edge.tui.latex import BOX, to_unicode

MATH_BLOCK = "math_block"
"""The kind of token that a formula with lines of its own is; `content` is its source."""

_ENVIRONMENT = re.compile(r"\\begin\{(align|aligned|equation|gather|gathered|multline|split|cases)(\*?)\}")
_BOXED = ("\\boxed{", "\\fbox{")
_PROSE = re.compile(r"[A-Za-z]{3,} +[A-Za-z]{3,}")


def parser() -> MarkdownIt:
    md = MarkdownIt("gfm-like", {"html": False, "linkify": False})
    md.inline.ruler.before("escape", "math", _math)
    md.inline.ruler.at("emphasis", _emphasis)
    interrupts = ["paragraph", "reference", "blockquote", "list"]
    md.block.ruler.before("fence", MATH_BLOCK, _math_block, {"alt": interrupts})
    md.core.ruler.push("shown", _as_shown)
    return md


def code_blocks(text: str) -> list[str]:
    """The contents of all fenced or indented code, in order."""
    tokens = parser().parse(text)
    return [token.content.rstrip("\n") for token in tokens if token.type in ("fence", "code_block")]


# --- formulas ----------------------------------------------------------------------------------------


def _math(state: StateInline, silent: bool) -> bool:
    found = _formula(state.src, state.pos, state.posMax)
    if found is None:
        return False
    source, end = found
    if not silent:
        for n, line in enumerate(to_unicode(source).split("\n")):
            if n:
                state.push("hardbreak", "br", 0)
            _push(state, " ".join(line.split()))
    state.pos = end
    return True


def _formula(text: str, at: int, most: int) -> tuple[str, int] | None:
    """The formula that begins there: its source, and where it ends."""
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$")):
        if text.startswith(opening, at):
            end = text.find(closing, at + 2, most)
            if end < 0 or not text[at + 2 : end].strip():
                return None
            return text[at + 2 : end], end + 2
    for opening in _BOXED:
        if text.startswith(opening, at):
            closed = _closing_brace(text, at + len(opening), most)
            return None if closed is None else (text[at : closed + 1], closed + 1)
    return _between_dollars(text, at, most) if text[at] == "$" else None


def _between_dollars(text: str, at: int, most: int) -> tuple[str, int] | None:
    """`$x$`, but not `$5 and $6`: no space inside, no letter or figure outside."""
    end = text.find("$", at + 1, most)
    while end > 0 and text[end - 1] == "\\":
        end = text.find("$", end + 1, most)
    source = text[at + 1 : end]
    if end < 0 or not source or source != source.strip():
        return None
    before, after = text[at - 1 : at], text[end + 1 : end + 2]
    if before.isalnum() or after.isalnum() or "\n\n" in source:
        return None
    if "\\" not in source and _PROSE.search(source):
        return None
    return source, end + 1


def _closing_brace(text: str, at: int, most: int) -> int | None:
    depth = 1
    while at < most:
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return at
        at += 1
    return None


def _push(state: StateInline, shown: str) -> None:
    """What is boxed is bold and has the background of code."""
    before, box, after = shown.partition(BOX)
    if before or not box:
        state.push("text", "", 0).content = before
    if box:
        state.push("strong_open", "strong", 1)
        state.push("code_inline", "code", 0).content = f" {box}{after.rstrip('.')} "
        state.push("strong_close", "strong", -1)
        if after.endswith("."):
            state.push("text", "", 0).content = "."


def _math_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""`$$`, `\[` or `\begin{}` up to its end, where nothing else stands on these lines."""
    if state.is_code_block(start):
        return False
    at = state.bMarks[start] + state.tShift[start]
    line = state.src[at : state.eMarks[start]]
    opening = next((each for each in ("$$", "\\[") if line.startswith(each)), "")
    closing = {"$$": "$$", "\\[": "\\]"}.get(opening, "")
    if match := _ENVIRONMENT.match(line):
        closing = f"\\end{{{match[1]}{match[2]}}}"
    if not closing:
        return False
    lines = []
    for n in range(start, end):
        if n > start and state.sCount[n] < state.blkIndent and not state.isEmpty(n):
            return False  # the list or the quotation is over
        first = state.bMarks[n] + state.tShift[n] if n > start else at + len(opening)
        line = state.src[first : state.eMarks[n]]
        stop = line.find(closing)
        if stop >= 0:
            if line[stop + len(closing) :].strip(" .,;"):
                return False
            lines.append(line[:stop] if opening else line[: stop + len(closing)])
            if silent:
                return True
            state.line = n + 1
            token = state.push(MATH_BLOCK, "math", 0)
            token.block, token.content, token.map = True, "\n".join(lines), [start, state.line]
            return True
        lines.append(line)
    return False


# --- text --------------------------------------------------------------------------------------------


def _emphasis(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] == "*":
        end = state.pos
        while end < state.posMax and state.src[end] == "*":
            end += 1
        before, after = state.src[state.pos - 1 : state.pos], state.src[end : end + 1]
        if _multiplies(before, after, end - state.pos):
            if not silent:
                state.pending += state.src[state.pos : end]
            state.pos = end
            return True
    return emphasis.tokenize(state, silent)


def _multiplies(before: str, after: str, stars: int) -> bool:
    """Whether stars between these characters are a sign: `5*3`, `(a)*b`, `2**3`, `x*(y)`."""
    if not before or not after or stars > 2:
        return False
    is_left = _is_operand(before) or before in ")]}"
    is_right = _is_operand(after) or after in "([{\\"
    return is_left and is_right and (stars == 1 or before.isdigit() or after.isdigit())


def _is_operand(char: str) -> bool:
    return (char.isascii() and char.isalnum()) or "\u0370" <= char <= "\u03ff"


def _as_shown(state: StateCore) -> None:
    """Links and images as text, lines as they were written, and nothing that steers the terminal."""
    for token in state.tokens:
        if token.type == "inline" and token.children is not None:
            token.children = list(_shown(token.children))


def _shown(children: list[Token]) -> Iterator[Token]:
    links: list[tuple[str, list[str]]] = []
    for child in children:
        if child.type == "link_open":
            links.append((str(child.attrs.get("href", "")), []))
        elif child.type == "link_close":
            href, said = links.pop()
            label = "".join(said)
            if href not in (label, f"mailto:{label}"):
                yield _text(f" ({safe_line(href)})")
        elif child.type == "image":
            yield _text(f"[image: {safe_line(child.content)}] ({safe_line(str(child.attrs.get('src', '')))})")
        else:
            if child.type == "softbreak":
                child = Token("hardbreak", "br", 0)
            child.content = safe(child.content)
            for _, said in links:
                said.append(child.content)
            yield child


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)
