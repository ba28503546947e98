"""One pair of models, opened and wired for as long as its user talks to it: settings in, events out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, Started
from sr_edge.passport import demo_paths
from sr_edge.split import Gate, Limits, LocalModel, Message, Policy, RemoteModel, Schedule, SplitDecoder
from sr_edge.suites import demo
from sr_edge.terminal import safe_line

if TYPE_CHECKING:
    from sr_edge.local import LlamaLocal
    from sr_edge.remote.endpoint import Endpoint
    from sr_edge.remote.local_gguf import LocalGGUF

API_KEY_VARIABLE = "SR_EDGE_API_KEY"
"""The only place that a key for --big is read from: not the command line, not another program's variable."""

DEMO = "demo"
_SUITE = "sr_edge.suite"
_MAX_UNKNOWN = 5


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a user may choose. Without `model` the built-in small one, and with it the built-in big one."""

    model: Path | None = None
    big: str | None = None
    """Path of a GGUF, or URL of an OpenAI-compatible endpoint."""
    big_model: str | None = None
    """The endpoint's name for the model."""
    policy: Policy = "auto"
    offline: bool = False
    seed: int | None = None
    """None: another one each time."""
    temperature: float = 0.6
    big_temperature: float | None = None
    """None: the likeliest tokens for spans of a big GGUF, `temperature` where it writes the whole answer."""
    max_tokens: int = 4096
    max_span_tokens: int = 512

    def limits(self) -> Limits:
        soft = min(Limits().soft_span_tokens, self.max_span_tokens)
        return Limits(self.max_tokens, self.max_span_tokens, soft)


def is_url(big: str) -> bool:
    return big.lower().startswith(("http://", "https://"))


class Session:
    """Owns its models and closes them."""

    def __init__(
        self,
        local: LocalModel,
        remote: RemoteModel | None = None,
        *,
        settings: SessionSettings = SessionSettings(),
        gate: Gate | None = None,
        suite: str | None = None,
        notices: Sequence[str] = (),
        owned: ExitStack | None = None,
    ) -> None:
        """Args:
        suite: the only kind of problem that the models were made for, if there is one.
        owned: closed with the session.
        """
        self.local = local
        self.remote = remote
        self.notices = tuple(notices)
        """What the user should know before the answer, one line each."""
        self._settings = settings
        self._gate = gate
        self._suite = suite
        self._owned = owned or ExitStack()

    @classmethod
    def open(cls, settings: SessionSettings) -> Session:
        """Open what the policy needs; no socket is opened before a span leaves.

        Raises:
            UsageError: the settings contradict each other.
            ModelError: a model file is missing or unusable.
        """
        _check(settings)
        pair = demo_paths() if settings.model is None else None
        model = settings.model or (pair.small if pair else None)
        assert model is not None
        big = settings.big or (str(pair.big) if pair else None)
        if settings.policy == "remote" and big is None:
            raise UsageError("no large model to write the answer: name one with --big")

        from sr_edge.local import LlamaLocal
        from sr_edge.policy import SpanGate

        with ExitStack() as owned:
            local = owned.enter_context(
                LlamaLocal.open(model, temperature=settings.temperature, seed=settings.seed)
            )
            notices = []
            if settings.policy == "auto" and local.markers is None:
                notices.append(f"{local.name} has no markers, so it cannot ask for help: it writes alone")
                big = None
            elif settings.policy == "auto" and big is None:
                notices.append("no large model is named (--big), so the small one writes alone")
            remote: RemoteModel | None = None
            if big is not None and settings.policy != "local":
                opened = _open_big(big, settings, local)
                owned.callback(opened.close)
                remote = opened
            gate = SpanGate(offline=settings.offline, uses_network=big is not None and is_url(big))
            return cls(
                local,
                remote,
                settings=settings,
                gate=gate,
                suite=local.metadata.get(_SUITE),
                notices=notices,
                owned=owned.pop_all(),
            )

    def answer(
        self,
        messages: Sequence[Message],
        *,
        policy: Policy | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        schedule: Schedule | None = None,
    ) -> Iterator[Event]:
        """The events of one answer.

        Args:
            policy: instead of the settings' own.
        Raises:
            ContextFullError: the prompt does not fit; before any event.
        """
        policy = policy or self._settings.policy
        unknown = self._unknown_words(messages, policy)
        if unknown:
            yield from self._refused(messages, unknown)
            return
        decoder = SplitDecoder(
            self.local, self.remote, gate=self._gate, limits=self._settings.limits(), policy=policy
        )
        yield from decoder.generate(messages, cancelled=cancelled, schedule=schedule)

    def close(self) -> None:
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _unknown_words(self, messages: Sequence[Message], policy: Policy) -> list[str]:
        """What the models were not made for in the question; nothing if they are for everything."""
        if self._suite != DEMO or (policy == "remote" and self._settings.big is not None):
            return []
        return demo.unknown_words(messages[-1].content)

    def _refused(self, messages: Sequence[Message], unknown: Sequence[str]) -> Iterator[Event]:
        prompt = self.local.render(messages)
        yield Started(
            prompt_ids=prompt.ids,
            model=self.local.name,
            big=self.remote.name if self.remote else None,
            opening=prompt.opening,
        )
        words = ", ".join(safe_line(word)[:20] for word in unknown[:_MAX_UNKNOWN])
        more = " ..." if len(unknown) > _MAX_UNKNOWN else ""
        yield Finished(
            reason="refused",
            prompt_tokens=len(prompt.ids),
            local_tokens=0,
            remote_tokens=0,
            seconds=0.0,
            error="the built-in demo models only do short word problems of their own kind (unknown here: "
            f"{words}{more}); see some with `sr-edge eval --suite demo --print-problems 3`; a real model: "
            "`sr-edge ask -m MODEL.gguf --big URL`",
        )


def _check(settings: SessionSettings) -> None:
    if settings.big is not None and "://" in settings.big and not is_url(settings.big):
        raise UsageError(f"--big {settings.big}: a URL begins with http:// or https://")
    if settings.big_model is not None and not (settings.big is not None and is_url(settings.big)):
        raise UsageError("--big-model names a model behind a URL: give the URL with --big")


def _open_big(big: str, settings: SessionSettings, local: LlamaLocal) -> Endpoint | LocalGGUF:
    if not is_url(big):
        from sr_edge.remote.local_gguf import LocalGGUF

        temperature = settings.big_temperature
        if temperature is None:
            temperature = settings.temperature if settings.policy == "remote" else 0.0
        return LocalGGUF(Path(big), temperature=temperature, seed=settings.seed)
    from sr_edge.remote.endpoint import Endpoint

    return Endpoint(
        big,
        prompt=local.render,
        model=settings.big_model,
        api_key=os.environ.get(API_KEY_VARIABLE) or None,
        temperature=settings.temperature,
        seed=settings.seed,
    )
