"""Segments through TRL's own connection to vLLM; vLLM itself is played by a tiny transformers checkpoint."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.generation.vllm_generation as trl_vllm
from accelerate import Accelerator
from tests.train.segment_models import CheckpointSegments
from tests.train.test_segments import CONTEXT, QUESTION, AtOnce, HashBig, Tiny, engine_of, timeless
from transformers import AutoModelForCausalLM

from sr_edge.errors import UsageError
from sr_edge.roles import Limits, Message
from sr_train.demo.checkpoint import demo_checkpoint
from sr_train.grpo.training import train_grpo
from sr_train.problems import read_problems
from sr_train.recipe import (
    BigPart,
    DataPart,
    GrpoPart,
    LogPart,
    ModelPart,
    Recipe,
    RewardPart,
    RolloutPart,
)
from sr_train.rollout.engine import BatchedEngine
from sr_train.rollout.requests import Rollout, RolloutRequest
from sr_train.rollout.segments import Segment, SegmentEngine, SegmentError, SegmentRequest, Terms
from sr_train.rollout.vllm import VllmEngine, VllmSegments
from sr_train.run import RunFolder, read_metrics

KNOWN = {
    "n", "repetition_penalty", "temperature", "top_p", "top_k", "min_p", "max_tokens", "logprobs",
    "stop_token_ids", "logit_bias",
}  # fmt: skip
"""Of vLLM's SamplingParams."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


class PlayedLLM:
    """`vllm.LLM`, as far as TRL uses it, and its server."""

    def __init__(self, model: torch.nn.Module, end_ids: Sequence[int], context: int = CONTEXT) -> None:
        self.model = model
        self._segments = CheckpointSegments(model, are_processed=True)
        self._end_ids = end_ids
        self._context = context
        self._numbers = itertools.count()
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=context))
        self.calls: list[dict[str, Any]] = []
        self.asleep: set[str] = set()
        self.naps = 0

    def write(self, prompts: Sequence[Sequence[int]], params: dict[str, Any]) -> list[Segment]:
        assert not self.asleep
        assert set(params) <= KNOWN
        assert params["n"] == 1
        assert params["logprobs"] == 0
        assert all(len(prompt) + params["max_tokens"] <= self._context for prompt in prompts)
        bias = {int(id): value for id, value in (params["logit_bias"] or {}).items()}
        assert all(abs(value) <= 100 for value in bias.values())
        self.calls.append({**params, "num_prompts": len(prompts)})
        stops = tuple(sorted({*params["stop_token_ids"], *self._end_ids}))  # its own too, as vLLM's
        terms = Terms(params["temperature"], stops, (), tuple(bias.items()))
        return self._segments.generate(
            [
                SegmentRequest(tuple(prompt), terms, params["max_tokens"], (next(self._numbers),), 0, 0)
                for prompt in prompts
            ]
        )

    def generate(self, prompts: list[dict[str, Any]], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        written = self.write([prompt["prompt_token_ids"] for prompt in prompts], vars(sampling_params))
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[
                    SimpleNamespace(
                        token_ids=list(segment.ids),
                        logprobs=[
                            {id: SimpleNamespace(rank=1, logprob=logprob)}
                            for id, logprob in zip(segment.ids, segment.logprobs, strict=True)
                        ],
                    )
                ],
            )
            for prompt, segment in zip(prompts, written, strict=True)
        ]

    def wake_up(self, tags: list[str]) -> None:
        self.asleep -= set(tags)

    def sleep(self, level: int) -> None:
        self.naps += 1
        self.asleep = {"weights", "kv_cache"}

    def reset_prefix_cache(self) -> None:
        pass


class PlayedServer:
    """`trl`'s client of a vLLM server."""

    def __init__(self, llm: PlayedLLM) -> None:
        self._llm = llm

    def generate(self, prompts, features, **params: Any) -> dict[str, Any]:
        assert params.pop("structured_outputs_regex") is None
        params |= params.pop("generation_kwargs")
        written = self._llm.write(prompts, params)
        return {
            "prompt_ids": prompts,
            "completion_ids": [list(segment.ids) for segment in written],
            "logprobs": [[[logprob] for logprob in segment.logprobs] for segment in written],
        }

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"max_model_len": CONTEXT}}


def play(monkeypatch: pytest.MonkeyPatch, llm: PlayedLLM) -> None:
    """From here on TRL's VLLMGeneration is all its own code, but for the loading of vLLM and its weights."""

    def start(self: Any) -> None:
        if self.mode == "server":
            self.vllm_client = PlayedServer(llm)
        else:
            self.llm = llm
            self._llm_weights_sleeping = self.enable_sleep_mode
            if self.enable_sleep_mode:
                llm.sleep(2)

    def sync(self: Any) -> None:
        llm.model.load_state_dict(self.model.state_dict())
        if self.mode == "colocate" and self.enable_sleep_mode:
            llm.wake_up(["weights"])
            self._llm_weights_sleeping = False

    monkeypatch.setattr(trl_vllm.VLLMGeneration, "_init_vllm", start)
    monkeypatch.setattr(trl_vllm.VLLMGeneration, "sync_weights", sync)
    monkeypatch.setattr(trl_vllm, "SamplingParams", SimpleNamespace, raising=False)


@pytest.fixture
def generation_of(tiny, monkeypatch):
    llm = PlayedLLM(tiny.model, tiny.end_ids)
    play(monkeypatch, llm)

    def make(mode: str, **options: Any) -> Any:
        return trl_vllm.VLLMGeneration(
            model=tiny.model,
            accelerator=Accelerator(cpu=True),
            processing_class=tiny.tokenizer,
            mode=mode,
            max_completion_length=60,
            **options,
        )

    make.llm = llm
    return make


def trainer_of(generation: Any, **options: Any) -> Any:
    """What is used of TRL's GRPOTrainer."""
    settings = {"use_vllm": True, "is_fsdp_enabled": False, "accelerator": generation.accelerator}
    return SimpleNamespace(vllm_generation=generation, **(settings | options))


REQUESTS = [
    RolloutRequest(QUESTION, (0,), bias=9.0),
    RolloutRequest(QUESTION, (1,), bias=7.0),
    RolloutRequest((Message("user", "What is 6 * 7?"),), (2,), bias=9.0),
    RolloutRequest(QUESTION, (3,), "local", bias=9.0),
    RolloutRequest(QUESTION, (4,), "remote"),
]
LIMITS = Limits(30, 12, 8)


def greedy(tiny: Tiny, big: Any) -> list[Rollout]:
    engine = BatchedEngine(
        tiny.model, tiny.tokenizer, tiny.markers(), big, limits=LIMITS, max_spans=3, temperature=0.0
    )
    return engine.run(REQUESTS)


@pytest.mark.parametrize(("mode", "sleeps"), [("colocate", False), ("colocate", True), ("server", False)])
def test_what_vllm_writes_greedily_is_what_the_batched_engine_writes(tiny, generation_of, mode, sleeps):
    big = AtOnce(HashBig(5, piece=1, failures=0.0))
    generation = generation_of(mode, enable_sleep_mode=sleeps, generation_kwargs={"top_k": -1})
    engine = VllmEngine(
        trainer_of(generation),
        tiny.model,
        tiny.tokenizer,
        tiny.markers(),
        big,
        limits=LIMITS,
        max_spans=3,
        temperature=0.0,
    )
    engine._engine._piece_chars = 1
    rollouts = engine.run(REQUESTS)
    llm = generation_of.llm
    assert [timeless(one.events) for one in rollouts] == [timeless(one.events) for one in greedy(tiny, big)]
    assert sum(len(one.transcript.spans) for one in rollouts) > 3
    assert len({call["num_prompts"] for call in llm.calls}) > 1  # of the same terms in one call
    assert generation.generation_kwargs == {"top_k": -1}
    assert generation.enable_sleep_mode == sleeps
    if mode == "colocate":
        assert llm.naps == (2 if sleeps else 0)  # when it was loaded, and after all calls
        assert generation._llm_weights_sleeping == sleeps


def test_a_failed_call_leaves_the_connection_as_it_was(tiny, generation_of, monkeypatch):
    generation = generation_of("colocate", enable_sleep_mode=True)
    engine = VllmEngine(trainer_of(generation), tiny.model, tiny.tokenizer, tiny.markers(), None)

    def fail(*args: Any) -> None:
        raise OSError("out of memory")

    monkeypatch.setattr(generation_of.llm, "write", fail)
    with pytest.raises(OSError, match="memory"):
        engine.run(REQUESTS[:1])
    assert generation.enable_sleep_mode
    assert generation.generation_kwargs == {}
    assert generation_of.llm.asleep


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("top_p", 0.9),
        ("top_k", 40),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("structured_outputs_regex", "a"),
        ("generation_kwargs", {"seed": 3}),
        ("generation_kwargs", {"stop_token_ids": [3]}),
        ("generation_kwargs", {"top_p": 0.5}),
    ],
)
def test_sampling_that_training_cannot_undo_is_refused(generation_of, setting, value):
    with pytest.raises(UsageError, match=r"leave it out"):
        VllmSegments(generation_of("colocate", **{setting: value}), context=CONTEXT)


def test_a_model_in_shards_is_refused(tiny, generation_of):
    with pytest.raises(UsageError, match="FSDP"):
        VllmEngine(
            trainer_of(generation_of("colocate"), is_fsdp_enabled=True),
            tiny.model,
            tiny.tokenizer,
            tiny.markers(),
            None,
        )


def test_a_bias_that_vllm_would_cut_is_refused(tiny, generation_of):
    engine = VllmEngine(
        trainer_of(generation_of("colocate")), tiny.model, tiny.tokenizer, tiny.markers(), AtOnce(HashBig(0))
    )
    with pytest.raises(UsageError, match="100"):
        engine.run([RolloutRequest(QUESTION, (0,), bias=101.0)])


def test_a_segment_without_log_probabilities_is_an_error(generation_of, monkeypatch):
    generation = generation_of("colocate")
    segments = VllmSegments(generation, context=CONTEXT)
    request = SegmentRequest((1, 2, 3), Terms(1.0, (7,)), 5, (0,), 0, 0)
    for logprobs in (None, [[[None]]], [[[-1.0, -2.0]]]):
        monkeypatch.setattr(generation, "generate", lambda answer=logprobs, **_: ([[1]], [[4]], answer, None))
        with pytest.raises(SegmentError):
            segments.generate([request])


def test_grpo_trains_on_what_vllm_writes(tmp_path, monkeypatch):
    """TRL's trainer around it: it gives vLLM its weights, and finds the log-probabilities where the small
    model's tokens are, spans or not.
    """
    small, big = (demo_checkpoint(name, tmp_path / name) for name in ("small", "big"))
    model = AutoModelForCausalLM.from_pretrained(small, dtype="float32").eval()
    llm = PlayedLLM(model, [model.config.eos_token_id], 512)
    play(monkeypatch, llm)
    table = {
        "max_steps": 2,
        "learning_rate": 1e-3,
        "vllm_mode": "colocate",
        "vllm_enable_sleep_mode": True,
        "vllm_max_model_length": 512,
        "save_strategy": "no",
    }
    made = Recipe(
        name="played",
        seed=5,
        model=ModelPart(str(small), dtype="float32"),
        data=DataPart("demo:train"),
        rollout=RolloutPart(engine="vllm", max_tokens=130, max_span_tokens=30, max_spans=3, temperature=1.7),
        big=BigPart(model=str(big), dtype="float32"),
        reward=RewardPart(unit="share"),
        grpo=GrpoPart(num_prompts=2, num_generations=4, trainer=table),
        log=LogPart(to=()),
    )
    run = RunFolder.open(tmp_path / "run", made, ["test"])
    train_grpo(made, read_problems("demo:train", limit=40), str(small), run)
    lines = [line for line in read_metrics(run.metrics_path, "grpo") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert sum(line["offload/spans"] for line in lines) > 0.5
    assert any(line["grad_norm"] > 0 for line in lines)
    # they differ where a marker was banned that is likely, and nowhere else
    assert all(line["sampling/sampling_logp_difference/mean"] < 0.01 for line in lines)
    for line in lines:  # where there are spans, TRL counts without them
        assert (line["completions/mean_length"] < line["offload/tokens"]) == (line["offload/spans"] > 0)
    assert llm.asleep


# --- several processes, one vLLM ---------------------------------------------------------------------------


class Meeting:
    """`gather_object` among threads."""

    def __init__(self, num_processes: int) -> None:
        self._barrier = threading.Barrier(num_processes, timeout=30)
        self._given: list[list[Any]] = [[] for _ in range(num_processes)]

    def gather(self, process: int, given: list[Any]) -> list[Any]:
        self._given[process] = given
        self._barrier.wait()
        joined = [one for each in self._given for one in each]
        self._barrier.wait()
        return joined

    def abort(self) -> None:
        self._barrier.abort()


class SharedGeneration:
    """TRL's in server mode: every process calls, with as many prompts each, and the first one writes."""

    def __init__(self, llm: PlayedLLM, meeting: Meeting, process: int) -> None:
        self.mode, self.tensor_parallel_size, self.enable_sleep_mode = "server", 1, False
        self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty = 1.0, 1.0, 0, 0.0, 1.0
        self.structured_outputs_regex = None
        self.generation_kwargs: dict[str, Any] = {}
        self._llm, self._meeting, self._process = llm, meeting, process

    def generate(self, prompts, images, num_generations):
        shares = self._meeting.gather(self._process, [(len(prompts), self.generation_kwargs)])
        assert all(share == shares[0] for share in shares)
        everybodys = self._meeting.gather(self._process, prompts)
        written = []
        if self._process == 0:
            params = {"n": 1, "logprobs": 0} | self.generation_kwargs
            written = self._llm.write(everybodys, params)
        written = self._meeting.gather(self._process, written)
        own = written[self._process * len(prompts) : (self._process + 1) * len(prompts)]
        return prompts, [list(one.ids) for one in own], [[[p] for p in one.logprobs] for one in own], None


@pytest.mark.parametrize("parts", [(3, 2), (1, 0, 4)])
def test_processes_that_share_a_server_write_what_one_would(tiny, parts):
    """Whatever each has to write, and whoever is done first."""
    llm, meeting = PlayedLLM(tiny.model, tiny.end_ids), Meeting(len(parts))
    written: dict[int, list[Rollout]] = {}
    errors: list[BaseException] = []

    def process(index: int) -> None:
        try:
            segments = VllmSegments(
                SharedGeneration(llm, meeting, index),
                context=CONTEXT,
                num_processes=len(parts),
                process_index=index,
                gather=lambda given: meeting.gather(index, given),
            )
            engine: SegmentEngine = engine_of(
                tiny, segments, big, limits=LIMITS, max_spans=3, temperature=0.0
            )
            first = sum(parts[:index])
            written[index] = engine.run(REQUESTS[first : first + parts[index]])
        except BaseException as error:
            errors.append(error)
            meeting.abort()

    big = AtOnce(HashBig(5, piece=1, failures=0.0))
    threads = [threading.Thread(target=process, args=(index,)) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rollouts = [one for index in range(len(parts)) for one in written[index]]
    assert [timeless(one.events)[1:] for one in rollouts] == [
        timeless(one.events)[1:] for one in greedy(tiny, big)
    ]
