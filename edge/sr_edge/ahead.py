"""Reading ahead: what may become the next prompt is read while its user still types.

It is read on a branch, which shares what the small model's cache has in common with it: the cache itself
stays as it is, for an answer that goes on after all. When the prompt comes, the branch becomes the cache if
it holds more of that; else it is dropped. Whatever is read in vain costs nobody any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sr_edge.errors import GenerationError
from sr_edge.reading import common_length
from sr_edge.roles import LocalModel, Message

_CHUNK = 32  # tokens between two looks at whether there is time
_HELD = 2  # last tokens that what is typed next may change
_RESERVE = 64  # context that is left for what is typed next
_ENDINGS = (" a", "\n\n1")
"""What may be typed next, as different as can be: tokens are stable where both leave them alone."""


class ReadAhead:
    """Owns one branch at most. Use it from the model's thread."""

    def __init__(self, local: LocalModel) -> None:
        self._local = local
        self._branch: LocalModel | None = None

    def read(self, messages: Sequence[Message], *, goes_on: Callable[[], bool]) -> int:
        """Read a conversation whose last message is still being typed. Returns how many tokens were read.

        Args:
            goes_on: looked at before every few tokens: whether nobody waits for anything else. (`stop` of the
                model ends it within a step.)
        """
        if not goes_on():
            return 0
        ids = self._stable(messages)
        branch = self._branch_for(ids)
        if branch is None:
            return 0
        begin = at = len(branch.ids)
        if len(ids) - at + _RESERVE > branch.room:
            return 0
        try:
            while at < len(ids) and goes_on():
                branch.feed(ids[at : at + _CHUNK])
                at = len(branch.ids)
        except GenerationError:  # stopped, most often: what was read before stays
            at = len(branch.ids)
        return at - begin

    def take(self, messages: Sequence[Message]) -> None:
        """Now this is to be answered: the cache becomes what was read ahead, where that is more of it."""
        branch = self._branch
        if branch is None:
            return
        ids = self._local.render(messages).ids
        if common_length(branch.ids, ids) > common_length(self._local.ids, ids):
            self._local.adopt(branch)
            self._branch = None
        else:
            self.drop()

    def drop(self) -> None:
        branch, self._branch = self._branch, None
        if branch is not None:
            branch.close()

    def _stable(self, messages: Sequence[Message]) -> Sequence[int]:
        """The ids that stay whatever is typed next."""
        last = messages[-1]
        one, two = (
            self._local.render([*messages[:-1], replace(last, content=last.content + ending)]).ids
            for ending in _ENDINGS
        )
        return one[: max(0, common_length(one, two) - _HELD)]

    def _branch_for(self, ids: Sequence[int]) -> LocalModel | None:
        """One that holds what there is of their beginning, and no more. None: there can be no branch."""
        shared = common_length(self._local.ids, ids)
        if self._branch is not None:
            same = common_length(self._branch.ids, ids)
            if same >= shared:
                self._branch.rewind(same)
                return self._branch
            self.drop()
        try:
            self._branch = self._local.fork(shared)
        except GenerationError:
            return None
        return self._branch
