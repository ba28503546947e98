"""One model and all rows that are being written with it: whoever waits is decoded in as few passes as can be.

A row waits in a greenlet of its own (see `local.BatchedLocal`); `Batch.step` does what the waiting rows asked
for and tells who can go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from greenlet import greenlet
from torch import Tensor, nn
from transformers import AttentionInterface

from sr_edge.errors import GenerationError, UsageError
from sr_train.rollout.attention import ATTENTION, Group, attend
from sr_train.rollout.cache import RowsCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFILL = 256
"""Tokens of one row that are decoded in one pass at most."""

_PASS = 8192
"""Tokens of all rows together, padding included."""

_SCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings of models whose logits are more than their head's output."""

_DEFAULT_CONTEXT = 32768
_DRAWS = 64


class Uniforms:
    """Random numbers in [0, 1) that depend on a key and on how many were drawn, and on nothing else."""

    def __init__(self, key: Sequence[int], writer: int = 0) -> None:
        """Args:
        key: whole numbers, 0 or more.
        writer: tells apart those who draw for one rollout.
        """
        if any(number < 0 for number in key):
            raise UsageError(f"a rollout's key {tuple(key)}: its numbers are 0 or more")
        # its length too, since a shorter key is filled up with zeros
        seed = np.random.SeedSequence([len(key), *key], spawn_key=(writer,))
        self._generator = np.random.Generator(np.random.Philox(seed))
        self._block: list[float] = []

    def draw(self) -> float:
        if not self._block:
            self._block = self._generator.random(_DRAWS).tolist()[::-1]
        return self._block.pop()


@dataclass(slots=True, eq=False)
class Row:
    """One sequence in the batch, and what its owner waits for."""

    temperature: float
    uniforms: Uniforms
    ids: list[int] = field(default_factory=list)
    decoded: int = 0
    """So many of the ids have cells."""
    slot: int | None = None
    """Its place in the cache, once it has been decoded."""
    logits: Tensor | None = None
    """Those after the last id, if they are worth keeping: shape (vocabulary,)."""
    waiter: greenlet | None = None
    wish: Literal["sample", "probe", "entropy"] = "sample"
    banned: Sequence[int] = ()
    bias: Mapping[int, float] = field(default_factory=dict)
    probed: int = 0
    """`probe`: so many of the last ids are asked about."""
    sampled: tuple[int, float] = (-1, 0.0)
    closes: list[float] = field(default_factory=list)
    entropy: float = 0.0
    error: GenerationError | None = None


class Batch:
    """Owns the cache, and which row lies where in it."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        close_ids: Sequence[int] = (),
        kept_ids: Sequence[int] = (),
        top_p: float = 1.0,
    ) -> None:
        """Args:
        close_ids: whose probability together a probe asks for.
        kept_ids: where one of these is sampled, the row may be rewound: its logits are kept.
        Raises:
            UsageError: the model is of a kind that is not written with here.
        """
        base = base_of(model)
        config = base.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        scaled = [name for name in _SCALED if getattr(config, name, None) not in (None, 1, 1.0)]
        if not base._supports_attention_backend:
            scaled.append("its own attention")
        if kinds != {"full_attention"} or scaled:
            raise UsageError(
                f"no rollouts can be written with this {config.model_type} "
                f"({', '.join(sorted(kinds) + scaled)}): use a plain decoder as Qwen2, Qwen3 and Llama are, "
                'or rollout.engine = "vllm"'
            )
        self._model = base
        self._decoder: nn.Module = base.get_decoder()  # type: ignore[no-untyped-call]
        self._head: nn.Module = base.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._close_ids = list(close_ids)
        self._kept_ids = frozenset(kept_ids)
        self._top_p = top_p
        self._cache = RowsCache(config.num_hidden_layers)
        self._rows: list[Row | None] = []
        self._pause: Callable[[], object] = _nobody
        self.context: int = getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT
        self.waiting: list[Row] = []
        self.num_passes = 0
        self.num_decoded = 0
        """Tokens, without padding."""

    @property
    def device(self) -> torch.device:
        return next(self._model.parameters()).device

    @contextmanager
    def running(self, pause: Callable[[], object]) -> Iterator[None]:
        """Args:
        pause: lets a row's greenlet wait until `step` has done what it asked for.
        """
        config, was_training = self._model.config, self._model.training
        attention = config._attn_implementation
        AttentionInterface.register(ATTENTION, attend)
        config._attn_implementation = ATTENTION
        self._model.train(False)
        self._pause = pause
        try:
            yield
        finally:
            self._pause = _nobody
            config._attn_implementation = attention
            self._model.train(was_training)
            self._rows = []
            self.waiting = []
            self._cache.clear()

    def wait(self, row: Row) -> None:
        """Come back when what the row wishes is done. Raises: GenerationError: it cannot be."""
        row.waiter = greenlet.getcurrent()
        self.waiting.append(row)
        self._pause()
        if row.error is not None:
            error, row.error = row.error, None
            raise error

    def free(self, row: Row) -> None:
        """Forget the row's cells."""
        if row.slot is not None:
            self._rows[row.slot] = None
            row.slot, row.decoded = None, 0

    @torch.no_grad()
    def step(self) -> list[Row]:
        """Bring the waiting rows on; returns those whose wish is done."""
        rows, self.waiting = self.waiting, []
        self._close_gaps()
        ready: list[Row] = []
        counts: dict[int, list[Row]] = {}  # by number of tokens to decode
        room = _PASS
        for row in rows:
            if row.logits is not None and row.decoded == len(row.ids):
                ready.append(row)
                continue
            row.logits = None
            if row.decoded == len(row.ids):  # its last logits are gone
                row.decoded -= 1
            count = min(len(row.ids) - row.decoded, _PREFILL)
            if count > room:
                self.waiting.append(row)
                continue
            room -= count
            if row.slot is None:
                self._place(row)
            counts.setdefault(count, []).append(row)
        wanted = [row.logits[None] for row in ready if row.logits is not None]
        if counts:
            logits, done = self._decode([(row, count) for count in sorted(counts) for row in counts[count]])
            ready += done
            wanted += [logits] if len(logits) else []
        samplers = [row for row in ready if row.wish != "probe"]
        if samplers:
            self._choose(samplers, wanted[0] if len(wanted) == 1 else torch.cat(wanted))
        return ready

    def _decode(self, tasks: list[tuple[Row, int]]) -> tuple[Tensor, list[Row]]:
        """Decode so many tokens of each row, few first.

        Returns the logits of the rows that are through and sample, shape (rows that sample, vocabulary); and
        all rows that are through, in order.
        """
        hidden = self._hidden(tasks)  # (tokens, hidden)
        self.num_passes += 1
        self.num_decoded += len(hidden)
        probes: list[tuple[Row, int]] = []  # and its place in the line
        ends: list[int] = []
        done: list[Row] = []
        at = 0
        for row, count in tasks:
            first, at = at - row.decoded, at + count
            row.decoded += count
            is_through = row.decoded == len(row.ids)
            (done if is_through else self.waiting).append(row)
            if row.wish == "probe":
                new = max(row.decoded - count, len(row.ids) - row.probed)
                probes += [(row, first + n) for n in range(new, row.decoded)]
            elif is_through:
                ends.append(at - 1)
        logits = self._logits(hidden, ends + [place for _, place in probes])
        if probes:
            asked = logits[len(ends) :]
            closes = asked[:, self._close_ids].logsumexp(-1) - asked.logsumexp(-1)
            for (row, _), close in zip(probes, closes.tolist(), strict=True):
                row.closes.append(close)
        return logits[: len(ends)], done

    def _hidden(self, tasks: list[tuple[Row, int]]) -> Tensor:
        """The last layer's output for the next tokens of these rows; shape (tokens, hidden)."""
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        for row, count in tasks:
            assert row.slot is not None
            ids += row.ids[row.decoded : row.decoded + count]
            slots += [row.slot] * count
            positions += range(row.decoded, row.decoded + count)
        self._cache.reserve(len(self._rows), max(positions) + 1)
        line = self._tensor([ids, slots, positions])  # (3, tokens)
        self._cache.aim(line[1], line[2])
        output = self._decoder(
            input_ids=line[:1],
            position_ids=line[2:],
            past_key_values=self._cache,
            use_cache=True,
            groups=self._groups(tasks),
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _groups(self, tasks: list[tuple[Row, int]]) -> list[Group]:
        """Rows with about the same number of tokens together."""
        groups: list[Group] = []
        start = n = 0
        while n < len(tasks):
            most = 2 * tasks[n][1] if tasks[n][1] > 1 else 1
            stop = n
            while stop < len(tasks) and tasks[stop][1] <= most:
                stop += 1
            groups.append(self._group(tasks[n:stop], start))
            start, n = groups[-1].stop, stop
        return groups

    def _group(self, tasks: list[tuple[Row, int]], start: int) -> Group:
        counts = [count for _, count in tasks]
        longest = counts[-1]
        lanes = [row.slot or 0 for row, _ in tasks]
        num_lanes = len(tasks)
        rows: Tensor | slice = slice(len(self._rows))
        if 3 * len(tasks) >= len(self._rows):  # to attend from all rows costs less than to copy these
            num_lanes = len(self._rows)
        else:
            rows, lanes = self._tensor(lanes), list(range(num_lanes))
        first = [0] * num_lanes
        gather = [start] * (num_lanes * longest)
        scatter: list[int] = []
        at = start
        for lane, (row, count) in zip(lanes, tasks, strict=True):
            first[lane] = row.decoded
            begin = lane * longest
            gather[begin : begin + count] = range(at, at + count)
            scatter += range(begin, begin + count)
            at += count
        is_whole = scatter == list(range(num_lanes * longest))
        num_cells = max(row.decoded + count for row, count in tasks)
        positions = self._tensor(first)[:, None] + torch.arange(longest, device=self.device)  # (B, Q)
        seen = torch.arange(num_cells, device=self.device) <= positions[:, None, :, None]
        return Group(
            rows=rows,
            num_rows=num_lanes,
            num_queries=longest,
            num_cells=num_cells,
            start=start,
            stop=at,
            gather=None if is_whole else self._tensor(gather),
            scatter=None if is_whole else self._tensor(scatter),
            mask=seen,
        )

    def _logits(self, hidden: Tensor, places: list[int]) -> Tensor:
        if places != list(range(len(hidden))):
            hidden = hidden[self._tensor(places, torch.long)]
        logits: Tensor = self._head(hidden)
        return logits.float()

    def _choose(self, rows: list[Row], logits: Tensor) -> None:
        """A token for each row, from logits of shape (rows, vocabulary)."""
        own = logits.logsumexp(-1)
        if any(row.wish == "entropy" for row in rows):
            logp = logits - own[:, None]
            entropies = -(logp.exp() * logp.clamp_min(-1e4)).sum(-1)
            for row, entropy, line in zip(rows, entropies.tolist(), logits, strict=True):
                if row.wish == "entropy":
                    row.entropy, row.logits = entropy, line.clone()
        ids = self._sample(rows, logits, own)
        logprobs = logits.gather(1, ids.clamp_max(logits.shape[-1] - 1)[:, None])[:, 0] - own
        for n, (row, id, logprob) in enumerate(zip(rows, ids.tolist(), logprobs.tolist(), strict=True)):
            if row.wish == "entropy":
                continue
            if id in row.banned or id >= logits.shape[-1]:
                row.error = GenerationError("every token is forbidden here: allow one")
            elif not math.isfinite(logprob):
                row.error = GenerationError(
                    "the model's probabilities are not numbers: its weights are spoilt"
                )
            row.sampled = (id, logprob)
            row.logits = logits[n].clone() if id in self._kept_ids else None

    def _sample(self, rows: list[Row], logits: Tensor, own: Tensor) -> Tensor:
        """Ids, one random number a row; shape (rows,).

        Args:
            own: log of the sum of the exponentials, shape (rows,).
        """
        banned = _pairs([row.banned for row in rows])
        biased = _pairs([tuple(row.bias) for row in rows])
        biases = [value for row in rows for value in row.bias.values()]
        is_hot = [row.temperature > 0 and row.wish == "sample" for row in rows]
        greedy: Tensor | None = None
        if not all(is_hot):
            edited = logits.clone()
            if banned[0]:
                edited[banned] = -math.inf
            if biases:
                edited[biased] += self._tensor(biases, logits.dtype)
            greedy = edited.argmax(-1)
            if not any(is_hot):
                return greedy
        temperatures = [row.temperature or 1.0 for row in rows]
        heat: Tensor | float = 1.0
        scores = logits - own[:, None]
        if any(temperature != 1.0 for temperature in temperatures):
            heat = self._tensor(temperatures, logits.dtype)[:, None]
            scores = (logits - logits.max(-1, keepdim=True).values) / heat
        mass = scores.exp_()  # up to a factor
        if banned[0]:
            mass[banned] = 0.0
        if biases:
            heats = [row.temperature or 1.0 for row in rows for _ in row.bias]
            factors = [math.exp(min(value / heat, 80.0)) for value, heat in zip(biases, heats, strict=True)]
            mass[biased] *= self._tensor(factors, mass.dtype)
        if self._top_p < 1:
            mass = _nucleus(mass, self._top_p)
        draws = [row.uniforms.draw() if hot else 0.0 for row, hot in zip(rows, is_hot, strict=True)]
        ids = _inverse(mass, self._tensor(draws, torch.float64))
        return ids if greedy is None else torch.where(self._tensor(is_hot, torch.bool), ids, greedy)

    def _place(self, row: Row) -> None:
        row.slot = next((n for n, other in enumerate(self._rows) if other is None), len(self._rows))
        self._rows[row.slot : row.slot + 1] = [row]

    def _close_gaps(self) -> None:
        """Move the last rows into places that are free, where there are many: fewer rows are decoded."""
        rows = self._rows
        while rows and rows[-1] is None:
            rows.pop()
        if 4 * rows.count(None) <= len(rows):
            return
        for n in range(len(rows)):
            if n < len(rows) and rows[n] is None:
                last = rows.pop()
                assert last is not None
                self._cache.move(len(rows), n)
                rows[n], last.slot = last, n
                while rows and rows[-1] is None:
                    rows.pop()

    def _tensor(self, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without the adapter that may be around it; an adapter's layers stay in it."""
    unwrap = getattr(model, "get_base_model", None)
    base: PreTrainedModel = model if unwrap is None else unwrap()
    return base


def _pairs(ids: list[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Each id with the number of its row, as an index."""
    return [n for n, each in enumerate(ids) for _ in each], [id for each in ids for id in each]


def _inverse(mass: Tensor, draws: Tensor) -> Tensor:
    """Inverse transform sampling: where the running sum of the masses passes a part of the whole.

    Args:
        mass: shape (rows, vocabulary), 0 or more.
        draws: shape (rows,), in [0, 1).
    Returns:
        shape (rows,); the vocabulary's size where there is no mass at all.
    """
    sums = mass.cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:]
    aims = torch.minimum(draws[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, aims, right=True)[:, 0]


def _nucleus(mass: Tensor, top_p: float) -> Tensor:
    """Only the likeliest tokens that together have `top_p` of the mass; (rows, vocabulary)."""
    ordered, ids = mass.sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p * ordered.sum(-1, keepdim=True)
    return mass.masked_fill(torch.zeros_like(outside).scatter_(-1, ids, outside), 0.0)


def _nobody() -> None:
    raise AssertionError("nobody runs this batch")
