"""Reads a span into the small model's context while it arrives, and sees where it wants the pen back.

The text is cut to local tokens incrementally. A token near the end may still change with the next
letters, so the last ones are held back; where earlier ones change all the same, the cache is rewound to
the first difference. Only the text since the last place where tokens cannot merge is tokenised again,
so the cost is linear in the span's length. Each prefilled position tells p(close) without decoding
anything (the controlling prefill that SplitReason, arXiv 2504.16379, describes but does not implement).
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from sr_edge.errors import GenerationError
from sr_edge.markers import CLOSE_SPELLINGS, Markers

Places = Literal["token", "word", "sentence"]
"""Where the small model may take the pen back: after any token, at the end of a word or of a sentence.

To read p(close) somewhere takes a row of the output layer, which is a fifth of reading the token itself. The
built-in pair hands back after words as it does after tokens; at the ends of sentences it does not.
"""

HOLD = 2
"""Last tokens not fed yet: later letters may change them (at most 1.2 % are fed twice)."""

_BOUNDARY = re.compile(r"(?<=[^\W_]) (?=[^\W\d_])")
"""Between a word and a word: no pre-tokenizer of the supported families joins across it."""

_MAX_WINDOW = 128
"""Tokens tokenised again at most where a text (digits, Chinese, code) has no such boundary."""

_CHARS_PER_TOKEN = 3
"""Roughly, to tell how many tokens wait without cutting them each time."""

_SENTENCE = re.compile(r"""(?:\n|[.!?:;][)\]}"'*$]*\s)\s*$|[\u2026\u3002\uff01\uff1a\uff1b\uff1f]\s*$""")
"""The end of a line or of a sentence, with the white space after it; Chinese has none there."""
_LOOK_BACK = 8
"""Characters that it may need."""

_CANDIDATE = 0.2
"""Text form: probability of a token that can begin a close marker, above which decoding confirms it."""

_CONFIRM_TOKENS = 8
_MAY_PRECEDE = " \t\r\n.,;:!?)"
"""What a token such as `.</` brings along before the marker itself."""


class _Id(Protocol):
    @property
    def id(self) -> int: ...


class Branch(Protocol):
    """A greedy side branch of the cache."""

    def sample(self) -> _Id: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...


class Cache(Protocol):
    """What reading needs of the local model; see `roles.LocalModel` for the meaning."""

    @property
    def ids(self) -> Sequence[int]: ...
    def tokenize(self, text: str) -> list[int]: ...
    def piece(self, id: int) -> bytes: ...
    def feed(self, ids: Sequence[int], *, probe: bool | Sequence[bool] = False) -> list[float]: ...
    def rewind(self, n: int) -> None: ...
    def fork(self, n: int | None = None) -> Branch: ...


@dataclass(frozen=True, slots=True)
class Read:
    """Text that the small model has read by now and may be shown; `end` if the span is over here."""

    text: str = ""
    end: Literal["handback", "boundary", "cap"] | None = None


class SpanReader:
    """Owns the end of the cache while one span is written."""

    def __init__(
        self,
        cache: Cache,
        markers: Markers | None,
        *,
        max_tokens: int,
        soft_tokens: int,
        handback: bool = True,
        places: Places = "word",
        batch_tokens: int = 1,
    ) -> None:
        """Args:
        max_tokens: hard cap in local tokens.
        soft_tokens: from here on the end of a paragraph ends the span.
        handback: whether the small model closes the span: when it wants the pen, and after the last text.
        batch_tokens: about how many are read at once, unless `push` is told not to wait.
        """
        self._cache = cache
        self._markers = markers if handback else None
        self._max_tokens = max_tokens
        self._soft_tokens = soft_tokens
        self._places: Places = places
        self._wait_for = (batch_tokens - 1) * _CHARS_PER_TOKEN
        self._start = len(cache.ids)
        self._window_at = self._start  # where in the cache the window's tokens begin
        self._window = ""  # text since the last boundary, fed or not
        self._shown = 0  # characters of the window that were shown
        self._waiting = 0  # characters that came since text was last cut to tokens
        self._closing = 0  # tokens of the closing marker in the cache
        self.p_close: float | None = None

    @property
    def tokens(self) -> int:
        """Local tokens of the span in the cache."""
        return len(self._cache.ids) - self._start - self._closing

    @property
    def is_closed(self) -> bool:
        """Whether the closing marker is in the cache already: it was read along with the last text."""
        return self._closing > 0

    @property
    def is_waiting(self) -> bool:
        """Whether there is text that was not read because more was waited for."""
        return self._waiting > 0

    def push(self, text: str, *, due: bool = False, final: bool = False) -> Read:
        """Take the next text of the span.

        Args:
            due: read what there is, however little.
            final: nothing follows.
        """
        self._window += text
        self._waiting += len(text)
        if self._waiting < self._wait_for and not (due or final):
            return Read()
        self._waiting = 0
        ids = self._cache.tokenize(self._window)
        certain = ids if final else ids[: max(0, len(ids) - HOLD)]
        fed = self._cache.ids[self._window_at :]
        same = common_length(fed, certain)
        if same == len(certain) and not (final and len(fed) > same):
            return Read()
        ends = self._character_ends(certain)
        stop = self._last_allowed(ends, same)
        if same < len(fed):
            self._cache.rewind(self._window_at + same)
        places = [self._is_place(n, ends[n], is_last=final and n + 1 == stop) for n in range(same, stop)]
        closing = self._markers.close_ids if final and self._markers is not None else ()
        try:
            closes = self._cache.feed(
                [*certain[same:stop], *closing], probe=[*places, *(False for _ in closing)]
            )
        except GenerationError:
            self._cache.feed(fed[same:])  # it was shown
            raise
        self._closing = len(closing)
        probed = iter(closes)
        for n, is_place in enumerate(places, start=same):
            at = ends[n]
            close = next(probed) if is_place else None
            if at is None or at <= self._shown:
                continue
            if close is not None:
                self.p_close = math.exp(close)
                if self._wants_pen(n + 1):
                    return self._end_at(n + 1, at, "handback")
            if self._tokens_at(n + 1) >= self._soft_tokens and self._window[:at].endswith("\n\n"):
                return self._end_at(n + 1, at, "boundary")
        text = self._show(ends[:stop])
        is_cut = stop < len(certain)
        is_full = self._tokens_at(stop) >= self._max_tokens and ends[stop - 1] is not None  # whole characters
        if is_cut or (is_full and not final):
            return Read(text, "cap")
        self._move_window(ends[:stop])
        return Read(text)

    def _is_place(self, n: int, at: int | None, *, is_last: bool) -> bool:
        """Whether to read p(close) after the window's n-th token, which ends before character `at`."""
        if self._markers is None or at is None or at <= self._shown:
            return False
        if self._places == "token" or is_last:
            return True
        before, after = self._window[max(0, at - _LOOK_BACK) : at], self._window[at : at + 1]
        if self._places == "word":
            return not (_is_of_word(before[-1:]) and _is_of_word(after))
        return _SENTENCE.search(before + after if after.isspace() else before) is not None

    def _character_ends(self, ids: Sequence[int]) -> list[int | None]:
        """For each token the number of window characters up to its end; None inside a character."""
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        ends: list[int | None] = []
        length = 0
        for id in ids:
            length += len(utf8.decode(self._cache.piece(id)))
            ends.append(None if utf8.getstate()[0] else length)
        return ends

    def _last_allowed(self, ends: Sequence[int | None], same: int) -> int:
        """How many window tokens the cap allows: whole characters, and all that was shown."""
        for n in range(same, len(ends)):
            at = ends[n]
            if self._tokens_at(n + 1) >= self._max_tokens and at is not None and at >= self._shown:
                return n + 1
        return len(ends)

    def _tokens_at(self, n: int) -> int:
        """Tokens of the span up to the window's n-th."""
        return self._window_at - self._start + n

    def _wants_pen(self, n: int) -> bool:
        if self._markers is None or self.p_close is None or self._tokens_at(n) < self._markers.min_span:
            return False
        if self._markers.form == "token":
            return self.p_close > self._markers.tau
        return self.p_close > _CANDIDATE and self._would_close(self._window_at + n)

    def _would_close(self, at: int) -> bool:
        """Text form: decode greedily from cache position `at` and see whether a close marker comes.

        Where that cannot be seen it doesn't: the text has been read, and is to be shown.
        """
        written = b""
        with suppress(GenerationError), self._cache.fork(at) as branch:
            for _ in range(_CONFIRM_TOKENS):
                written += self._cache.piece(branch.sample().id)
                text = written.decode("utf-8", "replace").lstrip(_MAY_PRECEDE)
                if text.startswith(CLOSE_SPELLINGS):
                    return True
                if not any(spelling.startswith(text) for spelling in CLOSE_SPELLINGS):
                    return False
        return False

    def _end_at(self, n: int, at: int, end: Literal["handback", "boundary"]) -> Read:
        self._cache.rewind(self._window_at + n)
        self._closing = 0
        text = self._window[self._shown : at]
        self._shown = at
        return Read(text, end)

    def _show(self, ends: Sequence[int | None]) -> str:
        at = max((end for end in ends if end is not None), default=0)
        text = self._window[self._shown : at]
        self._shown = max(self._shown, at)
        return text

    def _move_window(self, ends: Sequence[int | None]) -> None:
        """Begin the window at its last boundary that tokens respect."""
        n_at = {at: n + 1 for n, at in enumerate(ends) if at is not None}
        cuts = [m.start() for m in _BOUNDARY.finditer(self._window, 0, self._shown) if m.start() in n_at]
        if not cuts and len(ends) > _MAX_WINDOW:
            cuts = [at for at, n in n_at.items() if n <= len(ends) - _MAX_WINDOW // 2][-1:]
        if cuts:
            at = cuts[-1]
            self._window_at += n_at[at]
            self._window = self._window[at:]
            self._shown -= at


def _is_of_word(letter: str) -> bool:
    return letter.isalnum() and letter < "\u2e80"  # from there on most are words of their own


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return n
    return min(len(a), len(b))
