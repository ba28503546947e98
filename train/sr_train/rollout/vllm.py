"""Segments by vLLM, through TRL's own connection to it: in this process ("colocate") or on a server.

TRL keeps vLLM's weights those of the model under training, and samples all sequences of one call alike. So
each call here is for requests of the same `Terms`; what differs from call to call (stop tokens, bans, bias,
temperature, length) goes along as TRL's `generation_kwargs`. What this cannot express:

* A key does not seed its sequence, so a rollout is not repeated by its key. A run that was resumed goes on
  with other random numbers.
* A ban is a bias of -100, the most that vLLM takes: what a model holds for e^100 times likelier than all the
  rest together would still be sampled. A segment in which that happened is an error.
* A log-probability is the one it was sampled with: after temperature, bans and bias. This is what TRL's
  importance sampling correction wants.

vLLM itself is only imported by TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from accelerate.utils import gather_object  # type: ignore[import-untyped]

from sr_edge.errors import UsageError
from sr_edge.markers import Markers
from sr_edge.roles import Limits
from sr_train.rollout.batch import base_of
from sr_train.rollout.big import end_ids_of, name_of
from sr_train.rollout.close_probe import ForwardProbe
from sr_train.rollout.requests import Rollout, RolloutRequest
from sr_train.rollout.segments import Segment, SegmentEngine, SegmentError, SegmentRequest, Terms
from sr_train.rollout.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast
    from trl.trainer.grpo_trainer import GRPOTrainer

    from sr_train.rollout.big import Big

_MOST_BIAS = 100.0
"""Either way; vLLM cuts what is beyond."""

_OURS = (
    "allowed_token_ids",
    "bad_words",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "max_tokens",
    "min_tokens",
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "temperature",
)
"""Of vLLM's sampling parameters, those that a rollout decides."""


class Generation(Protocol):
    """What is used of `trl.generation.vllm_generation.VLLMGeneration`."""

    mode: str
    tensor_parallel_size: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    structured_outputs_regex: str | None
    generation_kwargs: dict[str, Any]
    enable_sleep_mode: bool
    _llm_weights_sleeping: bool  # only in this process, as `llm`
    llm: Any

    def generate(
        self, prompts: list[list[int]], images: None, num_generations: int
    ) -> tuple[Any, list[list[int]], list[list[list[float | None]]] | None, Any]:
        """Ids of the prompts, ids of what was written, log-probabilities and ids of the likeliest."""

    def sync_weights(self) -> None: ...


class VllmEngine:
    """See `sr_train.rollout.requests.RolloutEngine`."""

    def __init__(
        self,
        trainer: GRPOTrainer,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        markers: Markers,
        big: Big | Literal["self"] | None,
        *,
        limits: Limits = Limits(),
        max_spans: int = 12,
        temperature: float = 1.0,
        max_rows: int = 256,
    ) -> None:
        """Args:
            trainer: it has the connection to vLLM.
            model: the small one, as the trainer trains it.
            big: see `segments.SegmentEngine`.
        Raises:
            UsageError: settings of the trainer that rollouts cannot be written with.
        """
        if not trainer.use_vllm:
            raise UsageError('rollout.engine = "vllm" needs a trainer that uses vLLM')
        if trainer.is_fsdp_enabled:
            raise UsageError(
                'rollout.engine = "vllm" asks the small model where it takes the pen back, but FSDP cuts it '
                "into shards: launch with DDP or DeepSpeed"
            )
        accelerator = trainer.accelerator
        self._generation: Generation = trainer.vllm_generation
        segments = VllmSegments(
            self._generation,
            context=_context(trainer, model),
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
            gather=gather_object,
        )
        vocabulary, config = Vocabulary(tokenizer, end_ids_of(model)), base_of(model).config.get_text_config()
        self._engine = SegmentEngine(
            segments,
            ForwardProbe(model, markers.close_ids[0]),
            vocabulary,
            markers,
            big,
            name=name_of(model),
            end_ids=[id for id in range(config.vocab_size) if vocabulary.is_end(id)],
            context=segments.context,
            limits=limits,
            max_spans=max_spans,
            temperature=temperature,
            max_rows=max_rows,
        )

    def run(
        self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = lambda index: None
    ) -> list[Rollout]:
        with _awake(self._generation):
            return self._engine.run(requests, done)


@contextmanager
def _awake(generation: Generation) -> Iterator[None]:
    """Lets vLLM sleep once after all calls, not after each: it throws its weights away when it does."""
    if generation.mode != "colocate" or not generation.enable_sleep_mode:
        yield
        return
    if generation._llm_weights_sleeping:
        generation.sync_weights()
    generation.llm.wake_up(tags=["kv_cache"])
    generation.enable_sleep_mode = False
    try:
        yield
    finally:
        generation.enable_sleep_mode = True
        generation.llm.sleep(level=2)
        generation._llm_weights_sleeping = True


def _context(trainer: GRPOTrainer, model: PreTrainedModel) -> int:
    """Tokens that vLLM can hold of one sequence, and the model too."""
    generation = trainer.vllm_generation
    known: list[int | None] = [base_of(model).config.get_text_config().max_position_embeddings]
    if generation.mode == "colocate":
        known.append(generation.llm.llm_engine.model_config.max_model_len)
    elif trainer.accelerator.is_main_process:  # which alone is connected
        known.append(generation.vllm_client.get_server_info()["model_config"].get("max_model_len"))
    everybodys: list[int | None] = gather_object(known)
    return min(each for each in everybodys if each is not None)


class VllmSegments:
    """See `sr_train.rollout.segments.Segments`."""

    def __init__(
        self,
        generation: Generation,
        *,
        context: int,
        num_processes: int = 1,
        process_index: int = 0,
        gather: Callable[[list[Any]], list[Any]] = list,
    ) -> None:
        """Args:
            context: tokens that vLLM can hold of one sequence.
            gather: each process gives a list; all get them joined, in the processes' order. Accelerate's
                `gather_object`.
        Raises:
            UsageError: TRL's settings for vLLM change what is sampled in a way that training cannot undo, or
                settle what a rollout decides.
        """
        _check_sampling(generation)
        self._generation = generation
        self.context = context
        self._num_processes = num_processes
        self._process_index = process_index
        self._gather = gather
        self._is_shared = num_processes > 1 and (
            generation.mode == "server" or generation.tensor_parallel_size > 1
        )

    def any_waits(self, here: bool) -> bool:
        return any(self._gather([here])) if self._is_shared else here

    def generate(self, requests: Sequence[SegmentRequest]) -> list[Segment]:
        if not self._is_shared:
            return self._written(requests, lambda prompts, share: self._call(prompts))
        # All processes call vLLM at the same times, with as many sequences each. So each has a share of
        # everybody's, whoever they belong to.
        everybody = self._gather([list(requests)])
        first = sum(len(theirs) for theirs in everybody[: self._process_index])
        segments = self._written([one for theirs in everybody for one in theirs], self._call_together)
        return segments[first : first + len(requests)]

    def _written(
        self, requests: Sequence[SegmentRequest], call: Callable[[list[list[int]], int], list[Segment]]
    ) -> list[Segment]:
        segments: dict[int, Segment] = {}
        for terms in sorted({request.terms for request in requests}, key=repr):
            rows = [n for n, request in enumerate(requests) if request.terms == terms]
            longest = max(len(requests[n].prefix) for n in rows)
            wanted = max(requests[n].max_tokens for n in rows)
            # a decoder that has enough takes no more; one that lacks something asks again
            max_tokens = max(1, min(wanted, self.context - longest))
            with self._told(terms, max_tokens):
                written = call([list(requests[n].prefix) for n in rows], len(rows))
            segments.update(zip(rows, written, strict=True))
        return [segments[n] for n in range(len(requests))]

    def _call_together(self, prompts: list[list[int]], num_prompts: int) -> list[Segment]:
        each = -(-num_prompts // self._num_processes)
        prompts = prompts + prompts[:1] * (each * self._num_processes - num_prompts)
        own = prompts[self._process_index * each : (self._process_index + 1) * each]
        return self._gather(self._call(own))[:num_prompts]

    def _call(self, prompts: list[list[int]]) -> list[Segment]:
        _, ids, logprobs, _ = self._generation.generate(prompts=prompts, images=None, num_generations=1)
        if logprobs is None or len(ids) != len(prompts):
            raise SegmentError(
                "vLLM gave no log-probabilities, or another number of sequences than it was asked for: "
                "install the versions of TRL and vLLM that `pip install trl[vllm]` brings"
            )
        return [
            Segment(tuple(row), tuple(_sampled(each) for each in scores))
            for row, scores in zip(ids, logprobs, strict=True)
        ]

    @contextmanager
    def _told(self, terms: Terms, max_tokens: int) -> Iterator[None]:
        """While TRL samples so."""
        bias = dict(terms.bias) | dict.fromkeys(terms.banned, -_MOST_BIAS)
        beyond = [value for value in bias.values() if abs(value) > _MOST_BIAS]
        if beyond:
            raise UsageError(
                f"a bias of {beyond[0]:g}: vLLM takes {_MOST_BIAS:g} at most, either way; take a smaller one"
            )
        before = self._generation.generation_kwargs
        self._generation.generation_kwargs = before | {
            "temperature": terms.temperature,
            "max_tokens": max_tokens,
            "stop_token_ids": list(terms.stops),
            "logit_bias": bias or None,
        }
        try:
            yield
        finally:
            self._generation.generation_kwargs = before


def _sampled(scores: Sequence[float | None]) -> float:
    """TRL asks for the sampled token's only."""
    if len(scores) != 1 or scores[0] is None:
        raise SegmentError("vLLM gave no log-probability for a token that it sampled: its numbers overflow")
    return scores[0]


def _check_sampling(generation: Generation) -> None:
    extra = generation.generation_kwargs
    for name in _OURS:
        if name in extra:
            raise UsageError(f"[grpo.trainer] generation_kwargs.{name}: rollouts decide that; leave it out")
    regex = generation.structured_outputs_regex
    changes = {
        "top_p": extra.get("top_p", generation.top_p) != 1,
        "top_k": extra.get("top_k", generation.top_k) not in (0, -1),
        "min_p": extra.get("min_p", generation.min_p) not in (0, None),
        "repetition_penalty": extra.get("repetition_penalty", generation.repetition_penalty) != 1,
        "presence_penalty": extra.get("presence_penalty", 0) != 0,
        "frequency_penalty": extra.get("frequency_penalty", 0) != 0,
        "vllm_structured_outputs_regex": regex is not None or "structured_outputs" in extra,
    }
    for name, is_set in changes.items():
        if is_set:
            raise UsageError(
                f"[grpo.trainer] {name}: with it vLLM samples other probabilities than the model's, which "
                "training would take for the model's own; leave it out, and use rollout.temperature"
            )
