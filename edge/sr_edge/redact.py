"""Hides mail addresses, paths and keys from the remote, and puts them back into what it writes.

Each value gets a placeholder, `EMAIL1X` or `PATH2X`: plain letters and figures, so that a model copies it
as it is, in prose, in Markdown and in LaTeX. Text that looks like a placeholder is replaced by one itself:
whatever is hidden can be restored exactly. Patterns are narrow. Fractions, formulas, web addresses and
code stay; so do system folders such as /usr/bin, which say nothing about anybody.
"""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Literal, get_args
from urllib.parse import quote

from sr_edge.errors import UsageError
from sr_edge.roles import Message, Outcome, RemoteModel, RemoteStream

Rule = Literal["email", "path", "key"]
RULES: tuple[Rule, ...] = get_args(Rule)

_Kind = Literal["EMAIL", "PATH", "KEY", "WORD"]
_Find = tuple[int, int, _Kind]
_KINDS: dict[Rule, _Kind] = {"email": "EMAIL", "path": "PATH", "key": "KEY"}
_NAMES: dict[Rule, tuple[str, str]] = {
    "email": ("mail address", "mail addresses"),
    "path": ("path", "paths"),
    "key": ("key", "keys"),
}


def rules(names: Sequence[str], *, secrets: Collection[str] = ()) -> Redactor:
    """What hides what the names say.

    Args:
        secrets: values that must not leave where `key` is named, such as the keys of all remotes.
    Raises:
        UsageError: an unknown name.
    """
    known: list[Rule] = []
    for name in names:
        found = next((rule for rule in RULES if rule == name), None)
        if found is None:
            near = get_close_matches(name, RULES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RULES)}"
            raise UsageError(f"no rule redacts {name!r}: {hint}")
        known.append(found)
    return Redactor(known, secrets=secrets)


class Redactor:
    """The placeholders of one conversation: a value has the same one in every message and every span."""

    def __init__(self, rules: Collection[Rule], *, secrets: Collection[str] = ()) -> None:
        self._rules = tuple(rule for rule in RULES if rule in rules)
        self._secrets = _any_of(secrets) if "key" in self._rules else None
        self._placeholders: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._num_found: Counter[_Kind] = Counter()

    @property
    def counts(self) -> dict[Rule, int]:
        """How many different values of each kind were found."""
        return {rule: self._num_found[_KINDS[rule]] for rule in self._rules if self._num_found[_KINDS[rule]]}

    def summary(self) -> str | None:
        """`2 mail addresses and 1 path were replaced before sending`; None if nothing was."""
        counts = self.counts
        if not counts:
            return None
        *parts, last = [f"{count} {_NAMES[rule][count > 1]}" for rule, count in counts.items()]
        what = f"{', '.join(parts)} and {last}" if parts else last
        return f"{what} {'was' if sum(counts.values()) == 1 else 'were'} replaced before sending"

    def redact(self, text: str) -> str:
        pieces = []
        done = 0
        for start, end, kind in self._finds(text):
            pieces += [text[done:start], self._placeholder(text[start:end], kind)]
            done = end
        return "".join(pieces) + text[done:]

    def redact_messages(self, messages: Sequence[Message]) -> list[Message]:
        return [replace(message, content=self.redact(message.content)) for message in messages]

    def restore(self, text: str) -> str:
        """Undo `redact` in any text that holds its placeholders."""
        return _PLACEHOLDER.sub(lambda match: self._values.get(match[0], match[0]), text)

    def _placeholder(self, value: str, kind: _Kind) -> str:
        if value not in self._placeholders:
            self._num_found[kind] += 1
            self._placeholders[value] = f"{kind}{self._num_found[kind]}X"
            self._values[self._placeholders[value]] = value
        return self._placeholders[value]

    def _finds(self, text: str) -> list[_Find]:
        """What to replace, in order. Finds that overlap are one, and the first of them names the kind."""
        if not self._rules:
            return []
        finds: list[_Find] = [(*match.span(), "WORD") for match in _PLACEHOLDER.finditer(text)]
        finds += [(*match.span(), "KEY") for match in (self._secrets.finditer(text) if self._secrets else ())]
        for rule in self._rules:
            finds += [(*span, _KINDS[rule]) for span in _FINDERS[rule](text)]
        apart: list[_Find] = []
        for start, end, kind in sorted(finds, key=lambda find: (find[0], -find[1])):
            if apart and start < apart[-1][1]:
                apart[-1] = (apart[-1][0], max(end, apart[-1][1]), apart[-1][2])
            else:
                apart.append((start, end, kind))
        return apart


class Restorer:
    """Undoes redaction in text that arrives in pieces; a possible placeholder is held back."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""

    def push(self, text: str) -> str:
        """What is certain by now."""
        text = self._held + text
        begun = _PLACEHOLDER_BEGUN.search(text[-_MAX_PLACEHOLDER:])
        keep = len(text) - (len(begun[0]) if begun else 0)
        self._held = text[keep:]
        return self._redactor.restore(text[:keep])

    def flush(self) -> str:
        """What was held back and turned out to be no placeholder."""
        held, self._held = self._held, ""
        return held


class Redacting:
    """A remote that never gets to see what its redactor finds. The rest of us sees nothing of that."""

    def __init__(self, remote: RemoteModel, redactor: Redactor) -> None:
        self._remote = remote
        self._redactor = redactor

    @property
    def name(self) -> str:
        return self._remote.name

    @property
    def counts(self) -> dict[Rule, int]:
        return self._redactor.counts

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream:
        hidden = self._redactor.redact_messages(messages), self._redactor.redact(answer)
        return _RestoringStream(self._remote.stream(*hidden, max_tokens), Restorer(self._redactor))


class _RestoringStream:
    def __init__(self, stream: RemoteStream, restorer: Restorer) -> None:
        self._stream = stream
        self._restorer = restorer

    def read(self, timeout: float) -> str | None:
        text = self._stream.read(timeout)
        if text is None:
            return self._restorer.flush() or None
        return self._restorer.push(text)

    @property
    def outcome(self) -> Outcome:
        return self._stream.outcome

    def close(self) -> None:
        self._stream.close()


# --- placeholders ------------------------------------------------------------------------------------

# Kinds hold no X and none begins or ends with another, so that placeholders never overlap: neither each
# other nor, by chance, what stands before or after them.
_ALL_KINDS: tuple[_Kind, ...] = get_args(_Kind)
_NUMBER = "[1-9][0-9]{0,8}"
_PLACEHOLDER = re.compile(f"(?:{'|'.join(_ALL_KINDS)}){_NUMBER}X")
_PLACEHOLDER_BEGUN = re.compile(
    "(?:"
    + "|".join(kind[:n] for kind in _ALL_KINDS for n in range(1, len(kind) + 1))
    + f"|(?:{'|'.join(_ALL_KINDS)}){_NUMBER})\\Z"
)
_MAX_PLACEHOLDER = max(map(len, _ALL_KINDS)) + 9 + 1


# --- mail addresses ----------------------------------------------------------------------------------

# A closed list: `x @ layer.weight` is code. Two letters are a country.
_DOMAINS = (
    "com|org|net|edu|gov|mil|int|info|biz|name|pro|mobi|jobs|coop|museum|aero|asia|cat|tel|eu|xn--[a-z0-9-]+"
    "|app|dev|cloud|online|site|tech|store|shop|blog|email|agency|academy|network|systems|solutions|services"
    "|software|studio|digital|design|media|news|world|group|team|company|center|global|international|space"
    "|website|live|life|today|works|work|zone|tools|science|health|care|community|foundation|university"
    "|education|school|institute|bank|finance|legal|consulting|engineering|berlin|london|paris|nyc|tokyo"
)
_EMAIL = re.compile(
    r"(?<![\w.%+'-])(?!git@)[\w%+-](?:[\w.%+'-]{0,62}[\w%+-])?@(?:[\w-]{1,63}\.){1,8}"
    rf"(?:(?i:{_DOMAINS})|[a-z][a-z]|[A-Z][A-Z])(?![\w(\[-]|\.[a-z_])"
)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


# --- paths -------------------------------------------------------------------------------------------

_ROOTS = (
    "home|Users|root|mnt|media|Volumes|srv|private|scratch|nfs|export|etc|var|tmp|opt|run|Applications"
    "|Library|System"
)
_COMPONENT = r"(?:[\w.+@%~-]|\\ )*[\w+@%~-]"  # no dot at its end: that one ends the sentence
_EXTENSION = r"\.[A-Za-z][A-Za-z0-9]{0,7}(?!\w)"
_FILE = rf"[\w+@%~$-][\w.+@%~$-]*{_EXTENSION}"
_OF_THE_WEB = re.compile(
    r"\.(?:html?|css|m?js|jsx|tsx?|json|xml|png|jpe?g|gif|svg|ico|webp|php|aspx?|woff2?|map)\Z"
)
_SEPARATOR = r"(?:\\{1,2}|/)"  # doubled within a string of source code
_WITH_SPACES = r"[\w.+@%~$()-]+(?: [\w.+@%~$()-]+){0,4}"
_WINDOWS_ROOTS = r"Users|Documents and Settings|Program Files(?: \(x86\))?|ProgramData|Windows|Temp"
_PATH = re.compile(
    r"""https?://[^\s<>"'`]+"""  # first, so that nothing is found within
    "|(?P<path>"
    r"""file://[^\s<>"'`)\]]*[^\s<>"'`)\].,;:!?]"""
    # in quotes it may hold spaces
    rf"""|(?<=["'`])(?:~/|/(?:{_ROOTS})/|[A-Za-z]:{_SEPARATOR}(?:{_WINDOWS_ROOTS}){_SEPARATOR})"""
    r"""[\w.+@%~$()&,/\\ -]{0,300}[\w.+@%~$()&,/\\-](?=["'`](?!\w))"""
    rf"|(?<![\w.~/$)\]}}\\*-])/(?:{_ROOTS})(?:/{_COMPONENT})+/?"
    rf"|(?<![\w.~/$)\]}}\\*<-])(?P<other>/[A-Za-z][\w.-]+(?:/{_COMPONENT})*/{_FILE})"
    rf"|(?<![\w.~/$)\]}}\\])~/[A-Za-z._]{_COMPONENT}(?:/{_COMPONENT})*(?![\w/])"
    rf"|(?<![\w\\])[A-Za-z]:{_SEPARATOR}(?:"
    rf"(?i:{_WINDOWS_ROOTS}){_SEPARATOR}(?:{_WITH_SPACES}{_SEPARATOR})*{_COMPONENT}"
    rf"|(?:{_WITH_SPACES}{_SEPARATOR})*{_FILE})"
    rf"|(?<![\w\\])\\\\[\w.-]+(?:\\[\w$.-]+)+{_EXTENSION}"
    ")"
)


def _paths(text: str) -> Iterator[tuple[int, int]]:
    if "/" in text or "\\" in text:
        for match in _PATH.finditer(text):
            is_route = match["other"] is not None and _OF_THE_WEB.search(match["other"])
            if match["path"] is not None and not is_route:
                yield match.span()


# --- keys --------------------------------------------------------------------------------------------

_MIN_SECRET = 6  # characters: a shorter one would be found within words
_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-(?=[\w-]*[0-9])[\w-]{20,}"
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{20,}"
    r"|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|gsk_[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{36}|AIza[\w-]{35}"
    r"|A[KS]IA[0-9A-Z]{16}(?![A-Za-z0-9])"
    r"|xox[abeprs]-[\w-]{10,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    r")"
    r"|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----(?:"
    r"(?:(?!-----)[\s\S]){0,20000}-----END [A-Z ]{0,20}PRIVATE KEY-----|(?:\s+[A-Za-z0-9+/=]{16,})*)"
    r"|(?<=://)[^\s/@:]{1,64}:[^\s/@]{1,128}(?=@)"
)
_KEY_AFTER_ITS_NAME = re.compile(
    r"(?i:\bauthorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer|token)\s+|\bbearer\s+)(?P<token>[\w.~+/=-]{16,})"
    r"|(?<![\w-])(?i:[\w-]{0,40}(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key"
    r"|private[_-]?key|credentials?|auth)[\w-]{0,40})"
    r"""["']?\s*(?::=?|=>?)\s*["']?(?P<value>[^\s"'`,;(){}\[\]<>\\]{10,})(?![(\[{\\])"""
)


def _keys(text: str) -> Iterator[tuple[int, int]]:
    yield from (match.span() for match in _KEY.finditer(text))
    for match in _KEY_AFTER_ITS_NAME.finditer(text):
        group = "token" if match["token"] is not None else "value"
        if _is_random(match[group]):
            yield match.span(group)


def _is_random(value: str) -> bool:
    """Whether nobody would choose it as a name: letters and figures by turns, few of them twice."""
    classes = ["l" if c.isalpha() else "d" if c.isdigit() else "" for c in value]
    known = [c for c in classes if c]
    turns = sum(a != b for a, b in pairwise(known))
    entropy = -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
    return turns >= 3 and entropy >= 3  # bits a character


def _any_of(secrets: Collection[str]) -> re.Pattern[str] | None:
    """Finds them as they are, as they stand in a URL, and in base64."""
    spelled = set()
    for secret in secrets:
        encoded = base64.b64encode(secret.encode()).decode()
        spelled |= {secret, quote(secret, safe=""), encoded, encoded.rstrip("=")}
    longest_first = sorted((s for s in spelled if len(s) >= _MIN_SECRET), key=lambda s: (-len(s), s))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


_FINDERS: dict[Rule, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _emails,
    "path": _paths,
    "key": _keys,
}
