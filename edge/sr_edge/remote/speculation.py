"""Speculative decoding of a span: the small model drafts, the large one on the same machine verifies.

The large model reads a draft of several tokens in one decode and keeps those that it would have chosen
itself, so the text is the same and only the time may differ. Whether it does is measured while spans are
written: see `Contest`. Source: Leviathan et al., arXiv:2211.17192, at temperature 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Protocol

from sr_edge.errors import EdgeError, GenerationError, StoppedError
from sr_edge.reading import common_length
from sr_edge.roles import LocalModel, Sampled

MAX_DRAFT = 16
"""Tokens. The large model's `verify` takes 31 at most."""

_FIRST_DRAFT = 4
_HOPELESS = 1.5
"""Times as slow as without it, a draft is tried no second time."""

_RESERVE = 32
"""Tokens of the small model's context that a branch never takes from the span itself."""

_SAMPLE = (
    "Let's compute: 12 × 345 = 4140, so f(x) = \\frac{x^2}{2} + 7.\n\n\tdef größe(naïve, x_1):\n"
    "        return {'a': [1, 2.5]}  # unbelievably, THE end… 数学は楽しい 🧮 Привет, wrongly-hyphenated?!\n"
)
"""Words, digits, code and other scripts: two vocabularies that cut all of it alike are the same."""


class Verifier(LocalModel, Protocol):
    """The large model."""

    def verify(self, draft: Sequence[int], banned: Collection[int] = ()) -> list[int]:
        """See `LlamaLocal.verify`."""


def share_vocabulary(small: LocalModel, big: LocalModel) -> bool:
    """Whether ordinary text is the same ids in both; markers, control tokens and padding may differ."""
    ids = small.tokenize(_SAMPLE)
    return ids == big.tokenize(_SAMPLE) and all(_means_the_same(id, small, big) for id in ids)


class Speculation:
    """The small model as a draft of the large one, for as long as both are open."""

    def __init__(
        self,
        small: LocalModel,
        big: Verifier,
        *,
        clock: Callable[[], float],
        likely: float = 0.4,
        contest: Contest | Always | None = None,
    ) -> None:
        """Args:
        small: its cache holds the conversation when a span begins.
        likely: probability below which the small model's next token is not worth its place in a draft. This
            and how the length follows what is accepted are those of transformers' assisted generation.
        contest: who tells when to draft; None for one of its own.
        """
        self._small = small
        self._big = big
        self._clock = clock
        self.contest: Contest | Always = contest or Contest()
        self._least_logprob = math.log(likely) if likely > 0 else -math.inf
        self._known: dict[int, bool] = {}
        self._length = _FIRST_DRAFT
        self.drafted = 0
        """Tokens that the large model was shown."""
        self.accepted = 0
        """Tokens of those that it would have written itself."""

    def begin(self, max_tokens: int) -> Drafting:
        """For a span of at most `max_tokens`, which begins where the small model's cache now ends."""
        return Drafting(self, self._small, self._big, max_tokens, self._clock)

    @property
    def length(self) -> int:
        """Tokens of the next draft, at most."""
        return self._length

    def is_worth_it(self, sampled: Sampled) -> bool:
        return sampled.logprob >= self._least_logprob and self.can_be_shown(sampled.id)

    def can_be_shown(self, id: int) -> bool:
        """Whether a token stands for the same text in both models."""
        if (known := self._known.get(id)) is None:
            known = self._known[id] = _means_the_same(id, self._small, self._big)
        return known

    def was_verified(self, drafted: int, accepted: int) -> None:
        self.drafted += drafted
        self.accepted += accepted
        if accepted < drafted:
            self._length = max(1, self._length - 1)
        elif drafted == self._length:
            self._length = min(MAX_DRAFT, self._length + 2)


class Drafting:
    """One span. Owns a branch of the small model's cache while it lasts."""

    def __init__(
        self,
        speculation: Speculation,
        small: LocalModel,
        big: Verifier,
        max_tokens: int,
        clock: Callable[[], float],
    ) -> None:
        self._speculation = speculation
        self._small = small
        self._big = big
        self._max_tokens = max_tokens
        self._clock = clock
        self._start = len(small.ids)
        self._written: list[int] = []
        self._agreed = 0  # so many of them are known to be on the branch
        self._branch: LocalModel | None = None
        self._branches = ExitStack()
        self._is_over = False

    def write(self, limit: int, banned: Collection[int]) -> Sequence[int]:
        """Let the large model write one token or more, `limit` at most: what it would write by itself.

        Raises:
            GenerationError: of the large model; or `StoppedError`, of either.
        """
        contest = self._speculation.contest
        began = self._clock()
        is_drafting = contest.is_drafting and not self._is_over
        draft = self._draft(min(limit - 1, self._speculation.length)) if is_drafting else []
        if draft:
            chosen = self._big.verify(draft, banned)
            self._speculation.was_verified(len(draft), len(chosen) - 1)
        else:
            chosen = [self._big.sample(banned).id]
        is_first = not self._written  # which only takes what reading the prompt has left
        self._written += chosen
        can_tell = is_drafting or not contest.is_drafting  # else this span cannot be drafted
        if can_tell and not is_first:
            contest.wrote(len(chosen), self._clock() - began)
        return chosen

    def close(self) -> None:
        """Give the branch back, as often as you like."""
        self._is_over = True
        self._branch = None
        self._branches.close()

    def _draft(self, most: int) -> list[int]:
        """What the small model would write next, as long as it is rather sure. Its troubles end no span."""
        try:
            return self._try_to_draft(min(most, self._big.room - 1))
        except StoppedError:
            raise
        except EdgeError:
            self.close()
            return []

    def _try_to_draft(self, most: int) -> list[int]:
        if not all(map(self._speculation.can_be_shown, self._written[self._agreed :])):
            raise GenerationError("the large model wrote a token that the small one does not have")
        branch = self._branch
        if branch is None:
            branch = self._branch = self._branches.enter_context(self._small.fork(self._start))
        self._follow(branch)
        # The span itself goes before: the branch may not take the cells that its reading needs.
        unread = self._max_tokens - (len(self._small.ids) - self._start)
        if self._small.room < unread + most + _RESERVE:
            self.close()
            return []
        markers = branch.markers
        banned = frozenset(markers.open_ids if markers is not None and markers.form == "token" else ())
        draft: list[int] = []
        while len(draft) < most:
            sampled = branch.sample(banned)
            if not self._speculation.is_worth_it(sampled):  # it may want the pen back, too
                break
            draft.append(sampled.id)
        return draft

    def _follow(self, branch: LocalModel) -> None:
        """Bring the branch to what the large model has written."""
        agreed = self._start + self._agreed
        new = self._written[self._agreed :]
        same = common_length(branch.ids[agreed:], new)
        branch.rewind(agreed + same)
        branch.feed(new[same:])
        self._agreed = len(self._written)


class Contest:
    """Whether to draft, by what a token took with and without, in turns. It computes nothing and has no
    clock.

    A trial is a few tokens of either way, A B A B. The least that a token took counts: whatever else runs on
    the machine only adds to it. Then the faster way goes on for a while, twice as long each time that a trial
    ends as the one before. A draft that becomes slower than none is tried anew at once.
    """

    def __init__(
        self, *, turn: int = 8, turns: int = 4, rest: int = 256, longest: int = 4096, gain: float = 0.05
    ) -> None:
        """Args:
        turn: tokens of one turn.
        turns: of one trial, an even number.
        rest: tokens between the first trial and the second; never more than `longest`.
        gain: share of a token's time that drafting has to save.
        """
        assert turns > 0
        assert turns % 2 == 0
        self._turn_tokens = turn
        self._turns = turns
        self._first_rest = self._rest = rest
        self._longest = longest
        self._gain = gain
        self._is_kept: bool | None = None
        self._left = 0  # tokens until the next trial; none are left in one
        self._turn = 0
        self._is_new_turn = True
        self._tokens, self._seconds = 0, 0.0
        self._best = [math.inf, math.inf]  # seconds a token, without a draft and with it

    @property
    def is_drafting(self) -> bool:
        """How the next step is to be written."""
        return self._is_kept is True if self._left > 0 else self._turn % 2 == 1

    @property
    def is_kept(self) -> bool | None:
        """Whether drafting was faster in the last trial; None before one has ended."""
        return self._is_kept

    def wrote(self, tokens: int, seconds: float) -> None:
        """Hear of a step that was written as `is_drafting` said."""
        if self._left > 0:
            self._rested(tokens, seconds)
        elif self._is_new_turn:
            self._is_new_turn = False  # a draft has first to catch up with what was written without it
        else:
            self._tokens += tokens
            self._seconds += seconds
            if self._tokens >= self._turn_tokens:
                self._end_turn()

    def _begin_trial(self) -> None:
        self._left = 0
        self._turn = 0
        self._best = [math.inf, math.inf]
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._is_new_turn = True
        self._tokens, self._seconds = 0, 0.0

    def _end_turn(self) -> None:
        way = self._turn % 2
        self._best[way] = min(self._best[way], self._seconds / self._tokens)
        self._turn += 1
        alone, drafting = self._best
        is_hopeless = way == 1 and drafting > _HOPELESS * alone
        self._begin_turn()
        if self._turn == self._turns or is_hopeless:
            self._decide(drafting < (1 - self._gain) * alone)

    def _decide(self, is_faster: bool) -> None:
        is_confirmed = is_faster is self._is_kept
        self._rest = min(2 * self._rest, self._longest) if is_confirmed else self._first_rest
        self._is_kept = is_faster
        self._left = self._rest

    def _rested(self, tokens: int, seconds: float) -> None:
        self._left -= tokens
        self._tokens += tokens
        self._seconds += seconds
        is_slow = False
        if self._is_kept and self._tokens >= self._turn_tokens * self._turns:
            is_slow = self._seconds / self._tokens > self._best[0]
            self._begin_turn()
        if self._left <= 0 or is_slow:
            self._begin_trial()


class Always:
    """In a contest's place: every step is drafted, so that it can be measured."""

    is_drafting = True

    def wrote(self, tokens: int, seconds: float) -> None:
        pass


def _means_the_same(id: int, small: LocalModel, big: LocalModel) -> bool:
    try:
        piece = small.piece(id)
        return bool(piece) and piece == big.piece(id) and not small.is_end(id)
    except ValueError:  # only one of them has it
        return False
