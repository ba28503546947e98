"""`sr-edge serve` judged by OpenAI's own Python client, used as its documentation says."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.serve.judges.serving import PATIENCE, Server, eventually, needs, served

from sr_edge.extract import last_boxed
from sr_edge.suites.demo import HARD_KINDS, problems

pytestmark = [pytest.mark.slow, needs("openai")]
openai = pytest.importorskip("openai")

ASKED = [
    problem for problem in problems(seed=11, n=40) if any(step.kind in HARD_KINDS for step in problem.steps)
][:8]
"""Each has a step that the small model asks help for."""
MESSAGES = [{"role": "user", "content": ASKED[0].question}]
LONG = 6000
"""Tokens that take many seconds, where nobody stops them."""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url, api_key=server.token, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: Any) -> str:
    return client.models.list().data[0].id


@pytest.fixture
def tight(rambling: Path, tmp_path: Path) -> Iterator[Server]:
    """One answer at a time, and one that waits."""
    with served(tmp_path, "-m", rambling, "--offline", "--parallel", 1, "--queue", 1) as running:
        yield running


def ask(client: Any, model: str, **options: Any) -> Any:
    return client.chat.completions.create(
        **{"model": model, "messages": MESSAGES, "temperature": 0} | options
    )


def text_of(message: Any) -> tuple[str, str]:
    """The thought, which is no field of the client's types, and the answer."""
    return (message.model_extra or {}).get("reasoning_content") or "", message.content or ""


def gathered(chunks: list[Any]) -> tuple[str, str]:
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    return "".join(text_of(delta)[0] for delta in deltas), "".join(text_of(delta)[1] for delta in deltas)


# --- models -------------------------------------------------------------------------------------------------


def test_models_are_listed_and_each_can_be_retrieved(client: Any, model: str) -> None:
    ids = [found.id for found in client.models.list()]
    assert ids == [model, f"{model}:local", f"{model}:remote"]
    assert [client.models.retrieve(id).id for id in ids] == ids


# --- whole answers ------------------------------------------------------------------------------------------


def test_an_answer_has_its_thought_apart_and_says_who_wrote_what(client: Any, model: str) -> None:
    reply = ask(client, model)
    (choice,) = reply.choices
    thought, answer = text_of(choice.message)
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert last_boxed(answer) == ASKED[0].answer
    assert thought
    assert "</think>" not in thought + answer
    told = choice.model_extra["sr_edge"]
    for part, text in (("reasoning", thought), ("answer", answer)):
        assert "".join(segment["text"] for segment in told["segments"] if segment["part"] == part) == text
    spans = [segment["span"] for segment in told["segments"] if segment["origin"] == "remote"]
    assert spans
    assert [span["span"] for span in told["spans"]] == sorted(set(spans))


def test_tokens_are_counted_local_and_remote_apart(client: Any, model: str) -> None:
    usage = ask(client, model).usage
    own = usage.model_extra["sr_edge"]
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    assert own["local_tokens"] + own["remote_tokens"] == usage.completion_tokens
    assert min(own["local_tokens"], own["remote_tokens"], own["spans"]) >= 1
    assert own["share"] == pytest.approx(own["remote_tokens"] / usage.completion_tokens)
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens


def test_the_variants_write_alone(client: Any, model: str) -> None:
    for variant, nobody in (("local", "remote"), ("remote", "local")):
        usage = ask(client, f"{model}:{variant}").usage
        assert usage.model_extra["sr_edge"][f"{nobody}_tokens"] == 0
        assert usage.completion_tokens > 0


def test_the_raw_response_can_be_had(client: Any, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, temperature=0)
    assert raw.status_code == 200
    assert raw.headers["content-type"].startswith("application/json")
    assert "access-control-allow-origin" not in raw.headers
    assert text_of(raw.parse().choices[0].message) == text_of(ask(client, model).choices[0].message)


def test_an_answer_can_be_cut_by_length_and_by_a_stop(client: Any, model: str) -> None:
    cut = ask(client, model, max_completion_tokens=7)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 7)
    stopped = ask(client, model, stop=["\\boxed"]).choices[0]
    whole = text_of(ask(client, model).choices[0].message)
    assert stopped.finish_reason == "stop"
    assert text_of(stopped.message) == (whole[0], whole[1].partition("\\boxed")[0])


def test_a_seed_repeats_an_answer(client: Any, model: str) -> None:
    def drawn(seed: int) -> tuple[str, str]:
        reply = ask(client, f"{model}:local", temperature=1.5, top_p=1, seed=seed)
        return text_of(reply.choices[0].message)

    assert drawn(5) == drawn(5)
    assert len({drawn(seed) for seed in range(5)}) > 1


def test_logprobs_are_those_of_the_small_models_own_tokens(client: Any, model: str) -> None:
    reply = ask(client, model, logprobs=True)
    entries = reply.choices[0].logprobs.content
    own = "".join(
        segment["text"]
        for segment in reply.choices[0].model_extra["sr_edge"]["segments"]
        if segment["origin"] == "local"
    )
    assert 0 < len(entries) <= reply.usage.model_extra["sr_edge"]["local_tokens"]
    assert all(entry.logprob <= 0 and not entry.top_logprobs for entry in entries)
    assert (
        b"".join(bytes(entry.bytes) for entry in entries).decode().replace("</think>", "").split()
        == own.split()
    )


def test_a_begun_answer_is_continued(client: Any, model: str) -> None:
    local = f"{model}:local"
    thought, answer = text_of(ask(client, local).choices[0].message)
    head = thought[: thought.index("\n") + 1]
    begun = {"role": "assistant", "content": "", "reasoning_content": head}
    rest = ask(
        client,
        local,
        messages=[*MESSAGES, begun],
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert text_of(rest.choices[0].message) == (thought.removeprefix(head), answer)


# --- streams ------------------------------------------------------------------------------------------------


def test_a_stream_is_the_whole_answer_in_pieces(client: Any, model: str) -> None:
    whole = ask(client, model)
    chunks = list(ask(client, model, stream=True, stream_options={"include_usage": True}))
    *told, last = chunks
    assert gathered(told) == text_of(whole.choices[0].message)
    assert [reason for chunk in told if (reason := chunk.choices[0].finish_reason)] == ["stop"]
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in told)
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_being_asked_a_stream_tells_no_usage(client: Any, model: str) -> None:
    chunks = list(ask(client, model, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_each_chunk_says_who_wrote_it(client: Any, model: str) -> None:
    whole = ask(client, model).choices[0]
    opened: list[int] = []
    closed: list[int] = []
    pieces: list[tuple[int | None, str]] = []
    for chunk in ask(client, model, stream=True):
        mark = chunk.model_extra["sr_edge"]
        assert mark["origin"] == ("local" if mark["span"] is None else "remote")
        thought, answer = text_of(chunk.choices[0].delta)
        if "opened" in mark:
            opened.append(mark["span"])
        elif "closed" in mark:
            closed.append(mark["span"])
            assert mark["closed"]["end"]
        elif text := thought + answer:
            pieces.append((mark["span"], text))
    assert opened == closed == [span["span"] for span in whole.model_extra["sr_edge"]["spans"]]
    remote = "".join(text for span, text in pieces if span is not None)
    segments = whole.model_extra["sr_edge"]["segments"]
    assert remote == "".join(segment["text"] for segment in segments if segment["origin"] == "remote") != ""


def test_the_clients_own_gathering_of_a_stream_comes_to_the_whole(client: Any, model: str) -> None:
    whole = ask(client, model)
    with client.chat.completions.stream(model=model, messages=MESSAGES, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_async_clients_get_the_same_answers_at_once(server: Server, client: Any, model: str) -> None:
    asked = [[{"role": "user", "content": problem.question}] for problem in ASKED]

    async def whole(asker: Any, messages: list[Any]) -> tuple[str, str]:
        return text_of((await ask(asker, model, messages=messages)).choices[0].message)

    async def streamed(asker: Any, messages: list[Any]) -> tuple[str, str]:
        return gathered([chunk async for chunk in await ask(asker, model, messages=messages, stream=True)])

    async def all_of_them() -> tuple[list[Any], list[Any]]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key=server.token, timeout=PATIENCE) as asker:
            wholes = await asyncio.gather(*(whole(asker, messages) for messages in asked))
            streams = await asyncio.gather(*(streamed(asker, messages) for messages in asked))
            return wholes, streams

    alone = [text_of(ask(client, model, messages=messages).choices[0].message) for messages in asked]
    wholes, streams = asyncio.run(all_of_them())
    assert wholes == alone
    assert streams == alone


# --- completions --------------------------------------------------------------------------------------------


def test_completions_go_on_with_a_prompt_in_text_or_ids(client: Any, model: str) -> None:
    reply = ask(client, model, extra_body={"sr_edge": {"events": True}})
    thought, answer = text_of(reply.choices[0].message)
    started = reply.choices[0].model_extra["sr_edge"]["events"][0]
    text = f"<|im_start|>user\n{ASKED[0].question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    options = {"model": model, "temperature": 0, "max_tokens": 500}
    by_text = client.completions.create(prompt=text, **options)
    by_ids = client.completions.create(prompt=started["prompt_ids"], **options)
    chunks = list(client.completions.create(prompt=text, stream=True, **options))
    written = by_text.choices[0].text
    assert written.split() == f"{thought} </think> {answer}".split()
    assert by_ids.choices[0].text == written
    assert "".join(chunk.choices[0].text for chunk in chunks) == written
    assert by_ids.usage.prompt_tokens == len(started["prompt_ids"])
    assert by_text.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"


def test_several_prompts_are_several_choices(client: Any, model: str) -> None:
    prompts = [f"<|im_start|>user\n{problem.question}<|im_end|>\n" for problem in ASKED[:3]]
    options = {"model": f"{model}:local", "temperature": 0, "max_tokens": 12}
    together = client.completions.create(prompt=prompts, echo=True, **options)
    alone = [client.completions.create(prompt=prompt, echo=True, **options) for prompt in prompts]
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.text for choice in together.choices] == [reply.choices[0].text for reply in alone]
    assert all(
        choice.text.startswith(prompt) for choice, prompt in zip(together.choices, prompts, strict=True)
    )


def test_choices_of_one_prompt_are_those_of_their_seeds(client: Any, model: str) -> None:
    options = {"model": f"{model}:local", "temperature": 1, "max_tokens": 12}
    together = ask(client, n=3, seed=5, **options)
    alone = [ask(client, seed=seed, **options) for seed in (5, 6, 7)]
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    told = [text_of(choice.message) for choice in together.choices]
    assert told == [text_of(reply.choices[0].message) for reply in alone]
    assert together.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert together.usage.completion_tokens == sum(reply.usage.completion_tokens for reply in alone)
    streamed: list[list[Any]] = [[], [], []]
    for chunk in ask(client, n=3, seed=5, stream=True, **options):
        streamed[chunk.choices[0].index].append(chunk)
    assert [gathered(chunks) for chunks in streamed] == told


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error(server: Server) -> None:
    for key in ("wrong", server.token[:-1], server.token + "x"):
        with (
            openai.OpenAI(base_url=server.url, api_key=key, max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            stranger.models.list()
        assert server.token not in str(caught.value)


def test_what_does_not_exist_is_a_not_found_error(client: Any, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match=re.escape(model)) as caught:
        ask(client, "gpt-9")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="text")


REFUSED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 3},
    "max_tokens": {"max_tokens": 0},
    "n": {"n": 17},
    "seed": {"seed": -1},
    "top_logprobs": {"logprobs": True, "top_logprobs": 3},
    "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "response_format": {"response_format": {"type": "json_object"}},
    "logit_bias": {"logit_bias": {"5": 3}},
    "n_discard": {"extra_body": {"n_discard": -1}},
    "messages[0].content[0].image_url": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}],
            }
        ]
    },
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_is_not_done_here_is_a_bad_request_that_names_it(client: Any, model: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, **REFUSED[param])
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["message"]


def test_what_the_built_in_pair_cannot_answer_is_a_bad_request_in_a_stream_too(
    client: Any, model: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, model, messages=[{"role": "user", "content": "Write a poem."}], stream=stream)
        assert caught.value.code == "refused"


def test_a_prompt_that_does_not_fit_is_a_bad_request(client: Any, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="four five six " * 2000, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


# --- a busy server ------------------------------------------------------------------------------------------


def counted(server: Server, name: str) -> float:
    """A line of /metrics."""
    with openai.OpenAI(base_url=server.url, api_key=server.token) as client:
        text = client.get(f"{server.root}/metrics", cast_to=str)
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(value)


def test_a_client_that_retries_is_answered_once_there_is_room(tight: Server) -> None:
    with (
        openai.OpenAI(base_url=tight.url, api_key=tight.token, timeout=PATIENCE) as client,
        ThreadPoolExecutor(3) as threads,
    ):
        model = client.models.list().data[0].id
        enough = threading.Event()

        def hold() -> None:
            with ask(client, model, max_tokens=LONG, stream=True) as stream:
                for _ in stream:
                    if enough.is_set():
                        return

        held = [threads.submit(hold)]
        eventually(lambda: counted(tight, "sr_edge_running") == 1)
        held.append(threads.submit(hold))
        eventually(lambda: counted(tight, "sr_edge_waiting") == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            ask(client.with_options(max_retries=0), model)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.code == "rate_limit_exceeded"
        refusals = 'sr_edge_requests_total{route="/v1/chat/completions",status="429"}'
        before = counted(tight, refusals)
        retrying = threads.submit(
            client.with_options(max_retries=100).chat.completions.with_raw_response.create,
            model=model,
            messages=MESSAGES,
            max_tokens=4,
        )
        eventually(lambda: counted(tight, refusals) > before)
        enough.set()
        answered = retrying.result(PATIENCE)
        for holder in held:
            holder.result(PATIENCE)
    assert answered.retries_taken >= 1
    assert answered.parse().usage.completion_tokens == 4


def test_closing_a_stream_frees_the_server(tight: Server) -> None:
    with openai.OpenAI(base_url=tight.url, api_key=tight.token, timeout=PATIENCE) as client:
        model = client.models.list().data[0].id
        for _ in range(3):
            with ask(client, model, max_tokens=LONG, stream=True) as stream:
                for _ in zip(range(5), stream, strict=False):
                    pass
        after = ask(client, model, max_tokens=4)
        assert after.usage.completion_tokens == 4
        assert counted(tight, "sr_edge_hang_ups_total") == 3
        assert counted(tight, 'sr_edge_tokens_total{origin="local"}') < LONG


def test_cancelling_an_async_request_frees_the_server(tight: Server) -> None:
    async def give_up() -> int:
        async with openai.AsyncOpenAI(base_url=tight.url, api_key=tight.token, timeout=PATIENCE) as client:
            model = (await client.models.list()).data[0].id
            asked = asyncio.create_task(ask(client, model, max_tokens=LONG))
            while not asked.done() and await asyncio.to_thread(counted, tight, "sr_edge_running") < 1:
                await asyncio.sleep(0.02)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            return (await ask(client, model, max_tokens=4)).usage.completion_tokens

    assert asyncio.run(give_up()) == 4
    assert counted(tight, 'sr_edge_tokens_total{origin="local"}') < LONG
