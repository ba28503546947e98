"""The peer's loop, against two servers that follow a script: what it sends, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from sr_edge.bench.paper import CHUNK, MAX_CHUNKS, PROBE, PaperAnswer, PaperClient
from sr_edge.errors import RemoteError
from sr_edge.testing.fault_endpoint import FaultEndpoint, Op, Request, Script, failure, page

PROMPT = "question: <bigmodel> in it\n"
LETTERS = [chr(97 + n % 26) for n in range(CHUNK)]


def text(
    written: str, finish: str = "stop", stop_reason: str | None = None
) -> Callable[[Request], Sequence[Op]]:
    """A whole reply, each character a token."""

    def reply(request: Request) -> Sequence[Op]:
        choice = {"text": written, "finish_reason": finish, "stop_reason": stop_reason}
        choice["logprobs"] = {"tokens": list(written)}  # type: ignore[assignment]
        return page({"choices": [choice], "usage": {"completion_tokens": len(written)}})

    return reply


def probed(answers: Callable[[int], str]) -> Script:
    """To each prefix, from 1 on, what the small model would write after it."""

    def reply(request: Request) -> Sequence[Op]:
        choices = [{"text": answers(n)} for n in range(1, len(request.body["prompt"]) + 1)]
        return page({"choices": choices, "usage": {"completion_tokens": PROBE * len(choices)}})

    return reply


@contextmanager
def asked(
    small: Sequence[Script], big: Sequence[Script], max_tokens: int = 10_000
) -> Iterator[tuple[PaperAnswer, list[Any], list[Any]]]:
    with FaultEndpoint(*small) as one, FaultEndpoint(*big) as other:
        with PaperClient(one.url, other.url, max_tokens=max_tokens) as client:
            answer = client.answer(PROMPT)
        yield answer, [each.body for each in one.requests], [each.body for each in other.requests]


CHUNK_TEXT = text("".join(LETTERS), "length")
OPENED = text("so <bigmodel>", "stop", "<bigmodel>")


def test_a_span_ends_at_the_first_prefix_after_which_the_small_model_closes_it() -> None:
    closes = probed(lambda n: "!!</bigmodel> on" if n >= 10 else "on and on")
    with asked([OPENED, closes, text(" done")], [CHUNK_TEXT]) as (answer, small, big):
        kept = "".join(LETTERS[:10])
        assert answer.text == f"so <bigmodel>{kept}!!</bigmodel> done"
        assert answer.visible == f"so {kept}!! done"
        assert [body["prompt"] for body in big] == ["question:  in it\nso "], "no marker for the large model"
        assert big[0]["max_tokens"] == CHUNK
        begun = PROMPT + "so <bigmodel>"
        assert small[1]["prompt"] == [begun + "".join(LETTERS[:n]) for n in range(1, CHUNK + 1)]
        assert small[1]["max_tokens"] == PROBE
        assert small[2]["prompt"] == PROMPT + answer.text.removesuffix(" done"), "all of it, once more"
        assert (answer.spans, answer.requests) == (1, 4)
        assert (answer.big_tokens, answer.probed_tokens) == (CHUNK, CHUNK * PROBE)


def test_a_chunk_that_nobody_closes_is_kept_and_another_one_follows() -> None:
    never, closes = probed(lambda n: "on"), probed(lambda n: "</bigmodel>")
    script = [OPENED, never, closes, text("")]
    with asked(script, [CHUNK_TEXT, CHUNK_TEXT]) as (answer, _, big):
        assert answer.text == "so <bigmodel>" + "".join(LETTERS) + "a</bigmodel>"
        assert big[1]["prompt"].endswith("so " + "".join(LETTERS))


def test_the_last_chunk_is_not_probed_and_ends_the_span() -> None:
    never = probed(lambda n: "on")
    small = [OPENED, *[never] * (MAX_CHUNKS - 1), text(" done")]
    with asked(small, [CHUNK_TEXT] * MAX_CHUNKS) as (answer, _, big):
        assert len(big) == MAX_CHUNKS
        assert answer.text == "so <bigmodel>" + "".join(LETTERS) * MAX_CHUNKS + "</bigmodel> done"


def test_the_large_models_end_ends_the_answer() -> None:
    with asked([OPENED], [text("42.", "stop")]) as (answer, _, _):
        assert answer.text == "so <bigmodel>42."
        assert [grown.writer for grown in answer.growth] == ["local", "remote"]
        assert [grown.characters for grown in answer.growth] == [3, 6]


def test_an_answer_without_a_span_is_one_request() -> None:
    with asked([text("all alone")], []) as (answer, small, _):
        assert (answer.text, answer.requests, answer.spans) == ("all alone", 1, 0)
        assert small[0]["stop"] == ["<bigmodel>"]
        assert answer.sent_characters == len(PROMPT)


def test_tokens_are_counted_against_the_limit_on_both_sides() -> None:
    with asked([OPENED], [text("x" * 7, "length")], max_tokens=20) as (answer, small, big):
        assert (small[0]["max_tokens"], big[0]["max_tokens"]) == (20, 20 - len("so <bigmodel>"))
        assert answer.text.endswith("x" * 7)


def test_a_failing_server_is_an_error_with_its_words() -> None:
    with pytest.raises(RemoteError, match=r"503.*busy"), asked([failure(503, "busy")], []):
        pass
