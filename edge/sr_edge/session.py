"""One pair of models, opened and wired for as long as its user talks to it: settings in, events out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from sr_edge.ahead import ReadAhead
from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, Started
from sr_edge.files import cache_dir
from sr_edge.passport import demo_paths
from sr_edge.policy import Consent, Dial, DialGate, nobody
from sr_edge.reading import Places
from sr_edge.roles import First, Gate, Limits, LocalModel, Message, Progress, RemoteModel, Schedule, Steering
from sr_edge.shelf import check_on_load, find
from sr_edge.split import SplitDecoder
from sr_edge.terminal import safe_line

if TYPE_CHECKING:
    from sr_edge.budget import Budget
    from sr_edge.config import Config, RemoteConfig
    from sr_edge.local import LlamaLocal
    from sr_edge.outside import Outside, Sampling
    from sr_edge.remote.local_gguf import LocalGGUF
    from sr_edge.states import Reopening

API_KEY_VARIABLE = "SR_EDGE_API_KEY"
"""Where the key for a --big URL is read from. A remote that has a name has its own key (`keys`)."""

_ASKS: frozenset[Dial] = frozenset({"auto", "ask"})  # the small model may ask

DEMO = "demo"
_SUITE = "sr_edge.suite"
_MAX_UNKNOWN = 5


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a user may choose. Without `model` the built-in small one, and with it the built-in big one."""

    model: Path | None = None
    lora: Path | None = None
    """A GGUF adapter over `model`."""
    big: str | None = None
    """Path of a GGUF, or URL of an OpenAI-compatible endpoint."""
    big_model: str | None = None
    """The endpoint's name for the model."""
    remote: RemoteConfig | None = None
    """An endpoint that was set up under a name, instead of `big`."""
    policy: Dial = "auto"
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
    handback: Places = "word"
    """Where the small model may take the pen back."""
    hedge: bool = False
    """The small model writes on while an endpoint has not begun; a remote's own setting goes before."""
    speculate: bool = True
    """The small model drafts what a large GGUF writes, where that is faster: see `remote.speculation`."""
    redact: tuple[str, ...] = ()
    """Names of `redact.rules`; a remote's own setting goes before."""
    budget: Budget | None = None
    dry_run: bool = False
    """Open no socket, and take down what the first span would send."""
    threads: int | None = None
    """The most that either model computes with; None: by the processor, and by what was measured."""
    calibrate: bool = False
    """The first time that the small model is opened, measure how fast it runs: see `calibration`."""
    kept_mb: int | None = None
    """How much of the disk the caches of conversations may take; None keeps none."""
    answers: int = 1
    """So many can be written at once: see `beside`."""
    conversations: int = 1
    """Of so many the small model's cache is kept in memory; as many as `answers`, or more."""

    def limits(self) -> Limits:
        soft = min(Limits().soft_span_tokens, self.max_span_tokens)
        return Limits(self.max_tokens, self.max_span_tokens, soft, self.handback)


def settings_of(
    config: Config,
    *,
    big: str | None,
    big_model: str | None,
    hedge: bool | None,
    lora: Path | None = None,
    dry_run: bool = False,
) -> SessionSettings:
    """What the user's settings mean for a session.

    Args:
        hedge: as the command line has it; it goes before the remote's own.
    Raises:
        UsageError: an option names nothing.
    """
    for option, value in (("--big", big), ("--big-model", big_model)):
        if value is not None and not value.strip():
            raise UsageError(f"{option} is empty: name a large model, or leave it out")
    has_default = config.default_remote is not None and config.offload.policy != "local"
    chosen = config.remote() if big is None and has_default else None
    own_hedge = chosen.hedge if chosen is not None and hedge is None else None
    settings = SessionSettings(
        lora=lora,
        big=big,
        big_model=big_model,
        remote=chosen,
        policy=config.offload.policy,
        offline=config.offline,
        seed=config.sampling.seed,
        temperature=config.sampling.temperature,
        max_tokens=config.sampling.max_tokens,
        max_span_tokens=config.offload.max_span_tokens,
        max_spans=config.offload.max_spans,
        handback=config.offload.handback,
        hedge=config.offload.hedge if own_hedge is None else own_hedge,
        speculate=config.offload.speculate,
        redact=config.offload.redact,
        budget=config.budget,
        dry_run=dry_run,
        threads=config.engine.threads,
        calibrate=config.engine.calibrate,
        kept_mb=config.cache.max_mb if config.cache.conversations and config.log.enabled else None,
    )
    if config.model is None:
        _check(settings)
        return settings
    _check(replace(settings, model=Path(config.model)))
    return replace(settings, model=find(config.model))


class Stoppable(Protocol):
    """See `LlamaLocal.stop`."""

    def stop(self) -> None: ...
    def go_on(self) -> None: ...


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
        stoppable: Sequence[Stoppable] = (),
        reopening: Reopening | None = None,
        owned: ExitStack | None = None,
    ) -> None:
        """Args:
        outside: what `remote` and `gate` are part of, if the large model is asked over the network.
        suite: the only kind of problem that the models were made for, if there is one.
        stoppable: the models that compute on this machine.
        reopening: keeps the cache of `local` on disk, by conversation.
        owned: closed with the session.
        """
        self.local = local
        self.remote = remote
        self.outside = outside
        self.notices = tuple(notices)
        """What the user should know before the answer, one line each."""
        self._settings = settings
        self._gate = DialGate(gate, dial=settings.policy, leaves=outside is not None)
        self._bias = 0.0
        self._suite = suite
        self._stoppable = tuple(stoppable)
        self._reopening = None if self.hears_one_question else reopening
        self._ahead = ReadAhead(local)
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
            progress: see `LlamaLocal.open`; of both models, if there are two.
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
        if settings.dry_run and remote is None:
            raise UsageError(f"--dry-run shows what would leave, and no endpoint is asked: {_NAME_ONE}")

        with one_blas_thread():
            from sr_edge.local import LlamaLocal

        check_on_load(model)
        has_big = gguf is not None and settings.policy != "local"
        shares = _shares([model, Path(gguf)] if gguf is not None and has_big else [model], progress)
        if gguf is not None and has_big:
            check_on_load(Path(gguf))
        with ExitStack() as owned:
            local = owned.enter_context(
                LlamaLocal.open(
                    model,
                    lora=settings.lora,
                    temperature=settings.temperature,
                    seed=settings.seed,
                    threads=settings.threads,
                    progress=shares[0],
                    cursors=settings.conversations,
                    contexts=settings.answers,
                )
            )
            if settings.calibrate:
                local.calibrate(cache_dir(environ), say=warn, check=_check_of(shares[0]))
            notices = []
            if settings.policy in _ASKS and local.markers is None:
                notices.append(f"{local.name} has no markers, so it cannot ask for help: it writes alone")
                remote = gguf = None
            elif settings.policy in _ASKS and not (remote or gguf):
                notices.append(f"the small model writes alone, for no large one is named: {_NAME_ONE}")
            outside, big = None, None
            if remote is not None and settings.policy != "local":
                outside = _reach(remote, settings, local, environ, warn)
                owned.callback(outside.endpoint.close)
            elif gguf is not None and settings.policy != "local":
                big = owned.enter_context(_open_gguf(gguf, settings, local, shares[-1]))
            return cls(
                local,
                outside.model if outside else big,
                settings=settings,
                gate=outside.gate if outside else None,
                outside=outside,
                suite=local.metadata.get(_SUITE),
                notices=notices,
                stoppable=[local, big] if big else [local],
                reopening=_reopening_of(settings, local, environ, warn),
                owned=owned.pop_all(),
            )

    def beside(
        self,
        local: LocalModel,
        big: RemoteModel | None,
        settings: SessionSettings,
        *,
        is_raw: bool = False,
        sampling: Sampling | None = None,
    ) -> Session:
        """Another conversation over the same models, which may go on at the same time. It owns none of them.

        Args:
            local: a cursor of the small model.
            big: a writer of the large one, where that is a GGUF; an endpoint is the same for all.
            is_raw: what is asked is no question: a text to go on with.
            sampling: an endpoint's; None for what the user has set.
        """
        outside = self.outside.anew(sampling) if self.outside else None
        return Session(
            local,
            outside.model if outside else big,
            settings=settings,
            gate=outside.gate if outside else None,
            outside=outside,
            suite=None if is_raw else self._suite,
        )

    @property
    def dial(self) -> Dial:
        """Who writes. It can be turned from any thread; `remote` only between answers."""
        return self._gate.dial

    @dial.setter
    def dial(self, dial: Dial) -> None:
        self._gate.dial = dial

    @property
    def bias(self) -> float:
        """Added to the logit of the opening marker, from any thread: above 0 the small model asks more."""
        return self._bias

    @bias.setter
    def bias(self, bias: float) -> None:
        self._bias = bias

    def answer(
        self,
        messages: Sequence[Message],
        *,
        past: Sequence[Event] = (),
        first: First | None = None,
        consent: Consent = nobody,
        cancelled: Callable[[], bool] = lambda: False,
        schedule: Schedule | None = None,
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Iterator[Event]:
        """The events of one answer; arguments as in `SplitDecoder.generate`.

        Args:
            consent: asked before a span leaves this machine while the dial is at `ask`.
        Raises:
            ContextFullError: the prompt does not fit; before any event.
            UsageError: nobody can go on as it is asked for; before any event.
        """
        messages = self.told(messages)
        if first == "remote" and self.remote is None:
            raise UsageError(f"there is no large model to go on: {_NAME_ONE}")
        unknown = self._unknown_words(messages)
        if unknown and past:
            raise UsageError(_not_made_for(unknown))
        if unknown:
            yield from self._refused(messages, unknown)
            return
        self._ahead.take(messages)
        self._gate.consent = consent
        decoder = SplitDecoder(
            self.local,
            self.remote,
            gate=self._gate,
            limits=self._settings.limits(),
            policy="remote" if self.dial == "remote" else "auto" if self.remote else "local",
            hedge=self._settings.hedge and self.outside is not None,
            steer=lambda: Steering(asks=self._gate.dial != "local", bias=self._bias),
        )
        yield from decoder.generate(
            messages, past=past, first=first, cancelled=cancelled, schedule=schedule, progress=progress
        )

    @property
    def hears_one_question(self) -> bool:
        """The built-in models were trained on single problems: what was said before confuses them."""
        writes_alone = self.dial == "remote" and (self._settings.big is not None or self.outside is not None)
        return self._suite == DEMO and not writes_alone

    def told(self, messages: Sequence[Message]) -> Sequence[Message]:
        """What of a conversation the models are told."""
        return messages[-1:] if self.hears_one_question else messages

    def turn_to(self, conversation: str | None) -> None:
        """What is answered from here on belongs to this one, whose cache is had back if it is on disk.

        None: to none that is kept.
        """
        if self._reopening is not None:
            if self._reopening.will_load(conversation):
                self._ahead.drop()
            self._reopening.turn_to(conversation)

    def read_ahead(self, messages: Sequence[Message], *, goes_on: Callable[[], bool]) -> int:
        """Read a conversation whose last message is still being typed; see `ReadAhead.read`."""
        return self._ahead.read(self.told(messages), goes_on=goes_on)

    def keep(self) -> None:
        """Write the conversation's cache to disk, if such are kept and it has changed."""
        if self._reopening is not None:
            self._reopening.keep()

    def forget(self, conversation: str) -> None:
        """The user removed it: nothing of it may come to disk any more."""
        if self._reopening is not None:
            self._reopening.forget(conversation)

    def stop(self) -> None:
        """From any thread: no model computes any more until `go_on`. An answer needs `cancelled` besides."""
        for model in self._stoppable:
            model.stop()

    def go_on(self) -> None:
        for model in self._stoppable:
            model.go_on()

    @property
    def is_offline(self) -> bool:
        return self._settings.offline

    def close(self) -> None:
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _unknown_words(self, messages: Sequence[Message]) -> list[str]:
        """What the models were not made for in the question; nothing if they are for everything."""
        if not self.hears_one_question:
            return []
        from sr_edge.suites import demo

        return demo.unknown_words(messages[-1].content)

    def _refused(self, messages: Sequence[Message], unknown: Sequence[str]) -> Iterator[Event]:
        prompt = self.local.render(messages)
        yield Started(
            prompt_ids=prompt.ids,
            model=self.local.name,
            big=self.remote.name if self.remote else None,
            opening=prompt.opening,
        )
        yield Finished(
            reason="refused",
            prompt_tokens=len(prompt.ids),
            local_tokens=0,
            remote_tokens=0,
            seconds=0.0,
            error=_not_made_for(unknown),
        )


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """For the import of NumPy: its BLAS starts a thread for each core, and they spin for a tenth of a second.

    Nothing multiplies matrices here but llama.cpp, which has threads of its own. A user's own choice stands.
    """
    variable = "OPENBLAS_NUM_THREADS"
    is_ours = variable not in os.environ
    if is_ours:
        os.environ[variable] = "1"
    try:
        yield
    finally:
        if is_ours:
            del os.environ[variable]


def _not_made_for(unknown: Sequence[str]) -> str:
    words = ", ".join(safe_line(word)[:20] for word in unknown[:_MAX_UNKNOWN])
    more = " ..." if len(unknown) > _MAX_UNKNOWN else ""
    return (
        "the built-in demo models only do short word problems of their own kind (unknown here: "
        f"{words}{more}); see some with `sr-edge eval --suite demo --print-problems 3`; a real model: "
        "`sr-edge ask -m MODEL.gguf --big URL`"
    )


def _check(settings: SessionSettings) -> None:
    if settings.lora is not None and settings.model is None:
        raise UsageError("--lora changes a model of yours: name the one that it was trained on with -m")
    if settings.big == "":
        raise UsageError("--big is empty: name a GGUF or a URL")
    if settings.big is not None and "://" in settings.big and not is_url(settings.big):
        raise UsageError(f"--big {settings.big}: a URL begins with http:// or https://")
    if settings.big is not None and settings.remote is not None:
        raise UsageError("a remote and --big exclude each other: there is one large model")
    if settings.policy == "remote" and settings.model and not (settings.remote or settings.big):
        raise UsageError(f"no large model to write the answer: {_NAME_ONE}")
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
    outside = reach(remote, local.render_anew, terms, key=key, is_named=is_named, environ=environ, warn=warn)
    if settings.hedge:
        outside.door.make_ready()  # an import beside the decoding would slow it down
    return outside


def _shares(
    paths: Sequence[Path], progress: Callable[[float], None] | None
) -> list[Callable[[float], None] | None]:
    """For each file, which are read one after the other, its part of the whole progress, by size."""
    if progress is None:
        return [None for _ in paths]
    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]  # a missing one fails later
    before = [sum(sizes[:n]) for n in range(len(sizes))]
    whole = sum(sizes) or 1

    def share(start: int, size: int) -> Callable[[float], None]:
        return lambda done: progress((start + done * size) / whole)

    return [share(start, size) for start, size in zip(before, sizes, strict=True)]


def _reopening_of(
    settings: SessionSettings, local: LlamaLocal, environ: Mapping[str, str], warn: Callable[[str], None]
) -> Reopening | None:
    if settings.kept_mb is None:
        return None
    from sr_edge.states import Reopening, StateFolder, states_dir

    folder = StateFolder(states_dir(environ), max_bytes=settings.kept_mb << 20)
    return Reopening(local, folder, warn=warn)


def _check_of(progress: Callable[[float], None] | None) -> Callable[[], None]:
    """What ends a step between two others, as it ends the loading."""
    return (lambda: None) if progress is None else (lambda: progress(1.0))


def _open_gguf(
    path: str, settings: SessionSettings, small: LocalModel, progress: Callable[[float], None] | None
) -> LocalGGUF:
    from sr_edge.remote.local_gguf import LocalGGUF

    temperature = settings.big_temperature
    if temperature is None:
        temperature = settings.temperature if settings.policy == "remote" else 0.0
    return LocalGGUF(
        Path(path),
        temperature=temperature,
        seed=settings.seed,
        small=small if settings.speculate else None,
        threads=settings.threads,
        progress=progress,
        answers=settings.answers,
    )
