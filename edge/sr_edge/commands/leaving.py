"""What the user is told of what leaves this machine, before it does."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from sr_edge.commands.output import note
from sr_edge.events import SpanOpened
from sr_edge.report import size
from sr_edge.terminal import safe_json

if TYPE_CHECKING:
    from sr_edge.remote.endpoint import Preview
    from sr_edge.transcript import Transcript


def disclosure(event: SpanOpened, where: str) -> str:
    """What goes where, before the first span of a conversation leaves.

    Args:
        where: host and port.
    """
    to = receiver(event.remote, where)
    return f"sending the question and the answer so far ({size(event.sent_bytes)} at first) to {to}"


def receiver(name: str | None, where: str) -> str:
    """`lab at api.example.com:443`"""
    return where if name in (None, where) else f"{name} at {where}"


def print_preview(preview: Preview | None, transcript: Transcript, *, as_object: bool) -> None:
    """The request as it would be sent; the key is not shown."""
    if preview is None:
        refused = next((span.error for span in transcript.spans if span.error), None)
        note(f"nothing would be sent: {refused or 'the small model did not ask'}")
        return
    body = json.dumps(preview.body, ensure_ascii=False, indent=None if as_object else 2)
    if as_object:
        shown = {"method": preview.method, "url": preview.url, "headers": dict(preview.headers)}
        line = json.dumps({**shown, "body": preview.body, "note": preview.note}, ensure_ascii=False)
        print(safe_json(line, sys.stdout.encoding), flush=True)
        return
    print(safe_json(f"{preview.method} {preview.url}", sys.stdout.encoding))
    for name, value in preview.headers.items():
        print(safe_json(f"{name}: {value}", sys.stdout.encoding))
    print()
    print(safe_json(body, sys.stdout.encoding), flush=True)
    if preview.note:
        note(preview.note)
