"""A large model over the network, put together from what the user has set: address, key, limits, door.

Nothing here opens a socket; the first span does, if the gate lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from sr_edge.budget import Account, Budget, Ledger, Meter, Price, Spent
from sr_edge.files import cache_dir, state_dir
from sr_edge.policy import MAX_SPANS, Breaker, SpanGate
from sr_edge.remote import known
from sr_edge.remote.deadlines import Deadlines
from sr_edge.remote.egress import Door
from sr_edge.remote.endpoint import Endpoint
from sr_edge.remote.rehearsal import Rehearsal
from sr_edge.roles import Message, Prompt, RemoteModel

if TYPE_CHECKING:
    from sr_edge.config import RemoteConfig
    from sr_edge.redact import Redactor
    from sr_edge.remote.endpoint import Preview


@dataclass(frozen=True, slots=True)
class Terms:
    """How the endpoint is asked, whichever it is. Fields as in `session.SessionSettings`."""

    offline: bool
    temperature: float
    seed: int | None
    max_spans: int | None
    redact: tuple[str, ...]
    budget: Budget | None
    dry_run: bool


class Sampling(Protocol):
    """What an endpoint is told of how to sample; see `local.SamplerSettings`."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def seed(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class _Parts:
    """Makes what each conversation has of its own."""

    redactor: Callable[[], Redactor | None]
    gate: Callable[[], SpanGate]


@dataclass(frozen=True, slots=True)
class Outside:
    """The large model as the decoder sees it, the gate before it, and what the user is told of both."""

    price: Price | None
    ledger: Ledger

    model: RemoteModel
    gate: SpanGate
    endpoint: Endpoint
    door: Door
    redactor: Redactor | None
    rehearsal: Rehearsal | None
    _parts: _Parts = field(repr=False)

    def anew(self, sampling: Sampling | None = None) -> Outside:
        """The same for another conversation, which may go on beside this one: the same endpoint, breaker and
        ledger, with a budget and placeholders of its own.

        Args:
            sampling: None for what the user has set.
        """
        redactor = self._parts.redactor()
        endpoint = self.endpoint
        if sampling is not None:
            endpoint = endpoint.sampled(
                temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed
            )
        model: RemoteModel = self.rehearsal or endpoint
        if redactor is not None:
            from sr_edge.redact import Redacting

            model = Redacting(model, redactor)
        return replace(self, model=model, gate=self._parts.gate(), redactor=redactor)

    def spent_today(self) -> Spent:
        """On all remotes."""
        return self.ledger.spent()

    def preview(self, messages: Sequence[Message], answer: str, max_tokens: int) -> Preview:
        """What a span would send first, as it would leave. Opens nothing."""
        rehearsal = Rehearsal(self.endpoint)
        model: RemoteModel = rehearsal
        if self.redactor is not None:
            from sr_edge.redact import Redacting

            model = Redacting(rehearsal, self.redactor)
        model.stream(messages, answer, max_tokens).close()
        assert rehearsal.preview is not None
        return rehearsal.preview

    def go_offline(self) -> None:
        """For good and from any thread: a span that is being written is hung up on, no other leaves."""
        self.gate.go_offline()
        self.door.go_offline()


def reach(
    remote: RemoteConfig,
    prompt: Callable[[Sequence[Message]], Prompt],
    terms: Terms,
    *,
    key: str | None,
    is_named: bool,
    environ: Mapping[str, str],
    warn: Callable[[str], None],
) -> Outside:
    """Put it together; the caller closes `endpoint`.

    Args:
        prompt: renders a conversation as the local model reads it, on any thread.
        key: of this remote.
        is_named: whether the user gave the remote its name, and knows it by that.
        warn: gets lines about the budget.
    Raises:
        UsageError: a setting cannot be meant.
    """
    cache = cache_dir(environ) / "endpoints.json"
    door = Door(offline=terms.offline or terms.dry_run)
    endpoint = Endpoint(
        remote.url,
        prompt=prompt,
        model=remote.model,
        api_key=key,
        api=remote.api,
        capabilities=known.load(cache, remote.url, remote.model),
        learned=lambda capabilities: known.save(cache, remote.url, remote.model, capabilities),
        temperature=terms.temperature,
        seed=terms.seed,
        deadlines=Deadlines(**remote.timeout),
        plain_http=remote.plain_http,
        ca_file=remote.ca_file,
        proxy=remote.proxy,
        door=door,
        name=remote.name if is_named else None,
    )
    rehearsal = Rehearsal(endpoint) if terms.dry_run else None
    names = terms.redact if remote.redact is None else remote.redact

    def new_redactor() -> Redactor | None:
        if not names:
            return None
        from sr_edge.redact import rules

        return rules(names, secrets=(key,) if key else ())

    budget = terms.budget or Budget()
    if remote.price is None and (budget.usd_per_answer, budget.usd_per_day) != (None, None):
        way = f"`sr-edge remote price {remote.name} --input USD --output USD`"
        if not is_named:
            way = "set it up with `sr-edge remote add`"
        warn(f"the budget in dollars does not count: no prices are set for {remote.name}: {way}")
    ledger = Ledger(state_dir(environ) / "spent.json")
    breaker = Breaker(knock=endpoint.knock)

    def new_gate() -> SpanGate:
        purse = None
        if rehearsal is None:
            purse = Account(Meter(budget, remote.price), ledger, remote.name, warn=warn)
        return SpanGate(
            offline=terms.offline,
            uses_network=True,
            max_spans=MAX_SPANS if terms.max_spans is None else terms.max_spans,
            breaker=breaker,
            purse=purse,
        )

    parts = _Parts(new_redactor, new_gate)
    first = Outside(
        remote.price, ledger, rehearsal or endpoint, new_gate(), endpoint, door, None, rehearsal, parts
    )
    return first.anew()
