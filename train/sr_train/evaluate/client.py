"""The client as an engine of rollouts: a GGUF under llama.cpp, one answer after the other.

What it measures is what a user gets: the same decoder, the same quantised weights, and times of a machine
that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Self

from sr_edge.local import LlamaLocal, SamplerSettings
from sr_edge.markers import Markers
from sr_edge.policy import SpanGate
from sr_edge.roles import Limits, RemoteModel, Steering
from sr_edge.split import SplitDecoder
from sr_train.rollout.requests import Rollout, RolloutRequest, rollout_of


class ClientEngine:
    """Owns the small model and closes it. The large one is its caller's."""

    def __init__(
        self,
        model: Path,
        big: RemoteModel | None,
        *,
        limits: Limits,
        max_spans: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        tau: float | None = None,
        n_ctx: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Args:
            max_spans: of an answer in which the small model decides when to ask.
            temperature: where a request names none. Without `top_p` and `top_k` tokens are sampled as in
                training; the client itself leaves out the unlikeliest.
            tau: in place of the file's own hand-back threshold.
            n_ctx, threads: see `LlamaLocal.open`.
        Raises:
            ModelError, UsageError: see `LlamaLocal.open`.
        """
        self._local = _Tuned.open(model, temperature=0.0, n_ctx=n_ctx, threads=threads)
        self._local.tau = tau
        self._big = big
        self._limits = limits
        self._max_spans = max_spans
        self._sampler = SamplerSettings(temperature, top_p, top_k)

    @property
    def local(self) -> LlamaLocal:
        return self._local

    def run(
        self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = lambda n: None
    ) -> list[Rollout]:
        rollouts = []
        for n, request in enumerate(requests):
            rollouts.append(self._write(request))
            done(n)
        return rollouts

    def close(self) -> None:
        self._local.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _write(self, request: RolloutRequest) -> Rollout:
        local = self._local
        local.rewind(0)  # else the last digits of its logits would depend on the answer before
        temperature = self._sampler.temperature if request.temperature is None else request.temperature
        local.choose(replace(self._sampler, temperature=temperature, seed=_seed(request.key)))
        decoder = SplitDecoder(
            local,
            None if request.policy == "local" else self._big,
            gate=self._gate() if request.policy == "auto" and request.schedule is None else None,
            limits=self._limits,
            policy=request.policy,
            steer=lambda: Steering(bias=request.bias),
        )
        schedule = None if request.schedule is None else request.schedule(local)
        return rollout_of(request, decoder.generate(request.messages, schedule=schedule))

    def _gate(self) -> SpanGate:
        """A new one each time: a failure before is no reason not to ask here."""
        return SpanGate(offline=False, uses_network=False, max_spans=self._max_spans)


class _Tuned(LlamaLocal):
    tau: float | None = None

    @property
    def markers(self) -> Markers | None:
        markers = super().markers
        return markers if markers is None or self.tau is None else replace(markers, tau=self.tau)


def _seed(key: tuple[int, ...]) -> int:
    """llama.cpp's seeds have 32 bits; the highest one means something else."""
    return int.from_bytes(sha256(repr(key).encode()).digest()[:4], "little") % 0xFFFFFFFF
