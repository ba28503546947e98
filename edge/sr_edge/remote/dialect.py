"""How a server wants to be asked to continue a text, and what to try when it refuses. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sr_edge.split import Message, Prompt

_NO_SUCH_PATH = (404, 405, 501)
_BAD_REQUEST = (400, 422)
_CHAT_ONLY = re.compile(r"\bchat\b", re.IGNORECASE)
_USAGE = re.compile(r"stream_options|include_usage")
_FLAGS = re.compile(
    r"""continue_final_message | add_generation_prompt
    | \b(unknown | unrecogni[sz]ed | unexpected | unsupported | extra | additional) \W+ (\w+\W+){0,3}
      (field | input | parameter | argument | propert | key)""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What is known, or hoped, of one server."""

    api: Literal["completions", "chat"]
    is_settled: bool
    """The user named the API, or the server has answered through it."""
    has_continue_flags: bool = True
    """Chat: vLLM's pair, without which some servers begin a new turn."""
    has_usage: bool = True
    """Usage can be asked for at the end of the stream."""

    @property
    def path(self) -> str:
        return "/completions" if self.api == "completions" else "/chat/completions"

    def body(self, messages: Sequence[Message], prompt: Prompt, answer: str) -> dict[str, Any]:
        """The part of the request that says what to continue.

        Raw completions get the local model's own rendering; chat gets the messages and the partial answer
        as the last of them, for the server's template to render.
        """
        if self.api == "completions":
            body: dict[str, Any] = {"prompt": prompt.text + answer}
        else:
            turns = [{"role": message.role, "content": message.content} for message in messages]
            partial = {"role": "assistant", "content": prompt.opening + answer}
            body = {"messages": [*turns, partial]}
            if self.has_continue_flags:
                body |= {"continue_final_message": True, "add_generation_prompt": False}
        body["stream"] = True
        if self.has_usage:
            body["stream_options"] = {"include_usage": True}
        return body

    def after_refusal(self, status: int, text: str) -> Dialect | None:
        """What to try next; None if what was refused is the request itself, whatever the dialect."""
        has_no_completions = status in _NO_SUCH_PATH or (status == 400 and _CHAT_ONLY.search(text))
        if self.api == "completions" and not self.is_settled and has_no_completions:
            return replace(self, api="chat")
        if status not in _BAD_REQUEST:
            return None
        if self.has_usage and _USAGE.search(text):
            return replace(self, has_usage=False)
        if self.api == "chat" and self.has_continue_flags and _FLAGS.search(text):
            return replace(self, has_continue_flags=False)
        return None
