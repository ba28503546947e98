"""Changing the user's file so that comments, order and formatting survive.

A change is made to the text, and to the plain data beside it. What is written must mean exactly what the
data say, and must load; else nothing is written.
"""

from __future__ import annotations

import codecs
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_edge.config.lines import statements
from sr_edge.config.load import check_text, read_config
from sr_edge.errors import UsageError
from sr_edge.files import locked, write_private

_ONE_LINE = ("price", "timeout")  # { input = 1, output = 2 }


@dataclass(frozen=True, slots=True)
class Change:
    """One value set, or with None whatever lies at or below its path removed."""

    path: tuple[str, ...]
    value: object


def change_config(path: Path, changes: Callable[[Mapping[str, Any]], Iterable[Change]]) -> bool:
    """Read, change and write the file while nobody else does.

    Args:
        changes: gets the data of the file as it is, and may raise.
    Returns: whether anything was changed.
    Raises:
        UsageError: the file is not valid, or would not be any more.
    """
    with locked(path):
        before = read_config(path) or ""
        check_text(before, path, is_whole=False)
        after = apply(before, list(changes(tomllib.loads(before))))
        if after is None:
            raise UsageError(f"{path}: this can't be changed for you: do it with `sr-edge config edit`")
        if after == before:
            return False
        try:
            check_text(after, path)
        except UsageError as error:
            raise UsageError(f"nothing was changed, since then: {error}") from None
        write_private(path, _saved_like(path, after))
        return True


def apply(text: str, changes: Iterable[Change]) -> str | None:
    """The text with the changes; None where it could not be brought to mean what they say."""
    for change in changes:
        wanted = tomllib.loads(text)
        _apply_to_data(wanted, change)
        if wanted == tomllib.loads(text):
            continue
        ways = [_without_lines, _with_tomlkit] if change.value is None else [_with_list_mended, _with_tomlkit]
        for way in ways:
            changed = way(text, change)
            if _means(changed, wanted):
                text = changed
                break
        else:
            return None
    return text if not text or text.endswith("\n") else f"{text}\n"


def _means(text: str, wanted: Mapping[str, Any]) -> bool:
    """But for tables that are empty: a header may stay when its last key goes."""
    try:
        return bool(_pruned(tomllib.loads(text)) == _pruned(wanted))
    except tomllib.TOMLDecodeError:
        return False


def _pruned(data: Mapping[str, Any]) -> dict[str, Any]:
    result = {name: _pruned(value) if isinstance(value, dict) else value for name, value in data.items()}
    return {name: value for name, value in result.items() if value != {}}


def _apply_to_data(data: dict[str, Any], change: Change) -> None:
    *above, last = change.path
    for name in above:
        data = data.setdefault(name, {})
    if change.value is None:
        data.pop(last, None)
    else:
        data[last] = change.value


def _without_lines(text: str, change: Change) -> str:
    """Leave out the lines that say nothing but what is removed. Comments of their own lines stay."""
    size = len(change.path)
    gone: set[int] = set()
    for statement in statements(text):
        if all(path[:size] == change.path for path in statement.paths):
            gone.update(range(statement.first, statement.last + 1))
    lines = text.split("\n")
    kept: list[str] = []
    for number, line in enumerate(lines, start=1):
        if number in gone:
            continue
        is_gap = not line.strip() and number - 1 in gone and (not kept or not kept[-1].strip())
        if not is_gap:  # one blank line is enough where lines went
            kept.append(line)
    return "\n".join(kept)


def _with_list_mended(text: str, change: Change) -> str:
    """Take items out of a list and put others at its end, so that comments in it stay; else nothing.

    What stands behind an item that goes, goes too. Where the items' order changes this is no way.
    """
    import tomlkit
    from tomlkit.items import Array

    document: Any = tomlkit.parse(text)
    items: Any = document
    for name in change.path:
        items = items.get(name) if isinstance(items, dict) else None
    if not isinstance(items, Array) or not isinstance(change.value, list) or "#" not in items.as_string():
        return text
    for index in reversed(range(len(items))):
        if items[index] not in change.value:
            del items[index]
    for value in change.value[len(items) :]:
        items.append(value)
    return tomlkit.dumps(document)


def _with_tomlkit(text: str, change: Change) -> str:
    import tomlkit
    from tomlkit.items import InlineTable, Table

    document: Any = tomlkit.parse(text)
    *above, last = change.path
    table = document
    for depth, name in enumerate(above, start=1):
        if name not in table:
            if isinstance(table, InlineTable) or name in _ONE_LINE:
                table[name] = tomlkit.inline_table()
            else:
                table[name] = tomlkit.table(is_super_table=depth < len(above))
        table = table[name]
    if change.value is None:
        del table[last]
    elif isinstance(change.value, dict) and isinstance(table.get(last), Table):
        for name in [*table[last]]:
            if name not in change.value:
                del table[last][name]
        table[last].update(change.value)
    elif isinstance(change.value, dict):
        items = (f"{name} = {tomlkit.item(value).as_string()}" for name, value in change.value.items())
        table[last] = tomlkit.value(f"{{ {', '.join(items)} }}")  # its own inline tables have no spaces
    else:
        table[last] = change.value
    return _with_gap_after(tomlkit.dumps(document), change.path)


def _with_gap_after(text: str, path: tuple[str, ...]) -> str:
    """A blank line between a table that was put in and the next header."""
    lines = text.split("\n")
    for statement in statements(text):
        if any(named[: len(path)] == path for named in statement.paths):
            following = lines[statement.last : statement.last + 1]
            if following and following[0].startswith("["):
                lines.insert(statement.last, "")
                return "\n".join(lines)
    return text


def _saved_like(path: Path, text: str) -> str:
    """With line ends as the file has them, and its byte-order mark: somebody's editor chose them."""
    try:
        data = path.read_bytes()
        is_crlf = b"\r\n" in data
    except OSError:
        data, is_crlf = b"", os.linesep == "\r\n"
    mark = "\ufeff" if data.startswith(codecs.BOM_UTF8) else ""
    return mark + (text.replace("\n", "\r\n") if is_crlf else text)


def replace_config(path: Path, before: str | None, after: str, *, shown: Path) -> None:
    """Put a whole new text in place of the one that was read before.

    Args:
        shown: the file in which errors are, for their lines.
    Raises:
        UsageError: it is not valid, or the file is not any more as it was.
    """
    check_text(after, shown)
    with locked(path):
        if read_config(path) != before:
            raise UsageError(f"{path} was changed by somebody else in the meantime")
        write_private(path, _saved_like(path, after))
