"""API keys: one for each remote, for its host only, and shown to nobody.

A key comes from the command or the variable that the remote's settings name, else from where
`sr-edge keys set` put it: the system's key store if there is a safe one, or a file that only its owner can
read. Other programs' variables are not looked at. What is kept is tied to the scheme, host and port of the
remote's URL, so a URL that changes later does not take the key along; nor does a URL that a profile or the
environment puts over the one beside which the command or the variable was named.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import shlex
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn
from urllib.parse import urlsplit

from sr_edge.config import RemoteConfig
from sr_edge.errors import UsageError
from sr_edge.files import keys_path, locked, write_private
from sr_edge.terminal import safe_line

SERVICE = "sr-edge"
"""Under which the system's key store has them, with the remote's name as the user."""

COMMAND_SECONDS = 10.0
MASK = "***"

_MAX_KEY = 8192
_MAX_OUTPUT = 65536
_MAX_LINES = 20  # of a command's stderr
_MIN_SHOWN = 12  # of a shorter key, four characters would be too much

Place = Literal["api_key_cmd", "api_key_env", "keyring", "file"]


class Secret:
    """A key that only `reveal` gives away: printed, formatted, copied or pickled it is `***`."""

    __slots__ = ("_reveal",)

    def __init__(self, value: str) -> None:
        """Raises: UsageError: it is no key; the message does not quote it."""
        if (
            not value
            or len(value) > _MAX_KEY
            or not value.isascii()
            or not value.isprintable()
            or " " in value
        ):
            what = (
                "is empty" if not value else "holds a space, a line end or another character that no key has"
            )
            raise UsageError(f"the API key {what if len(value) <= _MAX_KEY else 'is too long to be one'}")
        self._reveal: Callable[[], str] = lambda: (
            value
        )  # not an attribute: whoever looks at those sees a function

    def reveal(self) -> str:
        return self._reveal()

    @property
    def masked(self) -> str:
        """For its owner to recognise it by: `•••9f2c`."""
        value = self.reveal()
        return "•••" + (value[-4:] if len(value) > _MIN_SHOWN else "")

    def __repr__(self) -> str:
        return MASK

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.reveal(), other.reveal())

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return Secret, (MASK,)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What may be told of a key."""

    name: str
    """The remote's."""
    place: Place | None
    """None: it has none."""
    detail: str
    """The variable's name, the command's, the host that a kept key is for."""
    masked: str = ""
    """Empty where it is not known without asking the key store or running a command."""
    problem: str = ""
    """Why it would not be used."""


def find_key(
    remote: RemoteConfig,
    *,
    environ: Mapping[str, str] = os.environ,
    say: Callable[[str], None] = lambda line: None,
) -> Secret | None:
    """The key of a remote; None if it has none, which local servers do not mind.

    Args:
        say: gets what an `api_key_cmd` wrote to stderr, as lines that are safe on a terminal.
    Raises:
        UsageError: it should have one, but not like this; says what to do, and quotes no key.
    """
    problem = _moved_problem(remote)
    if problem:
        raise UsageError(problem)
    if remote.api_key_cmd is not None:
        return _from_command(remote, environ, say)
    if remote.api_key_env is not None:
        value = environ.get(remote.api_key_env, "").strip()
        if not value:
            raise UsageError(
                f"the key of {remote.name} should be in the variable {remote.api_key_env}, which is not set: "
                f"export it, or `sr-edge config unset remotes.{remote.name}.api_key_env`"
            )
        return Secret(value)
    entry = _read(keys_path(environ)).get(remote.name)
    if entry is None:
        return None
    problem = _mismatch(remote, entry)
    if problem:
        raise UsageError(problem)
    if entry.secret is not None:
        return entry.secret
    try:
        value = _keyring().get_password(SERVICE, remote.name)
    except Exception as error:  # whatever a backend of somebody else raises
        raise UsageError(_locked(remote.name, error)) from None
    if not value:
        raise UsageError(_locked(remote.name, _NoKeyring("it is not there any more")))
    return Secret(value)


def set_key(
    remote: RemoteConfig,
    secret: Secret,
    *,
    environ: Mapping[str, str] = os.environ,
    offline: str | None = None,
) -> Place:
    """Keep the key for this remote and its host. Returns where.

    Args:
        offline: who says that no socket may be opened, if anybody: on Linux the key store is behind one.
    Raises:
        UsageError: it can't be kept, or the key store that has the old one must not be asked.
    """
    path = keys_path(environ)
    with locked(path):
        entries = _read(path)
        before = entries.get(remote.name)
        is_in_keyring = before is not None and before.secret is None
        if is_in_keyring and offline is not None:
            raise UsageError(_offline(remote.name, offline))
        kept = offline is None and _keep_in_keyring(remote.name, secret)
        if is_in_keyring and not kept:
            with contextlib.suppress(UsageError):  # the new one counts, whatever happens to the old one
                _forget_in_keyring(remote.name)
        entries[remote.name] = _Entry(origin_of(remote.url), None if kept else secret)
        _write(path, entries)
    return "keyring" if kept else "file"


def remove_key(name: str, *, environ: Mapping[str, str] = os.environ, offline: str | None = None) -> bool:
    """Forget the key that was kept for a remote. Returns whether there was one.

    Args:
        offline: as for `set_key`.
    Raises:
        UsageError: the key store must not be asked, or does not give it up.
    """
    path = keys_path(environ)
    if not path.exists():
        return False
    with locked(path):
        entries = _read(path)
        entry = entries.pop(name, None)
        if entry is None:
            return False
        if entry.secret is None:
            if offline is not None:
                raise UsageError(_offline(name, offline))
            _forget_in_keyring(name)
        _write(path, entries)
    return True


def known_keys(
    remotes: Iterable[RemoteConfig], *, environ: Mapping[str, str] = os.environ
) -> tuple[KnownKey, ...]:
    """One of each remote, then those whose remote is gone. Runs no command and asks no key store."""
    entries = _read(keys_path(environ))
    known = []
    for remote in remotes:
        entry = entries.pop(remote.name, None)
        known.append(_known(remote, entry, environ))
    for name, entry in sorted(entries.items()):
        place: Place = "keyring" if entry.secret is None else "file"
        masked = entry.secret.masked if entry.secret else ""
        known.append(KnownKey(name, place, entry.origin, masked, "no remote of this name"))
    return tuple(known)


def origin_of(url: str) -> str:
    """Scheme, host and port: what a key is tied to."""
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".").lower()
    port = parts.port or (443 if scheme == "https" else 80)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _known(remote: RemoteConfig, entry: _Entry | None, environ: Mapping[str, str]) -> KnownKey:
    away = f"not sent to {origin_of(remote.url)}" if _moved_problem(remote) else ""
    if remote.api_key_cmd is not None:
        return KnownKey(remote.name, "api_key_cmd", _program(remote.api_key_cmd), problem=away)
    if remote.api_key_env is not None:
        value = environ.get(remote.api_key_env, "").strip()
        try:
            masked, problem = (Secret(value).masked, "") if value else ("", "not set")
        except UsageError:
            masked, problem = "", "holds no key"
        return KnownKey(remote.name, "api_key_env", remote.api_key_env, masked, problem or away)
    if entry is None:
        return KnownKey(remote.name, None, "")
    place: Place = "keyring" if entry.secret is None else "file"
    masked = entry.secret.masked if entry.secret else ""
    problem = f"the remote is now at {origin_of(remote.url)}" if _mismatch(remote, entry) else ""
    return KnownKey(remote.name, place, entry.origin, masked, problem)


def _moved_problem(remote: RemoteConfig) -> str | None:
    moved, now = remote.moved, origin_of(remote.url)
    if moved is None or (moved.key_url is not None and origin_of(moved.key_url) == now):
        return None
    setting = "api_key_env" if remote.api_key_cmd is None else "api_key_cmd"
    before = "no URL" if moved.key_url is None else origin_of(moved.key_url)
    return (
        f"the key of {remote.name} is not sent to {now}, a URL that {moved.url_origin} sets: its {setting} "
        f"({moved.key_origin}) stands beside {before}. Set both in one place, or use a remote of its own"
    )


def _mismatch(remote: RemoteConfig, entry: _Entry) -> str | None:
    now = origin_of(remote.url)
    if entry.origin == now:
        return None
    return (
        f"the key of {remote.name} is for {entry.origin}, and its URL is now at {now}, where it is not sent: "
        f"`sr-edge keys set {remote.name}` if it should be"
    )


# --- a command ---------------------------------------------------------------------------------------


def _program(command: str | tuple[str, ...]) -> str:
    """Its name alone: people do write secrets into arguments."""
    try:
        words = shlex.split(command) if isinstance(command, str) else [*command]
    except ValueError:
        return "?"
    return Path(words[0]).name if words else "?"


def _from_command(remote: RemoteConfig, environ: Mapping[str, str], say: Callable[[str], None]) -> Secret:
    command = remote.api_key_cmd
    assert command is not None
    name = f"the api_key_cmd of {remote.name} ({_program(command)})"

    def fail(what: str) -> NoReturn:
        raise UsageError(
            f"{name} {what}; try it by itself, or `sr-edge config unset remotes.{remote.name}.api_key_cmd`"
        )

    try:
        words = shlex.split(command) if isinstance(command, str) else [*command]
    except ValueError:
        fail("has a quote that nothing closes")
    words[0] = os.path.expanduser(words[0])
    try:
        # stdin is not for it: the problem may be there. No shell: nothing in a setting is more than words.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environ),
        )
    except FileNotFoundError:
        fail("is not there")
    except OSError as error:
        fail(f"can't be run: {error.strerror}")
    out, err, code = _finished(process)
    secret = None
    problem = None
    line = out.decode("utf-8", "replace").partition("\n")[0].strip()
    if code is None:
        problem = f"was not done within {COMMAND_SECONDS:g} s"
    elif code:
        problem = f"failed with exit code {code}"
    elif not line:
        problem = "printed nothing"
    else:
        try:
            secret = Secret(line)
        except UsageError:
            problem = "printed something on its first line that is no key"
    _pass_on(err.decode("utf-8", "replace"), f"{_program(command)}: ", line, say)
    if secret is None:
        fail(problem or "failed")
    return secret


def _pass_on(text: str, prefix: str, key: str, say: Callable[[str], None]) -> None:
    """What a command said on stderr, with whatever looks like a key hidden."""
    from sr_edge.redact import rules

    for line in text.splitlines()[:_MAX_LINES]:
        shown = safe_line(line.replace(key, MASK) if key else line)
        if shown:
            say(prefix + rules(["key"]).redact(shown))


def _finished(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes, int | None]:
    """What it printed, no more than a key needs, and its exit code: None if it had to be ended."""
    assert process.stdout is not None
    assert process.stderr is not None
    outputs = [_Reading(process.stdout, _MAX_OUTPUT), _Reading(process.stderr, _MAX_OUTPUT)]
    deadline = time.monotonic() + COMMAND_SECONDS
    code: int | None = None
    try:
        code = process.wait(COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    # a child of its own may keep the pipes open: what it writes later is not waited for
    grace = min(1.0, max(0.1, deadline - time.monotonic()))
    return outputs[0].result(grace), outputs[1].result(grace), code


class _Reading:
    """The beginning of a stream, read on a thread of its own; then the stream is closed."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._got = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while len(self._got) < self._limit:
                piece = os.read(self._stream.fileno(), self._limit - len(self._got))
                if not piece:
                    break
                self._got += piece

    def result(self, timeout: float) -> bytes:
        self._thread.join(timeout)
        return bytes(self._got)


# --- the file ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key that was kept; one without a secret is in the system's key store."""

    origin: str
    secret: Secret | None


def _read(path: Path) -> dict[str, _Entry]:
    """Raises: UsageError: others can read it, or it is not ours."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if sys.platform != "win32" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(
                    f"{path} can be read by others (mode {stat.S_IMODE(mode):03o}), so it is not used: "
                    f"`chmod 600 {shlex.quote(str(path))}`, and change the keys if others may have seen them"
                )
            data = json.loads(file.read())
        return {name: _entry(value) for name, value in data["keys"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{path} is damaged: delete it, and `sr-edge keys set` each key again") from None


def _entry(value: Mapping[str, Any]) -> _Entry:
    origin, key = value["origin"], value.get("key")
    if not isinstance(origin, str) or not isinstance(key, str | None):
        raise TypeError
    try:
        return _Entry(safe_line(origin), None if key is None else Secret(key))
    except UsageError as error:
        raise ValueError(str(error)) from None


def _write(path: Path, entries: Mapping[str, _Entry]) -> None:
    keys = {
        name: {"origin": entry.origin} | ({"key": entry.secret.reveal()} if entry.secret else {})
        for name, entry in sorted(entries.items())
    }
    write_private(path, json.dumps({"version": 1, "keys": keys}, indent=2) + "\n")


# --- the system's key store --------------------------------------------------------------------------


class _NoKeyring(Exception):
    """There is none that keeps a key safe; says why."""


def _keyring() -> Any:
    """Raises: _NoKeyring, or whatever a backend does."""
    try:
        import keyring
    except ImportError:
        raise _NoKeyring("pip install 'sr-edge[keyring]' reads it") from None
    backend = keyring.get_keyring()
    for part in (backend, *getattr(backend, "backends", ())):
        if type(part).__module__.startswith(
            ("keyring.backends.fail", "keyring.backends.null", "keyrings.alt")
        ):
            raise _NoKeyring("this system has none that keeps keys safe")
    return backend


def _keep_in_keyring(name: str, secret: Secret) -> bool:
    """Whether it is there now, and comes back as it was."""
    try:
        backend = _keyring()
        backend.set_password(SERVICE, name, secret.reveal())
        return bool(backend.get_password(SERVICE, name) == secret.reveal())
    except Exception:  # locked, refused, no session, a backend's own errors: the file is there
        return False


def _forget_in_keyring(name: str) -> None:
    try:
        backend = _keyring()
        if backend.get_password(SERVICE, name) is not None:
            backend.delete_password(SERVICE, name)
    except Exception as error:
        raise UsageError(_locked(name, error)) from None


def _offline(name: str, origin: str) -> str:
    return f"offline ({origin}): the key of {name} is in the system's key store, which is asked over a socket"


def _locked(name: str, error: Exception) -> str:
    """Args:
    error: of a backend, which may quote anything, so only its name is told; or a reason of ours.
    """
    is_ours = isinstance(error, _NoKeyring)
    reason = str(error) if is_ours else safe_line(type(error).__name__)
    return (
        f"the key of {name} is in the system's key store, which does not give it ({reason}): "
        + ("" if is_ours else "unlock it, or ")
        + f"`sr-edge keys set {name}` again"
    )
