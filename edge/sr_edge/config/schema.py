"""Every setting there is, in one table, and what a value of it may be.

Reading a file, reading the environment, `config set`, error lines and `config show` all follow the table:
a new setting is one row.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from sr_edge.budget import MAX_PRICE
from sr_edge.errors import UsageError
from sr_edge.keymap import KEYMAP, check_keys
from sr_edge.policy import Dial
from sr_edge.reading import Places
from sr_edge.terminal import safe_line

Kind = Literal[
    "text", "path", "flag", "count", "number", "choice", "words", "command", "url", "variable", "api", "keys"
]

PREFIX = "SR_EDGE_"
PLAIN_VARIABLES = tuple(
    f"{PREFIX}{name}" for name in ("API_KEY", "CONFIG", "HOME", "PROFILE", "SERVE_TOKEN", "TRACEBACK")
)
"""Those that are no settings."""

MAX_SEED = 2**32 - 2  # the number after it means "random" to llama.cpp


@dataclass(frozen=True, slots=True)
class Key:
    """One setting. The default None means: none, or unbounded."""

    name: str
    """Dotted: section and key. For a remote's settings without `remotes.NAME.`"""
    kind: Kind
    help: str
    default: object = None
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    env: str | None = None
    """A short name beside the regular SR_EDGE_SECTION__KEY, and before it."""
    flag: str | None = None
    """The option that sets it; by default the last part of its name."""

    @property
    def variables(self) -> tuple[str, ...]:
        regular = PREFIX + self.name.upper().replace(".", "__")
        return (self.env, regular) if self.env else (regular,)

    @property
    def option(self) -> str:
        return self.flag or "--" + self.name.rpartition(".")[2].replace("_", "-")

    @property
    def is_shy(self) -> bool:
        """Whether an error line must not quote it: people put secrets there."""
        return self.kind in ("command", "url", "variable")


REDACTIONS = ("email", "path", "key")
KEYS_OF = "ui.keymap."
_WHEN = ("auto", "always", "never")

SCHEMA: tuple[Key, ...] = (
    Key("default_remote", "text", "the remote that is asked", env="SR_EDGE_REMOTE", flag="--remote"),
    Key("model", "path", "the small model, a GGUF; none is the built-in one"),
    Key("offline", "flag", "open no socket; if any of flag, environment and file says so, it holds", False),
    Key("offload.policy", "choice", "who writes", "auto", choices=get_args(Dial), env="SR_EDGE_POLICY"),
    Key("offload.hedge", "flag", "go on locally while the remote's first text is awaited", False),
    Key(
        "offload.speculate",
        "flag",
        "let the small model draft what a large GGUF here writes, where that is faster",
        True,
    ),
    Key("offload.max_span_tokens", "count", "of one span", 512, low=1),
    Key("offload.max_spans", "count", "of one answer", low=0),
    Key(
        "offload.handback",
        "choice",
        "after which the small model may take the pen back",
        "word",
        choices=get_args(Places),
    ),
    Key("offload.redact", "words", "hidden before anything is sent", (), choices=REDACTIONS),
    Key("budget.usd_per_answer", "number", "dollars, where prices are set", low=0, flag="--budget"),
    Key("budget.usd_per_day", "number", "dollars, where prices are set", low=0),
    Key("budget.tokens_per_answer", "count", "of the remote, prompts included", low=0),
    Key("budget.tokens_per_day", "count", "of the remote, prompts included", low=0),
    Key("budget.share", "number", "of an answer that the remote may write", low=0, high=1),
    Key("sampling.temperature", "number", "0 takes the likeliest token", 0.6, low=0, flag="--temp"),
    Key("sampling.max_tokens", "count", "of the whole answer", 4096, low=1),
    Key("sampling.seed", "count", "makes sampling repeatable", low=0, high=MAX_SEED),
    Key("ui.theme", "text", "the colours of the chat", "textual-dark"),
    Key("ui.reasoning", "choice", "is unfolded; auto until the answer begins", "auto", choices=_WHEN),
    Key("ui.sidebar", "choice", "is shown; auto where there is room", "auto", choices=_WHEN),
    Key("ui.mouse", "flag", "clicks and wheel; the terminal's own selection needs it off", True),
    Key("ui.animations", "flag", "whatever moves without need", True),
    Key("log.enabled", "flag", "conversations are kept on this machine", True, flag="--log"),
    Key("chat.prefill_while_typing", "flag", "the small model reads what you type before you send it", False),
    Key("cache.conversations", "flag", "what was read of them is kept too: they open again at once", False),
    Key("cache.max_mb", "count", "of the disk, for all of them", 2048, low=1),
    Key(
        "engine.threads", "count", "at most; none is by the processor and what was measured", low=1, high=1024
    ),
    Key("engine.calibrate", "flag", "measure once how fast a large enough model runs here", True),
)

KEYS: tuple[Key, ...] = tuple(Key(f"{KEYS_OF}{key.id}", "keys", key.description, key.keys) for key in KEYMAP)
"""The keys of the chat. `Config.settings` has those that are changed."""

_LONGEST = 86_400.0  # seconds
_LARGEST = 1e15  # whatever is counted; a float is exact up to here

REMOTE: tuple[Key, ...] = (
    Key("url", "url", "base URL, such as https://api.example.com/v1"),
    Key("model", "text", "the endpoint's name for its model; none asks it for its first"),
    Key("api", "api", "how it continues an answer; auto finds out", "auto"),
    Key("api_key_env", "variable", "the environment variable that holds the key"),
    Key("api_key_cmd", "command", "a command that prints the key"),
    Key("plain_http", "flag", "allow http:// to this private address", False),
    Key("ca_file", "path", "certificates to trust besides the system's"),
    Key("proxy", "url", "proxies of the environment are not used"),
    Key("price.input", "number", "US dollars per million tokens", low=0, high=MAX_PRICE),
    Key("price.output", "number", "US dollars per million tokens", low=0, high=MAX_PRICE),
    Key("timeout.connect", "number", "seconds", low=0.001, high=_LONGEST),
    Key("timeout.first_byte", "number", "seconds", low=0.001, high=_LONGEST),
    Key("timeout.first_content", "number", "seconds", low=0.001, high=_LONGEST),
    Key("timeout.idle", "number", "seconds", low=0.001, high=_LONGEST),
    Key("timeout.total", "number", "seconds", low=0.001, high=_LONGEST),
    Key("hedge", "flag", "as offload.hedge, for this remote"),
    Key("redact", "words", "as offload.redact, for this remote", choices=REDACTIONS),
)

_KEYS = {key.name: key for key in (*SCHEMA, *KEYS)}
_REMOTE_KEYS = {key.name: key for key in REMOTE}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SECRETS = re.compile(r"((api|access|auth|secret)?(key|token)|authorization|bearer|password|secret)")


def find_key(name: str) -> tuple[tuple[str, ...], Key]:
    """The setting that a user means by a dotted name, and its path in the file.

    Raises:
        ValueError: there is none; says which is near.
    """
    if name.startswith("profiles."):
        profile, _, inner = name.removeprefix("profiles.").partition(".")
        check_name(profile, "profile")
        path, key = find_key(inner)
        if path[0] == "profiles":
            raise ValueError("a profile holds no profiles")
        return ("profiles", profile, *path), key
    if name in _KEYS:
        return tuple(name.split(".")), _KEYS[name]
    if any(other.startswith(f"{name}.") for other in _KEYS):
        raise ValueError(f"{name} is a section: name one of its keys")
    if name.startswith("remotes."):
        remote, leaf = split_remote(name.removeprefix("remotes."), ".")
        check_name(remote, "remote")
        if leaf in _REMOTE_KEYS:
            return ("remotes", remote, *leaf.split(".")), _REMOTE_KEYS[leaf]
        if not leaf or any(key.name.startswith(f"{leaf}.") for key in REMOTE):
            raise ValueError(f"{name} is a section: name one of its keys")
        if is_secret(leaf.rpartition(".")[2]):
            raise ValueError(no_secrets(remote))
        raise ValueError(unknown(leaf, _REMOTE_KEYS, f"remotes.{remote}"))
    if is_secret(name.rpartition(".")[2]):
        raise ValueError(no_secrets("NAME"))
    raise ValueError(unknown(name, _KEYS, ""))


def split_remote(text: str, dot: str) -> tuple[str, str]:
    """`my.box.price.input` is the remote `my.box` and its `price.input`: names may hold dots.

    Args:
        dot: what stands between the parts: `.` or `__`, with which the text is in upper case.
    """
    for name in sorted(_REMOTE_KEYS, key=len, reverse=True):
        leaf = name if dot == "." else name.upper()
        suffix = dot + leaf.replace(".", dot)
        if text.endswith(suffix) and len(text) > len(suffix):
            return text[: -len(suffix)], name
    remote, _, leaf = text.partition(dot)
    return remote, leaf.lower().replace(dot, ".")


def check_name(name: str, what: str) -> None:
    """Raises: ValueError: a remote or a profile cannot have this name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{quoted(name)} is no name for a {what}: a small letter or digit, "
            "then up to 63 more of those or of . _ -"
            + (f"; {quoted(name.lower())} is" if _NAME.fullmatch(name.lower()) else "")
        )


def is_secret(name: str) -> bool:
    """Whether a key of this name would hold a secret in the clear."""
    return _SECRETS.fullmatch(re.sub(r"[^a-z]", "", name.lower())) is not None


def no_secrets(remote: str) -> str:
    return (
        "keys do not belong into this file: `sr-edge keys set "
        f"{remote}` keeps one safe, api_key_env names a variable and api_key_cmd a command that holds one"
    )


def unknown(name: str, known: Iterable[str], section: str) -> str:
    """The complaint about a key that nobody knows."""
    known = list(known)
    line = f"unknown key {quoted(name)}" + (f" in [{section}]" if section else "")
    near = nearest(name, known)
    if near:
        return f"{line}; did you mean {quoted(near)}?"
    places = [key.name.rpartition(".")[0] for key in SCHEMA if key.name.endswith(f".{name}")]
    if places:
        return f"{line}; it belongs into [{places[0]}]"
    if name in _REMOTE_KEYS:
        return f"{line}; it belongs into [remotes.NAME]"
    return f"{line}; known are {', '.join(other for other in known if not other.startswith(KEYS_OF))}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if near:
        return near[0]
    tails = [other for other in known if name.lower().endswith(other) or other.endswith(f".{name.lower()}")]
    return tails[0] if tails else None


def quoted(text: str, limit: int = 60) -> str:
    """In double quotes, on one line, and not too long."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return f'"{text[:limit]}…"' if len(text) > limit else f'"{text}"'


# --- values ------------------------------------------------------------------------------------------


def from_text(key: Key, text: str) -> object:
    """The value that a text of the environment or of the command line stands for, not yet checked."""
    text = text.strip()
    match key.kind:
        case "flag":
            word = text.lower()
            if word in ("1", "true", "yes", "on"):
                return True
            return False if word in ("0", "false", "no", "off") else text
        case "count" | "number":
            try:
                return int(text)
            except ValueError:
                pass
            try:
                return float(text)
            except ValueError:
                return text
        case "words":
            if not text.startswith("["):
                return text.replace(",", " ").split()
            return _toml_list(text)
        case "command" if text.startswith("["):
            return _toml_list(text)
    return text


def as_text(value: object) -> str:
    """A value as it can be typed again, on one line and safe to show; nothing for None."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple() | list():
            return ", ".join(map(as_text, value))
        case float():
            return f"{value:.15g}"
    return safe_line(str(value))


def _toml_list(text: str) -> object:
    try:
        return tomllib.loads(f"list = {text}")["list"]
    except tomllib.TOMLDecodeError:
        return text


def checked(key: Key, value: object, folder: Path | None = None) -> object:
    """The value as the program uses it: tuples for lists, floats for numbers, absolute paths.

    Args:
        folder: what relative paths are relative to; None leaves them.
    Raises:
        ValueError: the setting cannot have this value; says which it can.
    """
    match key.kind:
        case "flag":
            if isinstance(value, bool):
                return value
        case "count" | "number":
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and (key.kind == "number" or isinstance(value, int)):
                assert isinstance(value, int | float)
                if max(key.low, -_LARGEST) <= value <= min(key.high, _LARGEST):
                    return float(value) if key.kind == "number" else value
        case "choice":
            if isinstance(value, str) and value in key.choices:
                return value
        case "words":
            if isinstance(value, list | tuple) and all(word in key.choices for word in value):
                return tuple(dict.fromkeys(value))
        case "command":
            if isinstance(value, list | tuple) and value and all(map(_is_text, value)):
                return tuple(value)
            if _is_text(value):
                return value
        case "path":
            if _is_text(value):
                assert isinstance(value, str)
                try:
                    path = Path(value).expanduser()
                except RuntimeError:
                    raise ValueError("begins with ~ and a name that no user here has") from None
                return str(path if folder is None else folder / path)
        case "variable":
            if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w{0,99}", value, re.ASCII):
                return value
        case "url":
            if _is_text(value):
                assert isinstance(value, str)
                _check_url(value)
                return value
        case "text":
            if _is_text(value):
                return value
        case "keys":
            if _is_text(value):
                assert isinstance(value, str)
                return check_keys(key.name.removeprefix(KEYS_OF), value)
        case "api":
            if _is_text(value):
                assert isinstance(value, str)
                _check_api(value)
                return value
    raise ValueError(_must(key, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def _check_api(name: str) -> None:
    from sr_edge.remote.dialects import dialect_named

    if name != "auto":
        try:
            dialect_named(name)
        except UsageError as error:
            raise ValueError(f"can't be this: {error}") from None


def _check_url(url: str) -> None:
    """What can be said of a URL without the network's part; no message quotes it."""
    if any(char.isspace() for char in url):
        raise ValueError("holds a space, which no URL does")
    try:
        parts = urlsplit(url)
        port_is_bad = parts.port == 0
    except ValueError:
        raise ValueError("must be a URL, and this is none") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that begins with https:// or http:// and names a host")
    if port_is_bad:
        raise ValueError("names a port that does not exist: ports are 1 to 65535")
    if "@" in parts.netloc:
        raise ValueError("holds a user name or a password, which do not belong into a URL")
    if parts.query or parts.fragment:
        raise ValueError("ends with its path: it takes no ? and no #")
    _check_host(parts.hostname)


def _check_host(host: str) -> None:
    """What name servers and certificates can hold: parts of 1 to 63 characters, 253 together."""
    if ":" in host:  # IPv6
        return
    try:
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError("names a host that cannot be: look at its dots and letters") from None
    host = host.removesuffix(".")
    if len(host) > 253 or not all(1 <= len(label) <= 63 for label in host.split(".")):
        raise ValueError("names a host that cannot be: each part between dots has 1 to 63 characters")


def _must(key: Key, value: object) -> str:
    match key.kind:
        case "flag":
            what = "true or false"
        case "count" | "number":
            what = "a whole number" if key.kind == "count" else "a number"
            is_too_large = isinstance(value, int | float) and value > _LARGEST
            if key.high < math.inf or is_too_large:
                what += f" from {key.low:.15g} to {min(key.high, _LARGEST):.15g}"
            elif key.low > -math.inf:
                what += f" of {key.low:.15g} or more"
        case "choice":
            what = f"one of {', '.join(key.choices)}"
        case "words":
            what = f"a list of any of {', '.join(key.choices)}"
        case "command":
            what = "a command: a text, or a list of texts"
        case "variable":
            what = "the name of an environment variable, not a key itself"
        case _:
            what = "a text of one line that is not empty"
    if key.is_shy:
        return f"must be {what}"
    shown = quoted(value) if isinstance(value, str) else str(value)[:60]
    shown = shown.lower() if isinstance(value, bool) else shown
    near = nearest(value, key.choices) if isinstance(value, str) and key.kind == "choice" else None
    return f"must be {what}, not {shown}" + (f"; did you mean {quoted(near)}?" if near else "")
