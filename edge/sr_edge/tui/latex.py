r"""LaTeX as text that a terminal shows: `\frac{x^2}{2}` as `x²/2`. What is not known stays as it was written.

Pure. The result is for reading; whoever copies gets the source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

from sr_edge.tui.symbols import (
    ACCENTS,
    BRACKETS,
    DELIMITER,
    DOUBLE,
    FUNCTIONS,
    INFIX,
    NOTHING,
    ROOTS,
    SCRIPT,
    SPACES,
    SUB,
    SUPER,
    SYMBOLS,
    UPRIGHT,
    WORDS,
)

BOX = "▣"
"""Stands before what was `\\boxed`."""

MAX_LENGTH = 4000
"""Characters of one formula. A longer one is shown as its source."""

_MAX_DEPTH = 40

_LOOSE = re.compile(r"(?<=[(\[]) +| +(?=[)\]])")  # spaces inside parentheses

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[{}^_&~]|\s+|[^{}^_&~\s]", re.DOTALL)


def to_unicode(source: str) -> str:
    """One formula, without its delimiters. Rows are lines: `aligned` and the like have several."""
    if len(source) > MAX_LENGTH:
        return source
    try:
        lines = _Reader(source).document()
    except _TooDeepError:
        return source
    if len(lines) == 1:
        return _LOOSE.sub("", lines[0]).strip()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


class _TooDeepError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Atom:
    """A piece of the result. `is_single`: nothing in it would come apart next to a stroke or a root."""

    text: str
    is_single: bool = True


class _Reader:
    """Reads a formula from left to right."""

    def __init__(self, source: str, depth: int = 0) -> None:
        self._tokens: list[str] = _TOKEN.findall(source)
        self._at = 0
        self._depth = depth

    def document(self) -> list[str]:
        return _aligned(self._rows())

    # --- tokens --------------------------------------------------------------------------------------

    def _peek(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _skip_spaces(self) -> None:
        while (token := self._peek()) is not None and token.isspace():
            self._at += 1

    # --- rows ----------------------------------------------------------------------------------------

    def _rows(self) -> list[list[str]]:
        r"""Cells, up to `\\end` or the end. Rows end at `\\\\`."""
        rows = [[""]]
        while (token := self._peek()) is not None and token != "\\end":
            if token in ("\\\\", "\\newline", "\\cr"):
                self._next()
                self._optional()  # the space between rows
                rows.append([""])
            elif token == "&":
                self._next()
                rows[-1].append("")
            else:
                rows[-1][-1] = self._extended(rows[-1][-1])
        return [row for row in rows if any(cell.strip() for cell in row)] or [[""]]

    def _extended(self, text: str) -> str:
        """`text` and the next atom; a space before `sin` and the like."""
        if FUNCTIONS.fullmatch((self._peek() or "")[1:]) and text[-1:].isalnum():
            text += " "
        return _joined(text, self._atom().text)

    # --- atoms ---------------------------------------------------------------------------------------

    def _atom(self) -> _Atom:
        """The next thing with its powers and indices."""
        atom = self._base()
        while (token := self._peek()) in ("^", "_"):
            self._next()
            table, sign = (SUPER, "^") if token == "^" else (SUB, "_")
            atom = _Atom(atom.text + _scripted(self._argument(), table, sign))
        return atom

    def _base(self) -> _Atom:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _TooDeepError
        atom = self._first()
        self._depth -= 1
        return atom

    def _first(self) -> _Atom:
        token = self._peek()
        if token is None or token in ("^", "_"):
            return _Atom("")
        self._next()
        if token == "{":
            return self._group()
        if token == "~" or token.isspace():
            return _Atom(" ")
        if token[0] == "\\" and len(token) > 1:
            return self._command(token)
        if token.isdigit():
            number = token
            while (following := self._peek()) is not None and following.isdigit():
                number += self._next()
            return _Atom(number)
        return _Atom({"-": "−", "'": SYMBOLS["prime"]}.get(token, token))

    def _group(self) -> _Atom:
        """Up to the closing brace, or to the end without one."""
        text, count = "", 0
        while (token := self._peek()) is not None and token != "}":
            if token in ("\\\\", "&"):
                self._next()
                text += " "
                continue
            before = text
            text = self._extended(text)
            count += text.strip() != before.strip()
        if self._peek() == "}":
            self._next()
        return _Atom(text.strip(), count <= 1 and not text.strip()[1:2].isspace())

    def _argument(self) -> _Atom:
        self._skip_spaces()
        token = self._peek()
        if token is not None and token.isdigit():  # `\frac12`, `x^23`: one figure
            return _Atom(self._next())
        return self._base()

    def _optional(self) -> str | None:
        """What stands in brackets right here."""
        if self._peek() != "[" or "]" not in self._tokens[self._at :]:
            return None
        end = self._tokens.index("]", self._at)
        inner = "".join(self._tokens[self._at + 1 : end])
        self._at = end + 1
        return inner

    def _raw(self) -> str:
        """An argument as it was written: words."""
        self._skip_spaces()
        if self._peek() != "{":
            return self._next() if self._peek() is not None else ""
        self._next()
        depth, words = 1, ""
        while self._peek() is not None:
            token = self._next()
            depth += (token == "{") - (token == "}")
            if not depth:
                break
            words += token
        return words

    # --- commands ------------------------------------------------------------------------------------

    def _command(self, token: str) -> _Atom:
        name = token[1:].rstrip("*")
        if name in SYMBOLS:
            return _Atom(SYMBOLS[name])
        if name in INFIX:
            return _Atom(f" {INFIX[name]} ", is_single=False)
        if name in SPACES:
            return _Atom(SPACES[name])
        if FUNCTIONS.fullmatch(name):
            return self._function(name)
        if DELIMITER.fullmatch(name):
            return self._delimiter()
        if NOTHING.fullmatch(name):
            return _Atom("")
        if name in ACCENTS:
            atom = self._argument()
            return _Atom(
                "".join(char + ACCENTS[name] for char in atom.text) if len(atom.text) < 6 else atom.text
            )
        if UPRIGHT.fullmatch(name):
            return self._argument()
        if WORDS.fullmatch(name):
            words = self._raw()
            if "\\" in words:
                words = " ".join(_Reader(words, self._depth).document())
            return _Atom(words.replace("$", ""), is_single=" " not in words)
        return self._structure(token, name)

    def _structure(self, token: str, name: str) -> _Atom:
        match name:
            case "frac" | "dfrac" | "tfrac" | "cfrac" | "nicefrac":
                above, below = self._argument(), self._argument()
                product = below.text.strip().isalpha() and len(below.text.strip()) > 1
                return _Atom(
                    f"{_closed(above)}/{_closed(_Atom(below.text, below.is_single and not product))}", False
                )
            case "binom" | "dbinom" | "tbinom":
                return _Atom(f"C({self._argument().text}, {self._argument().text})")
            case "sqrt":
                degree = to_unicode(self._optional() or "2").strip()
                root = ROOTS.get(degree) or _scripted(_Atom(degree), SUPER, "^").lstrip("^") + "√"
                return _Atom(root + _closed(self._argument()))
            case "boxed" | "fbox":
                return _Atom(f"{BOX} {self._argument().text.strip()}")
            case "mathbb":
                return _Atom("".join(DOUBLE.get(char, char) for char in self._argument().text))
            case "mathcal" | "mathscr" | "mathfrak":
                return _Atom("".join(SCRIPT.get(char, char) for char in self._argument().text))
            case "pmod":
                return _Atom(f" (mod {self._argument().text})", is_single=False)
            case "bmod":
                return _Atom(" mod ", is_single=False)
            case "overset" | "stackrel":
                above, base = self._argument(), self._argument()
                return _Atom(base.text.rstrip() + _scripted(above, SUPER, "^"))
            case "underset":
                below, base = self._argument(), self._argument()
                return _Atom(base.text.rstrip() + _scripted(below, SUB, "_"))
            case "not":
                return _Atom(self._argument().text.strip() + "\u0338")
            case "begin":
                return self._environment(token)
            case "color" | "textcolor":
                self._raw()
                return _Atom("") if name == "color" else self._argument()
            case "phantom" | "vspace" | "hspace" | "label":
                self._raw()
                return _Atom("")
            case "{" | "}" | "%" | "$" | "#" | "_" | "&":
                return _Atom(name)
        arguments = ""  # not known
        while self._peek() == "{":
            arguments += "{" + self._argument().text + "}"
        return _Atom(token + arguments)

    def _function(self, name: str) -> _Atom:
        """`sin x` and `sin(x)`: a space where a letter follows."""
        before = self._peek()
        follows = before is not None and (before.isalnum() or before[0] == "\\")
        return _Atom(name + (" " if follows and before not in ("\\left",) else ""))

    def _delimiter(self) -> _Atom:
        self._skip_spaces()
        token = self._peek()
        if token is None:
            return _Atom("")
        self._next()
        if token == ".":
            return _Atom("")
        return _Atom(SYMBOLS.get(token[1:], token[1:]) if len(token) > 1 else token)

    def _environment(self, token: str) -> _Atom:
        name = self._raw()
        if name.rstrip("*") in ("array", "tabular"):
            self._raw()  # its columns
        rows = self._rows()
        if self._peek() == "\\end":
            self._next()
            self._raw()
        kind = name.rstrip("*")
        if kind in BRACKETS:
            return _Atom(_bracketed(_columns(rows, "l", "  "), *BRACKETS[kind]))
        return _Atom(
            "\n".join(_columns(rows, "l", "  ") if kind == "array" else _aligned(rows)), is_single=False
        )


def _bracketed(rows: list[str], left: str, right: str) -> str:
    width = max(map(len, rows))

    def sign(signs: str, n: int) -> str:
        if not signs:
            return ""
        return signs[0] if len(rows) == 1 else signs[1 if n == 0 else 3 if n == len(rows) - 1 else 2]

    lines = [f"{sign(left, n)} {row.ljust(width)} {sign(right, n)}".rstrip() for n, row in enumerate(rows)]
    return lines[0] if len(lines) > 1 and not left else "\n".join(lines)


def _joined(left: str, right: str) -> str:
    """Side by side. What has several lines keeps them together; one space is enough between two things."""
    if "\n" in left or "\n" in right:
        return _beside(left.split("\n"), right.split("\n"))
    if left.endswith(" ") and right.startswith(" "):
        right = right.lstrip(" ") if len(right.lstrip(" ")) else ("" if right == " " else right)
    return left + right


def _beside(left: list[str], right: list[str]) -> str:
    height = max(len(left), len(right))
    width = max(map(len, left))
    above_left, above_right = (height - len(left)) // 2, (height - len(right)) // 2
    lines = []
    for n in range(height):
        of_left = left[n - above_left] if 0 <= n - above_left < len(left) else ""
        of_right = right[n - above_right] if 0 <= n - above_right < len(right) else ""
        lines.append((of_left.ljust(width) + of_right).rstrip() if of_right else of_left)
    return "\n".join(lines)


def _aligned(rows: list[list[str]]) -> list[str]:
    """What stands left of `&` ends in one column, what stands right of it begins there."""
    if len(rows) == 1 and len(rows[0]) == 1:
        return rows[0][0].split("\n")
    return _columns(rows, "rl", " ")


def _columns(rows: list[list[str]], sides: str, gap: str) -> list[str]:
    cells = [[" ".join(cell.split("\n")).strip() for cell in row] for row in rows]
    columns = zip_longest(*cells, fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in cells:
        padded = (
            cell.rjust(width) if sides[n % len(sides)] == "r" else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        lines.append(gap.join(padded).rstrip())
    return lines


def _closed(atom: _Atom) -> str:
    """With parentheses where it would come apart."""
    text = atom.text.strip()
    return text if atom.is_single or text.isdigit() else f"({text})"


def _scripted(atom: _Atom, table: dict[str, str], sign: str) -> str:
    text = atom.text.strip()
    if not text:
        return ""
    if all(char in table for char in text.replace(" ", "")):
        return "".join(table[char] for char in text.replace(" ", ""))
    return sign + (text if len(text) == 1 else f"({text})")
