"""The peer: SplitReason's own loop (arXiv 2504.16379, `modes/speculative_reasoning.py` of its service).

Two servers behind HTTP, and a client that holds nothing but text. The small model writes until its opening
marker; the large one goes on from the whole text without markers, 64 tokens at a time; then the small one is
asked, at every prefix of those 64, what it would write next, 8 tokens each, in one batch; the first prefix
after which a closing marker comes is kept, with what the small model wrote up to the marker. Every request
carries the whole text again; what saves the servers from reading all of it again is their prefix cache.

Kept as they are: the sizes, the cap of nine chunks, that the large model's own end ends the answer, and that
requests are whole, not streamed. Left out are faults that would only make it worse: the prefix that is taken
is the one that was found (theirs is its mirror image), the last text is not appended twice, a failed request
is an error, connections are kept, and markers that are one token are spelled out for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

import httpx

from sr_edge.errors import RemoteError
from sr_edge.markers import CLOSE, OPEN

CHUNK: Final = 64
"""Tokens that the large model writes in one request."""
PROBE: Final = 8
"""Tokens of the small model after each prefix of a chunk."""
MAX_CHUNKS: Final = 9
"""Of one span; the last is not probed."""

_BEGINS_CLOSE: Final = CLOSE[:5]  # `</big`, as theirs looks for it
_TIMEOUT: Final = 600.0


@dataclass(frozen=True, slots=True)
class Growth:
    """So many characters of the answer were there after so many seconds, the last of them by `writer`."""

    seconds: float
    characters: int
    writer: Literal["local", "remote"]


@dataclass(frozen=True, slots=True)
class PaperAnswer:
    text: str
    """With markers, without the prompt."""
    seconds: float
    spans: int
    requests: int
    sent_characters: int
    """Of all prompts of all requests."""
    big_tokens: int
    """That the large model wrote, kept or not."""
    probed_tokens: int
    """That the small model wrote to find the ends of spans."""
    growth: tuple[Growth, ...]

    @property
    def visible(self) -> str:
        return unmarked(self.text)


def unmarked(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "")


class PaperClient:
    """For one thread. Close it."""

    def __init__(
        self, small_url: str, big_url: str, *, max_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        max_tokens: of an answer, as both servers count together.
        """
        self._small = f"{small_url}/v1/completions"
        self._big = f"{big_url}/v1/completions"
        self._max_tokens = max_tokens
        self._clock = clock
        self._http = httpx.Client(trust_env=False, timeout=_TIMEOUT)

    def answer(self, prompt: str) -> PaperAnswer:
        """Raises:
        RemoteError: a server cannot be reached, or fails.
        """
        answer = _Answer(self._ask, self._small, self._big, prompt, self._max_tokens, self._clock)
        return answer.written()

    def _ask(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = self._http.post(url, json=body)
        except httpx.HTTPError as error:
            raise RemoteError(f"{url}: {error!r}: is the server running?") from None
        if response.status_code != 200:
            raise RemoteError(f"{url}: {response.status_code}: {response.text[:200]}")
        reply: dict[str, Any] = response.json()
        return reply

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


@dataclass(slots=True)
class _Answer:
    """One answer in the making."""

    ask: Callable[[str, dict[str, Any]], dict[str, Any]]
    small: str
    big: str
    prompt: str
    max_tokens: int
    clock: Callable[[], float]
    text: str = ""
    tokens: int = 0
    spans: int = 0
    requests: int = 0
    sent_characters: int = 0
    big_tokens: int = 0
    probed_tokens: int = 0
    growth: list[Growth] = field(default_factory=list)
    began: float = 0.0

    def written(self) -> PaperAnswer:
        self.began = self.clock()
        while self._small_writes() and self._big_writes():
            pass
        return PaperAnswer(
            self.text,
            self.clock() - self.began,
            self.spans,
            self.requests,
            self.sent_characters,
            self.big_tokens,
            self.probed_tokens,
            tuple(self.growth),
        )

    def _small_writes(self) -> bool:
        """Up to a marker. Returns whether it asked for the large model."""
        left = self.max_tokens - self.tokens
        if left < 1:
            return False
        body = {"stop": [OPEN], "include_stop_str_in_output": True, "max_tokens": left}
        reply = self._complete(self.small, [self.prompt + self.text], body)
        (choice,) = reply["choices"]
        self.tokens += reply["usage"]["completion_tokens"]
        self._add(choice["text"], "local")
        return bool(choice["stop_reason"] == OPEN)

    def _big_writes(self) -> bool:
        """One span. Returns whether the small model goes on."""
        self.spans += 1
        for chunk in range(1, MAX_CHUNKS + 1):
            left = self.max_tokens - self.tokens
            if left < 1:
                return False
            body = {"logprobs": 1, "max_tokens": min(CHUNK, left)}
            reply = self._complete(self.big, [unmarked(self.prompt + self.text)], body)
            (choice,) = reply["choices"]
            tokens = choice["logprobs"]["tokens"]
            self.big_tokens += reply["usage"]["completion_tokens"]
            self.tokens += reply["usage"]["completion_tokens"]
            if choice["finish_reason"] != "length" or len(tokens) < CHUNK:
                self._add(choice["text"], "remote")
                return False
            if chunk == MAX_CHUNKS:
                self._add(choice["text"], "remote")
                self.text += CLOSE
                return True
            if (end := self._find_end(tokens)) is not None:
                self.tokens -= CHUNK - end[0]
                self._add("".join(tokens[: end[0]]) + end[1] + CLOSE, "remote")
                return True
            self._add(choice["text"], "remote")
        raise AssertionError("the last chunk ends the span")

    def _find_end(self, tokens: list[str]) -> tuple[int, str] | None:
        """How many of the tokens are kept, and what the small model wrote after them up to its marker."""
        before = self.prompt + self.text
        prefixes = [before + "".join(tokens[:n]) for n in range(1, len(tokens) + 1)]
        reply = self._complete(self.small, prefixes, {"max_tokens": PROBE})
        self.probed_tokens += reply["usage"]["completion_tokens"]
        for n, choice in enumerate(reply["choices"], start=1):
            head, marker, _ = choice["text"].partition(_BEGINS_CLOSE)
            if marker:
                return n, head
        return None

    def _complete(self, url: str, prompts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        self.requests += 1
        self.sent_characters += sum(map(len, prompts))
        prompt: list[str] | str = prompts if len(prompts) > 1 else prompts[0]
        return self.ask(url, {"prompt": prompt, "temperature": 0, "skip_special_tokens": False, **body})

    def _add(self, text: str, writer: Literal["local", "remote"]) -> None:
        self.text += text
        self.growth.append(Growth(self.clock() - self.began, len(unmarked(self.text)), writer))
