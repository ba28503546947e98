"""What JSON Schema cannot say of our requests, since it knows no last item: what can be continued."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: Any) -> bool:
    """The last message is the assistant's where it is continued, and its thought where no content follows."""
    body = case.body
    where = body.get("continue_final_message") if isinstance(body, dict) else None
    if where not in (True, "content", "reasoning_content"):
        return True
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict):
        return True
    if last.get("role") in ("system", "developer", "user"):
        return False
    return where != "reasoning_content" or not last.get("content")
