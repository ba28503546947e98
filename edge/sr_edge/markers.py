"""The two markers: how they are spelled, where a GGUF says what they are, and how they are found in text.

A model's markers have one of two forms. *token*: each is one control token (our own models). *text*:
they are ordinary text, several tokens each (the published SplitReason checkpoints). Two close spellings
are read, one is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sr_edge.errors import MarkerError

OPEN = "<bigmodel>"
CLOSE = "</bigmodel>"
CLOSE_SPELLINGS = (CLOSE, "<\\bigmodel>")
SPELLINGS = (OPEN, *CLOSE_SPELLINGS)
_LONGEST = max(map(len, SPELLINGS))

KEY_FORM = "sr_edge.markers.form"
KEY_OPEN_ID = "sr_edge.markers.open_id"
KEY_CLOSE_ID = "sr_edge.markers.close_id"
KEY_TAU = "sr_edge.handback.tau"
KEY_MIN_SPAN = "sr_edge.handback.min_span"
KEY_BASE_MODEL = "sr_edge.base_model"
KEY_TRAINING_RUN = "sr_edge.training_run"
KEY_VERSION = "sr_edge.version"
"""Of the program that wrote the file."""

DEFAULT_TAU = 0.5
DEFAULT_MIN_SPAN = 1

_TEXT_FORM_NAMES = ("speculativereasoner", "specreasoner", "splitreason")
"""Parts of the names of the published checkpoints, whose GGUFs carry no key of ours."""


@dataclass(frozen=True, slots=True)
class Markers:
    """What one model's markers are. `open_ids` and `close_ids` hold one id each in token form."""

    form: Literal["token", "text"]
    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    tau: float = DEFAULT_TAU
    """Hand-back threshold on p(close), in (0, 1)."""
    min_span: int = DEFAULT_MIN_SPAN
    """Tokens that a span has at least before it can be handed back."""


def find_markers(
    metadata: Mapping[str, str],
    token_id: Callable[[str], int | None],
    tokenize: Callable[[str], Sequence[int]],
) -> Markers | None:
    """The markers of a model, from its GGUF metadata and vocabulary; None if it was not trained with any.

    Args:
        token_id: id of the control token spelled so, or None.
        tokenize: ids of ordinary text.
    Raises:
        MarkerError: the metadata names markers that the vocabulary does not have.
    """
    tau, min_span = _handback(metadata)
    form = metadata.get(KEY_FORM)
    open_id, close_id = token_id(OPEN), token_id(CLOSE)
    if form == "token" or (form is None and open_id is not None and close_id is not None):
        if open_id is None or close_id is None:
            raise MarkerError(
                f"the metadata says that {OPEN} and {CLOSE} are control tokens, the vocabulary lacks them: "
                "convert the checkpoint again, or get the file anew"
            )
        named = metadata.get(KEY_OPEN_ID), metadata.get(KEY_CLOSE_ID)
        if named != (None, None) and named != (str(open_id), str(close_id)):
            raise MarkerError(
                f"the metadata says that the markers are tokens {named[0]} and {named[1]}, the vocabulary "
                f"has them at {open_id} and {close_id}: convert the checkpoint again, or get the file anew"
            )
        return Markers("token", (open_id,), (close_id,), tau, min_span)
    if form == "text" or (form is None and is_text_form_name(metadata.get("general.name", ""))):
        return Markers("text", tuple(tokenize(OPEN)), tuple(tokenize(CLOSE)), tau, min_span)
    if form is not None:
        raise MarkerError(f"unknown marker form {form!r} in the metadata: 'token' and 'text' are known")
    return None


def is_text_form_name(name: str) -> bool:
    """Whether a model of this name is one of the published checkpoints, whose markers are ordinary text."""
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    return any(part in plain for part in _TEXT_FORM_NAMES)


def _handback(metadata: Mapping[str, str]) -> tuple[float, int]:
    try:
        tau = float(metadata.get(KEY_TAU, DEFAULT_TAU))
        min_span = int(metadata.get(KEY_MIN_SPAN, DEFAULT_MIN_SPAN))
    except ValueError as error:
        raise MarkerError(f"hand-back settings in the metadata cannot be read: {error}") from None
    if not 0 < tau < 1 or min_span < 0:
        raise MarkerError(f"hand-back settings out of range: tau {tau}, min_span {min_span}")
    return tau, min_span


def partial_length(text: str, spellings: Sequence[str] = SPELLINGS) -> int:
    """Length of the longest suffix of `text` that a marker may still grow from."""
    longest = max(map(len, spellings)) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(len(s) > n and s.startswith(text[-n:]) for s in spellings):
            return n
    return 0


class MarkerFilter:
    """Removes marker spellings from text that arrives in pieces: what a remote wrote cannot steer us."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain by now; a possible beginning of a marker is held back.

        So is one that stands before another: what comes between the two halves may be removed yet.
        """
        text = strip_markers(self._held + text)
        keep = len(text)
        while held := partial_length(text[max(0, keep - _LONGEST) : keep]):
            keep -= held
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """What was held back and turned out to be no marker."""
        held, self._held = self._held, ""
        return held


def strip_markers(text: str) -> str:
    """`text` without marker spellings, those that appear by removing another included."""
    while any(s in text for s in SPELLINGS):
        for spelling in SPELLINGS:
            text = text.replace(spelling, "")
    return text
