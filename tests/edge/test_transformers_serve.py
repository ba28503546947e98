"""The endpoint against another server that we did not write: `transformers serve`, a child process.

It has raw completions, and a chat that continues nothing: what stands at the end of `messages` is a turn that
is over. It refuses parameters that it doesn't know, tells usage without being asked, ends a stream without
`[DONE]` and names the models in its cache. Tiny checkpoints lie there, made here:

wordy     random weights, so that all of the prompt decides what it writes: that is compared with what
          transformers generates after the same prompt
reciting  goes by the last token alone: after a letter comes the next one, after a line end "a". It can be
          surveyed as a model that knows the alphabet
thinking  the same, but its template opens a thought
"""

import importlib.util
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from tests.tiny_gguf import CHATML, CONTROL, USER_DEFINED, byte_spellings

from sr_edge.remote.dialects import asked
from sr_edge.remote.endpoint import Deadlines, Endpoint
from sr_edge.roles import Message, Outcome, Prompt
from sr_edge.template import render

NEEDS = ("torch", "transformers", "accelerate", "fastapi", "openai", "pydantic", "uvicorn")
MISSING = [name for name in NEEDS if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)}"),
]

QUESTION = [Message("system", "Be brief."), Message("user", "how?")]
ANSWER = "First, add the two numbers:"
PLAIN = CHATML.replace("<think>\n", "")
TEMPLATES = {"wordy": PLAIN, "reciting": PLAIN, "thinking": CHATML}
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
LETTERS = "bcdfghklmnprstvwz"
WORDS = [f"Ġ{a}{vowel}{b}" for a in LETTERS for vowel in "aeiou" for b in LETTERS]
"""No merge leads to them: they are only written, never read."""
ORDINARY = [*byte_spellings(), *(f"Ġ{letter}" for letter in ALPHABET), *WORDS]
SPECIAL = [*CONTROL, *USER_DEFINED]
DEADLINES = Deadlines(connect=10.0, first_byte=20.0, first_content=20.0, idle=20.0)
START = 90.0
"""Seconds, on a machine that has other things to do."""


@dataclass(frozen=True)
class Checkpoint:
    tokenizer: Any
    model: Any

    def generated(self, messages, answer, max_tokens):
        """What transformers writes after the conversation and the answer, and how that ended."""
        prompt = self.tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        sent = self.tokenizer(prompt + answer, return_tensors="pt")
        num_sent = sent["input_ids"].shape[-1]
        ids = self.model.generate(**sent, max_new_tokens=max_tokens, do_sample=False)[0, num_sent:]
        end = "cap" if len(ids) == max_tokens else "stop"
        written = self.tokenizer.decode(ids, skip_special_tokens=True)
        return written, Outcome(end, prompt_tokens=num_sent, completion_tokens=len(ids))


@dataclass(frozen=True)
class Serving:
    url: str
    checkpoints: dict[str, Checkpoint]

    def endpoint(self, name, **options):
        def prompt(messages):
            rendering = render(TEMPLATES[name], messages)
            return Prompt((), rendering.text, rendering.opening)

        options = {"model": f"tests/{name}", "temperature": 0.0, "deadlines": DEADLINES} | options
        return Endpoint(self.url, prompt=prompt, **options)

    def spans(self, name, answers, max_tokens, **options):
        with self.endpoint(name, **options) as remote:
            return [listen(remote.stream(QUESTION, answer, max_tokens)) for answer in answers]


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    home = tmp_path_factory.mktemp("transformers-serve")
    checkpoints = {name: write_checkpoint(home / "hub", name) for name in TEMPLATES}
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environ |= {
        "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    command += ["--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    log = home / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Serving(url_of(server, log), checkpoints)
    finally:
        server.terminate()
        try:
            server.wait(20.0)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def url_of(server, log):
    until = time.monotonic() + START
    while time.monotonic() < until and server.poll() is None:
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.1)
    pytest.fail(f"transformers serve did not start:\n{log.read_text(errors='replace')[-4000:]}")


def listen(span):
    pieces = []
    while (piece := span.read(1.0)) is not None:
        pieces.append(piece)
    span.close()
    return "".join(pieces), span.outcome


# --- what it does -------------------------------------------------------------------------------------------


def test_the_models_are_those_in_its_cache(serving):
    with serving.endpoint("wordy") as remote:
        assert sorted(remote.models()) == ["tests/reciting", "tests/thinking", "tests/wordy"]


def test_completions_continue_exactly_and_tell_usage(serving):
    answers = ["", ANSWER, ANSWER + " bad. So we have 12"]
    expected = [serving.checkpoints["wordy"].generated(QUESTION, answer, 24) for answer in answers]
    assert len({written for written, _ in expected}) == len(answers), "every token of the prompt counts"
    with serving.endpoint("wordy", api="auto") as remote:
        assert [listen(remote.stream(QUESTION, answer, 24)) for answer in answers] == expected
        assert remote.capabilities is None, "nothing had to be found out"
        assert not remote._server.quirks.left_out, "nothing that we send is refused"


def test_a_space_that_was_sent_is_not_written_twice(serving):
    [(written, outcome)] = serving.spans("wordy", [ANSWER + " "], 8)
    expected, as_expected = serving.checkpoints["wordy"].generated(QUESTION, ANSWER + " ", 8)
    assert expected.startswith(" ")
    assert (written, outcome) == (expected.lstrip(" "), as_expected)


@pytest.mark.parametrize("name", ["reciting", "thinking"])
def test_the_end_of_a_turn_is_told_from_the_limit(serving, name):
    answers = ["Here it goes: a b", "Here it goes: w x"]
    spans = serving.spans(name, answers, 4)
    assert spans == [serving.checkpoints[name].generated(QUESTION, answer, 4) for answer in answers]
    assert [(written, outcome.end) for written, outcome in spans] == [(" c d e f", "cap"), (" y z", "stop")]


@pytest.mark.parametrize("api", ["chat", "vllm-plain"])
def test_flags_that_it_does_not_know_are_an_error_and_not_left_out(serving, api):
    [(written, outcome)] = serving.spans("wordy", [ANSWER], 16, api=api)
    assert (written, outcome.end, outcome.fault) == ("", "error", "refused")
    assert "HTTP 422" in outcome.error


@pytest.mark.parametrize("api", ["trailing-plain", "prefix"])
def test_in_chat_an_unfinished_answer_is_taken_for_a_turn_that_is_over(serving, api):
    """Marks of a message are ignored. Who names such a way gets what it gives."""
    [span] = serving.spans("wordy", [ANSWER], 16, api=api)
    wordy = serving.checkpoints["wordy"]
    assert span == wordy.generated([*QUESTION, Message("assistant", ANSWER)], "", 16)
    assert span[0] != wordy.generated(QUESTION, ANSWER, 16)[0], "that is no continuation"


@pytest.mark.parametrize("name", ["reciting", "thinking"])
def test_a_survey_finds_that_only_completions_continue(serving, name):
    with serving.endpoint(name) as remote:
        found = remote.survey()
        verdicts = dict(found.findings)
    assert (found.thought, found.text, found.has_usage) == ("completions", "completions", True)
    assert (verdicts.pop("completions+think"), verdicts.pop("completions")) == ("continues", "continues")
    # An answer that begins the alphabet again overlaps with ours, and that is cut where one was asked for.
    in_chat = {verdict for dialect, verdict in verdicts.items() if not dialect.startswith("instruct")}
    assert in_chat <= {"refused", "restarts", "leaked"}
    pairs = ("vllm-think", "vllm", "vllm-plain", "vllm-think+think", "vllm+think", "vllm-plain+think")
    assert {verdicts[dialect] for dialect in pairs} == {"refused"}


@pytest.mark.parametrize("name", ["reciting", "thinking"])
def test_a_survey_of_its_chat_alone_ends_with_a_turn_that_asks(serving, name):
    """So it is with its versions that have no raw completions."""
    with serving.endpoint(name) as remote:
        found = remote.survey(full=False)
    assert found.dialect(thinking=True).is_asking
    assert found.dialect(thinking=False).is_asking


def test_a_turn_that_asks_for_the_continuation_is_answered(serving):
    [span] = serving.spans("wordy", [ANSWER], 16, api="instruct")
    asking = [*QUESTION, Message("user", asked(ANSWER))]
    assert span == serving.checkpoints["wordy"].generated(asking, "", 16)
    assert len(span[0]) > 32, "enough words to compare"


def test_a_turn_that_has_nothing_to_continue_begins_the_answer(serving):
    [(written, outcome)] = serving.spans("wordy", [""], 16, api="instruct")
    expected, as_expected = serving.checkpoints["wordy"].generated(QUESTION, "", 16)
    assert (written, outcome) == (expected.lstrip(), as_expected)


def test_what_an_asked_turn_repeats_is_cut(serving):
    [(written, outcome)] = serving.spans("reciting", ["Here it goes: a b c d e f g h"], 64, api="instruct")
    assert (written, outcome.end) == (" " + " ".join(ALPHABET[8:]), "stop")


@pytest.mark.parametrize("api", ["auto", "instruct"])
def test_hanging_up_leaves_the_server_well(serving, api):
    """Were it still writing, the next span would have to wait until its deadline: there is one at a time."""
    with serving.endpoint("wordy", api=api) as remote:
        span = remote.stream(QUESTION, ANSWER, 20_000)
        while (piece := span.read(1.0)) == "":
            pass
        assert piece, "it writes"
        began = time.monotonic()
        span.close()
        assert time.monotonic() - began < 0.2
        assert span.outcome == Outcome("stop")
        messages = QUESTION if api == "auto" else [*QUESTION, Message("user", asked(ANSWER))]
        expected = serving.checkpoints["wordy"].generated(messages, ANSWER if api == "auto" else "", 8)
        assert listen(remote.stream(QUESTION, ANSWER, 8)) == expected


def test_an_unknown_model_is_an_error_in_one_line_and_harms_nothing(serving):
    [(written, outcome)] = serving.spans("wordy", [ANSWER], 8, model="tests/unknown")
    assert (written, outcome.end, outcome.fault) == ("", "error", "unreachable")
    assert re.fullmatch(r"127\.0\.0\.1:\d+ failed \(HTTP 500\): Internal Server Error", outcome.error)
    assert serving.spans("wordy", [ANSWER], 8) == [
        serving.checkpoints["wordy"].generated(QUESTION, ANSWER, 8)
    ]


# --- the checkpoints ----------------------------------------------------------------------------------------


def write_checkpoint(hub, name):
    """A model as if it had been downloaded: where the hub's cache would hold it."""
    repository, commit = hub / f"models--tests--{name}", "0" * 40
    path = repository / "snapshots" / commit
    path.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    tokenizer = new_tokenizer(TEMPLATES[name])
    model = random_model() if name == "wordy" else reciting_model()
    tokenizer.save_pretrained(path)
    model.save_pretrained(path)
    return Checkpoint(tokenizer, model)


def new_tokenizer(template):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: id for id, token in enumerate([*ORDINARY, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", letter) for letter in ALPHABET]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.add_tokens(list(USER_DEFINED))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def random_model():
    """Writes nothing but words."""
    import torch

    model, random = empty_model(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name:
                scale = 1.0 if "embed" in name else weights.shape[-1] ** -0.5
                weights.copy_(torch.randn(weights.shape, generator=random) * scale)
        words = torch.tensor([token in WORDS for token in [*ORDINARY, *SPECIAL]])
        model.lm_head.weight[~words] = 0.0
    return model


def reciting_model():
    """Its layers add nothing, so that each token's embedding says what comes next."""
    import torch

    model, random = empty_model(), torch.Generator().manual_seed(5)
    id_of = {token: id for id, token in enumerate([*ORDINARY, *SPECIAL])}
    following = {"Ċ": "a", "Ġz": "<|im_end|>"}
    following |= {f"Ġ{a}": f"Ġ{b}" for a, b in pairwise(ALPHABET)} | {"a": "Ġb"}
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name:
                weights.zero_()
        embeddings = model.model.embed_tokens.weight
        embeddings.copy_(torch.randn(embeddings.shape, generator=random))
        for token, next_token in following.items():
            model.lm_head.weight[id_of[next_token]] += embeddings[id_of[token]]
    return model


def empty_model():
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=len(ORDINARY) + len(SPECIAL), hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1 << 15,
        tie_word_embeddings=False, bos_token_id=None, dtype="float32",
        eos_token_id=len(ORDINARY) + SPECIAL.index("<|im_end|>"),
        pad_token_id=len(ORDINARY) + SPECIAL.index("<|endoftext|>"),
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).eval()
