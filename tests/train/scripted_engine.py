"""An engine of rollouts over scripted models: the true decoder, answers that are known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from sr_edge.roles import NO_BIAS, Limits, Outcome, Sampled, Steering
from sr_edge.split import SplitDecoder
from sr_edge.testing import CLOSE, OPEN, ScriptedLocal, ScriptedRemote
from sr_edge.testing.models import Reply
from sr_train.problems import Problem
from sr_train.rollout.requests import Rollout, RolloutRequest, rollout_of

LINE = b"ab 12 cd.\n"
"""The small model writes four of them, then its box."""
CHUNK_TEXT = "y" * 40
"""What the large model would write anywhere; a chunk is its first part."""


def problems(n: int) -> list[Problem]:
    return [Problem(f"p{i}", f"question {i}", str(i)) for i in range(n)]


class UncertainLocal(ScriptedLocal):
    """Uncertain before digits, and surer of itself the larger the problem's number is."""

    def __init__(self, segments: Sequence[Sequence[int]], number: int) -> None:
        super().__init__(segments)
        self._number = number
        self._places: list[int] = []
        """In the script, after each id of the answer: to look it up is quicker than to read all again."""

    def entropy(self) -> float:
        return 2.0 if chr(self._next((OPEN,))).isdigit() else 0.5

    def _span_text(self) -> str:
        return ""  # it never wants the pen back

    def rewind(self, n: int) -> None:
        super().rewind(n)
        del self._places[max(0, n - self._prompt_length) :]

    def _next(self, banned: Collection[int]) -> int:
        answer = self._ids[self._prompt_length :]
        for n in range(len(self._places), len(answer)):
            at = self._places[n - 1] if n else 0
            is_own = OPEN not in answer[:n] or CLOSE in answer[:n]
            self._places.append(at + 1 if is_own and self._script[at] == answer[n] else at)
        at = self._places[-1] if answer else 0
        while self._script[at] in banned:
            at += 1
        return self._script[at]

    def sample(self, banned: Collection[int] = (), logit_bias: Mapping[int, float] = NO_BIAS) -> Sampled:
        id = super().sample(banned, logit_bias).id
        return Sampled(id, -1.0 / (1 + self._number))


class ScriptedEngine:
    """Problem n alone is right if n is even; with the large model's help always, and so is that one alone.

    Where somebody else decides when the large model writes, its text is no help.
    """

    def __init__(self, *, fails: Callable[[RolloutRequest, int], bool] = lambda request, n: False) -> None:
        """Args:
        fails: of a request that needs the large model, and how many came before: whether that fails.
        """
        self.requests: list[RolloutRequest] = []
        self._fails = fails

    def run(
        self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = lambda n: None
    ) -> list[Rollout]:
        rollouts = []
        for n, request in enumerate(requests):
            rollouts.append(self._write(request))
            done(n)
        return rollouts

    def _write(self, request: RolloutRequest) -> Rollout:
        number = int(request.messages[0].content.split()[1])
        alone, box = f"\\boxed{{{number - number % 2}}}", f"\\boxed{{{number}}}"
        is_split = request.policy == "auto" and request.schedule is None and request.bias > -10
        replies: list[Reply | str] = []
        if is_split:
            segments = [[*LINE * 4, OPEN], [*box.encode()]]
            replies = [" help"]
        else:
            segments = [[*LINE * 4, *alone.encode()]]
            replies = [box] if request.policy == "remote" else [CHUNK_TEXT] * 40
        if request.policy != "local" and self._fails(request, len(self.requests)):
            replies = [Reply((), Outcome("error", "gone", fault="unreachable"))] * 40
        self.requests.append(request)
        local = UncertainLocal(segments, number)
        decoder = SplitDecoder(
            local,
            ScriptedRemote(replies) if request.policy != "local" else None,
            limits=Limits(400),
            policy=request.policy,
            steer=lambda: Steering(bias=request.bias),
            clock=_Clock(),
        )
        schedule = None if request.schedule is None else request.schedule(local)
        return rollout_of(request, decoder.generate(request.messages, schedule=schedule))


class _Clock:
    """A second each time it is looked at: what is measured is the same each time."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self) -> float:
        self._seconds += 1.0
        return self._seconds
