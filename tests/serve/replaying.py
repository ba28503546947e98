"""Whether an answer is one that the model would have written: its ids are read again, by a model of its own.

What a server with many conversations may get wrong (one's cells, random numbers or spans in another's answer)
shows here: somewhere a token does not follow from what stands before it.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, Started
from sr_edge.extract import split_reasoning
from sr_edge.gguf_header import read_header
from sr_edge.llama import OUTPUTS, Llama
from sr_edge.local import LlamaLocal
from sr_edge.roles import Message
from sr_edge.testing.oracle import broken_laws
from sr_edge.transcript import fold

GAP = 0.1
"""By how much, of a logit, the likeliest token may be likelier than the one that was taken for it."""
DRIFT = 1.0
"""By how much a log-probability may be another one here, in nats; and in the mean of an answer: `MEAN_DRIFT`,
beside one token or another where the model is unsure: `UNSURE_DRIFT`, in their sum.

The same ids in other batches are summed in another order, which tips the rounding of some quantised
activation: the built-in model's log-probabilities then differ by up to 0.12 where it is unsure, and by 3e-5
in the mean of a long answer. After one digit of the question was another they differ by 8 somewhere, and by
0.05 in the mean.
"""
MEAN_DRIFT = 0.005
UNSURE_DRIFT = 0.25


class Replay:
    """A small model that nobody else uses, computed as exactly as the client computes it."""

    def __init__(self, path: Path) -> None:
        self._local = LlamaLocal.open(path, temperature=0.0, threads=1)
        self._llama = Llama(
            path,
            context_size=None,
            threads=1,
            gpu_layers=0,
            kv_type="f16",
            tensors=read_header(path).tensors,
        )
        self.widest_gap = 0.0
        """Of all answers so far, as `GAP`."""
        self.farthest_drift = 0.0

    def faults(
        self,
        events: Sequence[Event],
        question: Sequence[Message],
        *,
        is_greedy: bool,
        thought: str | None = None,
        content: str | None = None,
        continues: str = "",
    ) -> list[str]:
        """What is wrong with an answer, one line each.

        Args:
            question: what was asked, by whoever got this answer.
            is_greedy: it was asked for at temperature 0.
            thought, content: what an ordinary client was told; None if it is not to be looked at.
            continues: what the answer began with already, which nobody sampled.
        """
        broken = broken_laws(events)
        if not (events and isinstance(events[0], Started) and isinstance(events[-1], Finished)):
            return broken
        started, finished = events[0], events[-1]
        transcript = fold(events)
        if not all(0 <= id < self._llama.vocabulary.size for id in (*transcript.prompt_ids, *transcript.ids)):
            return [*broken, "an id is none of the model's"]
        self._local.rewind(0)
        prompt = self._local.render(question)
        if started.prompt_ids != prompt.ids or started.opening != prompt.opening:
            broken.append("the prompt is not that of the question")
        given = len(self._local.tokenize(continues)) if continues else 0
        broken += self._unlikely(events, given, is_greedy=is_greedy)
        broken += self._misspelt(events)
        if (finished.local_tokens, finished.remote_tokens) != (
            transcript.local_tokens,
            transcript.remote_tokens,
        ):
            broken.append("the tokens are not as many as the answer says")
        if not transcript.text.startswith(continues):
            broken.append("what was to be continued is not its beginning")
        said = split_reasoning(transcript.opening, transcript.text)
        if not continues and thought is not None and said[0] != thought:
            broken.append("the thought that was told is not the one in the events")
        if not continues and content is not None and said[1] != content:
            broken.append("the content that was told is not the one in the events")
        return broken

    def close(self) -> None:
        self._local.close()
        self._llama.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _unlikely(self, events: Sequence[Event], given: int, *, is_greedy: bool) -> list[str]:
        """Tokens that do not follow from what stands before them."""
        transcript = fold(events)
        ids = [*transcript.prompt_ids, *transcript.ids]
        if len(ids) > self._llama.context_size:
            return ["there are more ids than the context holds"]
        rows = self._logits(ids)
        tokens = iter([event for event in events if isinstance(event, LocalToken)])
        markers = self._local.markers
        silent = [] if markers is None else [*markers.open_ids, *markers.close_ids]
        broken = []
        drifts: list[float] = []
        number = 0
        for at, (id, is_sampled) in enumerate(
            zip(transcript.ids, transcript.sampled, strict=True), len(transcript.prompt_ids)
        ):
            if not is_sampled:
                continue
            token, number = next(tokens), number + 1
            if number <= given:
                continue
            logits = rows[at - 1].astype(np.float64)
            highest = float(logits.max())
            logprob = float(logits[id]) - highest - math.log(float(np.exp(logits - highest).sum()))
            drifts.append(abs(logprob - token.logprob))
            if drifts[-1] > DRIFT:
                line = f"token {number} ({token.text!r}) has log-probability {logprob:.4f} here, "
                broken.append(line + f"and {token.logprob:.4f} in the answer")
            if id not in silent:  # it may have been forbidden to ask
                logits[silent] = -math.inf
            gap = float(logits.max() - logits[id]) if is_greedy else 0.0
            if gap > GAP:
                broken.append(f"token {number} ({token.text!r}) is not the likeliest")
            self.widest_gap = max(self.widest_gap, gap)
        self.farthest_drift = max([self.farthest_drift, *drifts])
        if sum(drifts) > UNSURE_DRIFT + MEAN_DRIFT * len(drifts):
            mean = sum(drifts) / len(drifts)
            broken.append(f"log-probabilities are others here, by {mean:.4f} in the mean")
        return broken

    def _misspelt(self, events: Sequence[Event]) -> list[str]:
        """Texts that are not what their ids stand for."""
        broken = []
        text = ""
        for is_local, run in groupby(
            (event for event in events if isinstance(event, LocalToken | SpanDelta | SpanClosed)),
            key=lambda event: isinstance(event, LocalToken),
        ):
            if is_local:
                tokens = [event for event in run if isinstance(event, LocalToken)]
                written = self._spelling([token.id for token in tokens])
                if not _is_text_of("".join(token.text for token in tokens), written):
                    broken.append(f"the small model's ids stand for {written!r}")
                continue
            for event in run:
                if isinstance(event, SpanDelta):
                    text += event.text
                elif isinstance(event, SpanClosed):
                    if self._spelling(event.ids).decode("utf-8", "replace") != text:
                        broken.append(f"span {event.span}: its ids do not stand for its text {text!r}")
                    text = ""
        return broken

    def _spelling(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self._local.piece, ids))

    def _logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """After each of the ids; shape (ids, vocabulary)."""
        self._llama.keep(0, 0)
        rows = []
        for start in range(0, len(ids), OUTPUTS):
            part = ids[start : start + OUTPUTS]
            self._llama.decode(part, sequence=0, position=start, outputs=range(len(part)))
            rows += [self._llama.logits(n).copy() for n in range(len(part))]
        return np.stack(rows)


def _is_text_of(text: str, written: bytes) -> bool:
    """Of a character that is cut off at the end there may be no text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return text in (decoder.decode(written), written.decode("utf-8", "replace"))
