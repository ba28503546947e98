"""The settings that hold, and where each comes from: flag > environment > profile > file > default."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sr_edge.budget import Budget, Price
from sr_edge.config.lines import line_numbers
from sr_edge.config.schema import (
    KEYS,
    KEYS_OF,
    PLAIN_VARIABLES,
    PREFIX,
    REMOTE,
    SCHEMA,
    Key,
    check_name,
    checked,
    from_text,
    is_secret,
    nearest,
    no_secrets,
    quoted,
    split_remote,
    unknown,
)
from sr_edge.errors import UsageError
from sr_edge.files import CONFIG_VARIABLE, config_path, own_config_path
from sr_edge.keymap import clash
from sr_edge.policy import Dial
from sr_edge.reading import Places

PROFILE_VARIABLE = "SR_EDGE_PROFILE"

_IS_NEAR = 0.75  # for names of variables: so near is ONLINE to OFFLINE


@dataclass(frozen=True, slots=True)
class Offload:
    policy: Dial
    hedge: bool
    speculate: bool
    max_span_tokens: int
    max_spans: int | None
    handback: Places
    redact: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float
    max_tokens: int
    seed: int | None


@dataclass(frozen=True, slots=True)
class Ui:
    theme: str
    reasoning: Literal["auto", "always", "never"]
    sidebar: Literal["auto", "always", "never"]
    mouse: bool
    animations: bool
    keymap: Mapping[str, str]
    """Keys by id, with commas between several: only those that are changed."""


@dataclass(frozen=True, slots=True)
class Log:
    enabled: bool


@dataclass(frozen=True, slots=True)
class Chat:
    prefill_while_typing: bool


@dataclass(frozen=True, slots=True)
class Cache:
    conversations: bool
    max_mb: int


@dataclass(frozen=True, slots=True)
class Engine:
    threads: int | None
    calibrate: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """A URL that was put over another, and takes along what says where the key is."""

    url_origin: str
    """Where the URL comes from."""
    key_origin: str
    key_url: str | None
    """The URL that holds where the key's setting is."""


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """One endpoint. None: not set, so what holds for all of them, or nothing."""

    name: str
    url: str
    model: str | None = None
    api: str = "auto"
    api_key_env: str | None = None
    api_key_cmd: str | tuple[str, ...] | None = None
    plain_http: bool = False
    ca_file: Path | None = None
    proxy: str | None = None
    price: Price | None = None
    timeout: Mapping[str, float] = field(default_factory=dict)
    """Seconds for those of the deadlines' fields that are set."""
    hedge: bool | None = None
    redact: tuple[str, ...] | None = None
    moved: Moved | None = None
    """Set where the URL comes from a higher layer than `api_key_cmd` or `api_key_env`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it comes from."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    """The user's file, which need not exist."""
    profile: str | None
    default_remote: str | None
    model: str | None
    offline: bool
    offload: Offload
    budget: Budget
    sampling: Sampling
    ui: Ui
    log: Log
    chat: Chat
    cache: Cache
    engine: Engine
    remotes: Mapping[str, RemoteConfig]
    settings: Mapping[str, Setting]
    """Each by its dotted name: all of the table's, and of the remotes and the keymap those that are set."""

    def origin(self, key: str) -> str:
        """`flag --x`, `env SR_EDGE_X`, `profile fast`, `config.toml:14` or `default`."""
        return self.settings[key].origin if key in self.settings else "default"

    def remote(self, name: str | None = None) -> RemoteConfig:
        """The one of this name, or the default one.

        Raises:
            UsageError: there is none.
        """
        if name is None and self.default_remote is None:
            if not self.remotes:
                raise UsageError("no remote is set up: `sr-edge remote add NAME URL` does that")
            names = ", ".join(self.remotes)
            raise UsageError(f"which remote? There is {names}; `sr-edge remote default NAME` chooses one")
        wanted = self.default_remote if name is None else name
        assert wanted is not None
        if wanted not in self.remotes:
            raise UsageError(_no_remote(wanted, self.remotes))
        return self.remotes[wanted]


def load_config(
    *,
    environ: Mapping[str, str],
    path: Path | None = None,
    profile: str | None = None,
    flags: Mapping[str, object] | None = None,
    may_be_missing: bool = False,
) -> Config:
    """Read and check everything; nothing is opened but the file.

    Args:
        path: instead of the user's file, whose `offline` holds nevertheless.
        flags: values of the command line by dotted name; those that are None were not given.
        may_be_missing: even if the user named it. Else settings that nobody finds, such as offline, would be
            silently without effect.
    Raises:
        UsageError: something is not as it may be; says where and how to mend it.
    """
    named = path is not None or bool(environ.get(CONFIG_VARIABLE))
    path = path or config_path(environ)
    text = read_config(path)
    if text is None and named and not may_be_missing:
        raise UsageError(f"{path} is not there: it was named as the file of settings")
    others = dict.fromkeys([config_path(environ), own_config_path(environ)])
    others.pop(path.absolute(), None)
    elsewhere = [_offline_in(other) for other in others]
    return config_of(text or "", path, environ=environ, profile=profile, flags=flags, elsewhere=elsewhere)


def config_of(
    text: str,
    path: Path,
    *,
    environ: Mapping[str, str],
    profile: str | None = None,
    flags: Mapping[str, object] | None = None,
    elsewhere: Sequence[Mapping[str, Setting]] = (),
) -> Config:
    """As `load_config`, from the file's text.

    Args:
        elsewhere: what holds beneath all of that.
    Raises:
        UsageError: as there.
    """
    file = _File.parse(text, path)
    chosen, chooser = profile, "--profile"
    if chosen is None and environ.get(PROFILE_VARIABLE):
        chosen, chooser = environ[PROFILE_VARIABLE], PROFILE_VARIABLE
    layers = [file.values, *elsewhere]
    if chosen == "":
        raise UsageError("--profile names no profile: it is empty")
    if chosen is not None:
        if chosen not in file.profiles:
            near = nearest(chosen, file.profiles)
            hint = f"; did you mean {quoted(near)}?" if near else f": add [profiles.{chosen}] to {path}"
            raise UsageError(f"{chooser}: there is no profile {quoted(chosen)}{hint}")
        layers.insert(0, file.profiles[chosen])
    known = {name for layer in layers for name in _remotes_in(layer)}
    layers.insert(0, _environment(environ, known))
    layers.insert(0, _flags(flags or {}))
    settings = merged(layers)
    return _built(settings, layers, file, chosen)


def check_text(text: str, path: Path, *, is_whole: bool = True) -> None:
    """Whether a file would load, whichever of its profiles is chosen.

    Args:
        is_whole: False looks at each line alone: what contradicts another may be about to be mended.
    Raises:
        UsageError: it would not.
    """
    profiles = _File.parse(text, path).profiles
    for profile in (None, *profiles) if is_whole else ():
        config_of(text, path, environ={}, profile=profile)


def read_config(path: Path) -> str | None:
    """The file's text with `\\n` as its line ends; None if there is no file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; the file of settings should be there") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8: save the file in that encoding") from None


def _offline_in(path: Path) -> Layer:
    """What a file that is not the one in use says of being offline: a promise that another one does not end.

    Raises:
        UsageError: it cannot be known.
    """
    text = read_config(path)
    if text is None:
        return {}
    data = _parsed(text, path)
    key = _SETTINGS["offline"]
    said = {key.name: data[key.name]} if key.name in data else {}
    reader = _Reader(path, line_numbers(text))
    layer = reader.values(said, (), {key.name: key}, None)
    return {
        name: Setting(True, f"{path}:{reader.line((name,))}") for name, said in layer.items() if said.value
    }


Layer = dict[str, Setting]


def merged(layers: Sequence[Mapping[str, Setting]]) -> dict[str, Setting]:
    """For each key the setting of the highest layer that has one.

    But offline: whoever says it, it holds, and a lower layer can't be outvoted.

    Args:
        layers: the highest first.
    """
    result: dict[str, Setting] = {}
    for layer in reversed(layers):
        result.update(layer)
    for layer in layers:
        if "offline" in layer and layer["offline"].value:
            result["offline"] = layer["offline"]
            break
    return result


# --- the file ----------------------------------------------------------------------------------------

_REMOTES = {key.name: key for key in REMOTE}
_SETTINGS = {key.name: key for key in (*SCHEMA, *KEYS)}


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    lines: Mapping[tuple[str, ...], int]
    values: Layer
    profiles: Mapping[str, Layer]

    @classmethod
    def parse(cls, text: str, path: Path) -> _File:
        data = _parsed(text, path)
        reader = _Reader(path, line_numbers(text))
        profiles = reader.table(data.pop("profiles", {}), ("profiles",))
        return cls(
            path,
            reader.lines,
            reader.layer(data, ()),
            {name: reader.profile(name, profiles[name]) for name in profiles},
        )


def _parsed(text: str, path: Path) -> dict[str, Any]:
    """Raises: UsageError: it is no TOML; names the line."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # a number of thousands of digits is one, and no TOMLDecodeError
        raise UsageError(_syntax(str(error), text, path)) from None
    except RecursionError:
        raise UsageError(
            f"{path}: not TOML that can be read: brackets within brackets, without end"
        ) from None


def _syntax(message: str, text: str, path: Path) -> str:
    match = re.search(r" \(at line (\d+), column (\d+)\)", message)
    line = match[1] if match else str(text.rstrip("\n").count("\n") + 1)
    what = re.sub(r" \(at [^)]*\)", "", message)
    return f"{path}:{line}: not TOML: {what}" + (f" (column {match[2]})" if match else "")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Checks a parsed file against the table; each complaint has its line."""

    path: Path
    lines: Mapping[tuple[str, ...], int]

    def error(self, path: tuple[str, ...], message: str) -> UsageError:
        return UsageError(f"{self.path}:{self.line(path)}: {message}")

    def line(self, path: tuple[str, ...]) -> int:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def table(self, value: object, path: tuple[str, ...]) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise self.error(path, f"{path[-1]} must be a table, such as [{'.'.join(path)}]")
        return value

    def profile(self, name: str, value: object) -> Layer:
        path = ("profiles", name)
        self.named(name, path, "profile")
        return self.layer(self.table(value, path), path)

    def named(self, name: str, path: tuple[str, ...], what: str) -> None:
        try:
            check_name(name, what)
        except ValueError as error:
            raise self.error(path, str(error)) from None

    def layer(self, data: Mapping[str, object], above: tuple[str, ...]) -> Layer:
        """All settings of the file, or of one of its profiles."""
        origin = f"profile {above[1]}" if above else None
        layer: Layer = {}
        for name, value in self.table(data.get("remotes", {}), (*above, "remotes")).items():
            path = (*above, "remotes", name)
            self.named(name, path, "remote")
            remote = self.values(self.table(value, path), path, _REMOTES, origin)
            if not remote and not above:
                raise self.error(path, f"[{'.'.join(path)}] is empty: it needs a url")
            layer |= {f"remotes.{name}.{key}": setting for key, setting in remote.items()}
        rest = {name: value for name, value in data.items() if name != "remotes"}
        return layer | self.values(rest, above, _SETTINGS, origin)

    def values(
        self,
        table: Mapping[str, object],
        above: tuple[str, ...],
        known: Mapping[str, Key],
        origin: str | None,
        inner: str = "",
    ) -> Layer:
        """Args:
        known: the settings of this table by their dotted names.
        inner: what they begin with here: `price.` within the table `price`.
        """
        layer: Layer = {}
        for name, value in table.items():
            path, key = (*above, name), inner + name
            if key in known:
                try:
                    right = checked(known[key], value, self.path.parent)
                except ValueError as error:
                    raise self.error(path, f"{'.'.join(path)} {error}") from None
                layer[key] = Setting(right, origin or f"{self.path.name}:{self.line(path)}")
            elif any(other.startswith(f"{key}.") for other in known):
                layer |= self.values(self.table(value, path), path, known, origin, f"{key}.")
            else:
                raise self.error(path, self.complaint(path, name, value, known, inner))
        return layer

    def complaint(
        self, path: tuple[str, ...], name: str, value: object, known: Mapping[str, Key], inner: str
    ) -> str:
        if is_secret(name):
            remote = path[path.index("remotes") + 1] if "remotes" in path else "NAME"
            return f"{'.'.join(path)} would be a key in the clear, and {no_secrets(remote)}"
        here = {
            other.removeprefix(inner).partition(".")[0]: None for other in known if other.startswith(inner)
        }
        if known is _SETTINGS and not inner:
            here |= {"remotes": None} if path[0] == "profiles" else {"remotes": None, "profiles": None}
        if isinstance(value, dict):
            tables = [other for other in here if other not in known]
            near = nearest(name, tables)
            line = f"unknown section [{'.'.join(path)}]"
            return f"{line}; did you mean [{'.'.join((*path[:-1], near))}]?" if near else line
        return unknown(name, here, ".".join(path[:-1]))


# --- the environment and the command line ------------------------------------------------------------


def _environment(environ: Mapping[str, str], remotes: set[str]) -> Layer:
    layer: Layer = {}
    regular: dict[str, Key] = {}
    for key in _SETTINGS.values():
        for variable in reversed(key.variables):
            regular[variable] = key
            if environ.get(variable):
                layer[key.name] = _from_environment(key, variable, environ[variable])
    begin = f"{PREFIX}REMOTES__"
    for variable in sorted(environ):
        if not variable.upper().startswith(PREFIX) or variable in regular or not environ[variable]:
            continue
        if "__" not in variable:
            _check_plain(variable, regular)
            continue
        if not variable.startswith(begin):
            near = nearest(variable, {other.lower(): None for other in (*regular, begin + "NAME__URL")})
            hint = f"; did you mean {near.upper()}?" if near else ""
            raise UsageError(f"environment: {variable} is no setting{hint}")
        spelled, leaf = split_remote(variable.removeprefix(begin), "__")
        if leaf not in _REMOTES:
            complaint = no_secrets(spelled.lower()) if is_secret(leaf) else unknown(leaf, _REMOTES, "")
            raise UsageError(f"environment: {variable}: {complaint}")
        meant = [name for name in sorted(remotes) if _spelled(name) == spelled] or [spelled.lower()]
        if len(meant) > 1:
            raise UsageError(f"environment: {variable} may mean {' or '.join(meant)}: rename one of them")
        try:
            check_name(meant[0], "remote")
        except ValueError as error:
            raise UsageError(f"environment: {variable}: {error}") from None
        layer[f"remotes.{meant[0]}.{leaf}"] = _from_environment(_REMOTES[leaf], variable, environ[variable])
    return layer


def _check_plain(variable: str, settings: Iterable[str]) -> None:
    """Raises: UsageError: it is nearly one of ours, so it would be without the effect that it was set for."""
    names = [*PLAIN_VARIABLES, *settings]
    if variable in names:
        return
    tails = {name.removeprefix(PREFIX): name for name in names}
    near = difflib.get_close_matches(variable[len(PREFIX) :].upper(), tails, n=1, cutoff=_IS_NEAR)
    if near:
        raise UsageError(f"environment: {variable} is nothing of ours; did you mean {tails[near[0]]}?")


def _from_environment(key: Key, variable: str, text: str) -> Setting:
    try:
        return Setting(checked(key, from_text(key, text)), f"env {variable}")
    except ValueError as error:
        raise UsageError(f"environment: {variable} {error}") from None


def _spelled(name: str) -> str:
    return re.sub(r"[.-]", "_", name).upper()


def _flags(flags: Mapping[str, object]) -> Layer:
    layer: Layer = {}
    for name, value in flags.items():
        key = _SETTINGS[name]  # a name that is not in the table is a mistake of ours
        if value is None or (name == "offline" and not value):
            continue
        try:
            layer[name] = Setting(checked(key, value), f"flag {key.option}")
        except ValueError as error:
            raise UsageError(f"{key.option} {error}") from None
    return layer


# --- all together ------------------------------------------------------------------------------------


def _remotes_in(layer: Mapping[str, Setting]) -> Iterator[str]:
    """Their names, in order; each once."""
    names = (
        split_remote(key.removeprefix("remotes."), ".")[0] for key in layer if key.startswith("remotes.")
    )
    yield from dict.fromkeys(names)


def _built(
    given: Mapping[str, Setting], layers: Sequence[Mapping[str, Setting]], file: _File, profile: str | None
) -> Config:
    defaults = {key.name: Setting(key.default, "default") for key in SCHEMA}
    settings = {name: given.get(name, default) for name, default in defaults.items()}
    settings |= {key.name: given[key.name] for key in KEYS if key.name in given}
    _check_keymap(settings, file)
    names = [*_remotes_in(given)]
    ordered = (f"remotes.{name}.{leaf}" for name in names for leaf in _REMOTES)
    settings |= {key: given[key] for key in ordered if key in given}
    remotes = {name: _remote(name, settings, file, _moved(name, layers)) for name in names}
    wanted = settings["default_remote"]
    if wanted.value is not None and wanted.value not in remotes:
        where = wanted.origin.replace(file.path.name, str(file.path), 1)
        raise UsageError(f"{where}: default_remote: {_no_remote(wanted.value, remotes)}")
    return Config(
        path=file.path,
        profile=profile,
        default_remote=settings["default_remote"].value,
        model=settings["model"].value,
        offline=settings["offline"].value,
        offload=Offload(**_section("offload.", settings)),
        budget=Budget(**_section("budget.", settings)),
        sampling=Sampling(**_section("sampling.", settings)),
        ui=_ui(settings),
        log=Log(**_section("log.", settings)),
        chat=Chat(**_section("chat.", settings)),
        cache=Cache(**_section("cache.", settings)),
        engine=Engine(**_section("engine.", settings)),
        remotes=remotes,
        settings=settings,
    )


def _section(prefix: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): setting.value
        for name, setting in settings.items()
        if name.startswith(prefix)
    }


def _ui(settings: Mapping[str, Setting]) -> Ui:
    section = _section("ui.", settings)
    own = {name: value for name, value in section.items() if not name.startswith("keymap.")}
    return Ui(**own, keymap=_section(KEYS_OF, settings))


def _check_keymap(settings: Mapping[str, Setting], file: _File) -> None:
    """Raises: UsageError: a key would mean two things at once."""
    changed = _section(KEYS_OF, settings)
    found = clash(changed) if changed else None
    if found is None:
        return
    name, *both = found
    both.sort(key=lambda key: key.id not in changed)
    where = settings[KEYS_OF + both[0].id].origin.replace(file.path.name, str(file.path), 1)
    raise UsageError(
        f"{where}: {KEYS_OF}{both[0].id}: {quoted(name)} is the key of {both[1].id} "
        f"({both[1].description}) too: give one of them another"
    )


def _moved(name: str, layers: Sequence[Mapping[str, Setting]]) -> Moved | None:
    urls = [layer.get(f"remotes.{name}.url") for layer in layers]
    for leaf in ("api_key_cmd", "api_key_env"):  # in the order in which they are asked
        keys = [layer.get(f"remotes.{name}.{leaf}") for layer in layers]
        for depth, key in enumerate(keys):
            if key is not None:
                over = next(filter(None, urls[:depth]), None)
                under = next(filter(None, urls[depth:]), None)
                key_url = None if under is None else under.value
                return None if over is None else Moved(over.origin, key.origin, key_url)
    return None


def _remote(name: str, settings: Mapping[str, Setting], file: _File, moved: Moved | None) -> RemoteConfig:
    given = _section(f"remotes.{name}.", settings)
    given = {leaf: given[leaf] for leaf in _REMOTES if leaf in given}  # `a` is not to get what `a.b` has
    price = {leaf: given.pop(f"price.{leaf}", None) for leaf in ("input", "output")}
    timeout = {leaf: given.pop(leaf) for leaf in [*given] if leaf.startswith("timeout.")}

    def error(leaf: str, message: str) -> UsageError:
        keys = [key for key in settings if key.startswith(f"remotes.{name}.{leaf}")]
        origin = settings[keys[0]].origin.replace(file.path.name, str(file.path), 1)
        return UsageError(f"{origin}: [remotes.{name}] {message}")

    if "url" not in given:
        raise error("", "has no url")
    if (price["input"] is None) != (price["output"] is None):
        raise error("price", "needs a price for input and one for output")
    if "ca_file" in given:
        given["ca_file"] = Path(given["ca_file"])
    return RemoteConfig(
        name=name,
        price=None if price["input"] is None else Price(**price),
        timeout={leaf.removeprefix("timeout."): seconds for leaf, seconds in timeout.items()},
        moved=moved,
        **given,
    )


def _no_remote(name: str, remotes: Mapping[str, RemoteConfig]) -> str:
    near = nearest(name, remotes)
    line = f"there is no remote {quoted(name)}"
    if near:
        return f"{line}; did you mean {quoted(near)}?"
    if remotes:
        return f"{line}; there is {', '.join(remotes)}"
    return f"{line}: `sr-edge remote add {quoted(name)[1:-1]} URL` makes it"
