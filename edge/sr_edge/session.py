"""One pair of models, opened and wired for as long as its user talks to it: settings in, events out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    from sr_edge.budget import Budget
    from sr_edge.config import RemoteConfig
    from sr_edge.local import LlamaLocal
    from sr_edge.outside import Outside
    from sr_edge.remote.local_gguf import LocalGGUF

API_KEY_VARIABLE = "SR_EDGE_API_KEY"
"""Where the key for a --big URL is read from. A remote that has a name has its own key (`keys`)."""

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
    remote: RemoteConfig | None = None
    """An endpoint that was set up under a name, instead of `big`."""
    policy: Policy = "auto"
    offline: bool = False
    seed: int | None = None
    """None: another one each time."""
    temperature: float = 0.6
    big_temperature: float | None = None
    """None: the likeliest tokens for spans of a big GGUF, `temperature` where it writes the whole answer."""
    max_tokens: int = 4096
    max_span_tokens: int = 512
    max_spans: int | None = None
    """Of one answer; None: as many as `policy.SpanGate` allows by itself."""
    hedge: bool = False
    """The small model writes on while an endpoint has not begun; a remote's own setting goes before."""
    redact: tuple[str, ...] = ()
    """Names of `redact.rules`; a remote's own setting goes before."""
    budget: Budget | None = None
    dry_run: bool = False
    """Open no socket, and take down what the first span would send."""

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
        outside: Outside | None = None,
        suite: str | None = None,
        notices: Sequence[str] = (),
        owned: ExitStack | None = None,
    ) -> None:
        """Args:
        outside: what `remote` and `gate` are part of, if the large model is asked over the network.
        suite: the only kind of problem that the models were made for, if there is one.
        owned: closed with the session.
        """
        self.local = local
        self.remote = remote
        self.outside = outside
        self.notices = tuple(notices)
        """What the user should know before the answer, one line each."""
        self._settings = settings
        self._gate = gate
        self._suite = suite
        self._owned = owned or ExitStack()

    @classmethod
    def open(
        cls,
        settings: SessionSettings,
        *,
        environ: Mapping[str, str] = os.environ,
        warn: Callable[[str], None] = lambda line: None,
        progress: Callable[[float], None] | None = None,
    ) -> Session:
        """Open what the policy needs; no socket is opened before a span leaves.

        Args:
            environ: where keys and the program's own files are found.
            warn: gets lines that the user should see while an answer goes on.
            progress: see `LlamaLocal.open`.
        Raises:
            UsageError: the settings contradict each other.
            ModelError: a model file is missing or unusable.
        """
        _check(settings)
        pair = demo_paths() if settings.model is None else None
        model = settings.model or (pair.small if pair else None)
        assert model is not None
        remote = _remote_of(settings)
        gguf = None if remote else settings.big or (str(pair.big) if pair else None)
        if settings.policy == "remote" and not (remote or gguf):
            raise UsageError(f"no large model to write the answer: {_NAME_ONE}")
        if settings.dry_run and remote is None:
            raise UsageError(f"--dry-run shows what would leave, and no endpoint is asked: {_NAME_ONE}")

        from sr_edge.local import LlamaLocal

        with ExitStack() as owned:
            local = owned.enter_context(
                LlamaLocal.open(
                    model, temperature=settings.temperature, seed=settings.seed, progress=progress
                )
            )
            notices = []
            if settings.policy == "auto" and local.markers is None:
                notices.append(f"{local.name} has no markers, so it cannot ask for help: it writes alone")
                remote = gguf = None
            elif settings.policy == "auto" and not (remote or gguf):
                notices.append(f"the small model writes alone, for no large one is named: {_NAME_ONE}")
            outside, big = None, None
            if remote is not None and settings.policy != "local":
                outside = _reach(remote, settings, local, environ, warn)
                owned.callback(outside.endpoint.close)
            elif gguf is not None and settings.policy != "local":
                big = owned.enter_context(_open_gguf(gguf, settings))
            return cls(
                local,
                outside.model if outside else big,
                settings=settings,
                gate=outside.gate if outside else None,
                outside=outside,
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
            self.local,
            self.remote,
            gate=self._gate,
            limits=self._settings.limits(),
            policy=policy,
            hedge=self._settings.hedge and self.outside is not None,
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
        is_asked_alone = policy == "remote" and (self._settings.big is not None or self.outside is not None)
        if self._suite != DEMO or is_asked_alone:
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
    if settings.big == "":
        raise UsageError("--big is empty: name a GGUF or a URL")
    if settings.big is not None and "://" in settings.big and not is_url(settings.big):
        raise UsageError(f"--big {settings.big}: a URL begins with http:// or https://")
    if settings.big is not None and settings.remote is not None:
        raise UsageError("a remote and --big exclude each other: there is one large model")
    if settings.big_model is not None and not (settings.big is not None and is_url(settings.big)):
        raise UsageError("--big-model names a model behind a URL: give the URL with --big")


_NAME_ONE = "name one with --big, or set one up with `sr-edge remote add NAME URL`"


def _remote_of(settings: SessionSettings) -> RemoteConfig | None:
    """The endpoint that is meant, whether it has a name or not."""
    if settings.big is None or not is_url(settings.big):
        return settings.remote
    from sr_edge.config import RemoteConfig

    return RemoteConfig(name=settings.big, url=settings.big, model=settings.big_model)


def _reach(
    remote: RemoteConfig,
    settings: SessionSettings,
    local: LlamaLocal,
    environ: Mapping[str, str],
    warn: Callable[[str], None],
) -> Outside:
    from sr_edge.outside import Terms, reach

    key: str | None = environ.get(API_KEY_VARIABLE) or None
    if settings.remote is not None:
        from sr_edge.keys import find_key, known_keys

        if settings.offline:
            key = None
        elif settings.dry_run:  # it is not shown, so it is not fetched either
            key = "not-fetched" if known_keys([remote], environ=environ)[0].place else None
        else:
            secret = find_key(remote, environ=environ, say=warn)
            key = secret.reveal() if secret else None
    terms = Terms(
        offline=settings.offline,
        temperature=settings.temperature,
        seed=settings.seed,
        max_spans=settings.max_spans,
        redact=settings.redact,
        budget=settings.budget,
        dry_run=settings.dry_run,
    )
    is_named = settings.remote is not None
    outside = reach(remote, local, terms, key=key, is_named=is_named, environ=environ, warn=warn)
    if settings.hedge:
        outside.door.make_ready()  # an import beside the decoding would slow it down
    return outside


def _open_gguf(path: str, settings: SessionSettings) -> LocalGGUF:
    from sr_edge.remote.local_gguf import LocalGGUF

    temperature = settings.big_temperature
    if temperature is None:
        temperature = settings.temperature if settings.policy == "remote" else 0.0
    return LocalGGUF(Path(path), temperature=temperature, seed=settings.seed)
