"""What the user's settings mean for a session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sr_edge.errors import UsageError

if TYPE_CHECKING:
    from sr_edge.config import Config
    from sr_edge.session import SessionSettings


def session_settings(
    config: Config, *, big: str | None, big_model: str | None, hedge: bool | None, dry_run: bool = False
) -> SessionSettings:
    """What the settings mean for a session.

    Args:
        hedge: as the command line has it; it goes before the remote's own.
    Raises:
        UsageError: an option names nothing.
    """
    from sr_edge.session import SessionSettings

    for option, value in (("--big", big), ("--big-model", big_model)):
        if value is not None and not value.strip():
            raise UsageError(f"{option} is empty: name a large model, or leave it out")
    has_default = config.default_remote is not None and config.offload.policy != "local"
    chosen = config.remote() if big is None and has_default else None
    own_hedge = chosen.hedge if chosen is not None and hedge is None else None
    return SessionSettings(
        model=None if config.model is None else Path(config.model),
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
        hedge=config.offload.hedge if own_hedge is None else own_hedge,
        redact=config.offload.redact,
        budget=config.budget,
        dry_run=dry_run,
    )
