"""`sr-edge remote`: the large models that may be asked. Only `test` and `models` ask any."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sr_edge.commands import STYLE
from sr_edge.commands.completion import remote_names
from sr_edge.commands.listing import offline_origin, print_json, print_table, say, settings
from sr_edge.commands.output import note
from sr_edge.config import Config, RemoteConfig
from sr_edge.config.edit import Change, change_config
from sr_edge.config.schema import REMOTE, check_name, checked
from sr_edge.errors import ModelError, RemoteError, UsageError
from sr_edge.files import cache_dir, config_path
from sr_edge.keys import KnownKey, find_key, known_keys, remove_key
from sr_edge.roles import Message, Prompt
from sr_edge.terminal import safe_line

if TYPE_CHECKING:
    from sr_edge.remote.dialects import Capabilities
    from sr_edge.remote.endpoint import Endpoint

app = typer.Typer(**STYLE)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The remote.", autocompletion=remote_names)]
OptionalName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="The remote. Default: the default one.",
        autocompletion=remote_names,
        show_default=False,
    ),
]
AsObject = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def remote(ctx: typer.Context) -> None:
    """The large models that may be asked, by name.

    Without a command: `list`.
    """
    if ctx.invoked_subcommand is None:
        list_remotes()


@app.command("list")
def list_remotes(as_object: AsObject = False) -> None:
    """All remotes; the default one has a star. Nothing is asked."""
    config = settings()
    keys = {key.name: key for key in known_keys(config.remotes.values(), environ=os.environ)}
    if as_object:
        print_json([_as_json(remote, config, keys[remote.name]) for remote in config.remotes.values()])
        return
    if not config.remotes:
        note("no remote is set up: `sr-edge remote add NAME URL` does that")
        return
    heading = ["", "name", "url", "model", "api", "$/M in", "$/M out", "key"]
    rows = [
        [
            "*" if remote.name == config.default_remote else " ",
            remote.name,
            remote.url,
            remote.model or "",
            _api(remote),
            f"{remote.price.input:.15g}" if remote.price else "",
            f"{remote.price.output:.15g}" if remote.price else "",
            _key_words(keys[remote.name]),
        ]
        for remote in config.remotes.values()
    ]
    print_table(heading, rows, right=(5, 6))


@app.command("add")
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What you call it: small letters, digits, . _ -")
    ],
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the OpenAI-compatible API, to its /v1.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Its name for the model. Default: its first."),
    ] = None,
    api: Annotated[
        str | None, typer.Option("--api", metavar="API", help="How it continues answers. Default: auto.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="VARIABLE", help="The variable that holds its key.")
    ] = None,
    api_key_cmd: Annotated[
        str | None, typer.Option("--api-key-cmd", metavar="COMMAND", help="A command that prints its key.")
    ] = None,
    price_input: Annotated[
        float | None, typer.Option("--price-input", metavar="X", help="US dollars per million tokens sent.")
    ] = None,
    price_output: Annotated[
        float | None,
        typer.Option("--price-output", metavar="Y", help="US dollars per million tokens written."),
    ] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Allow http:// to this one, on your own network.")
    ] = False,
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", metavar="PEM", help="Certificates to trust besides the usual.")
    ] = None,
    proxy: Annotated[
        str | None, typer.Option("--proxy", metavar="URL", help="Proxies of the environment are not used.")
    ] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Make it the default one; the first is.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the one of this name.")] = False,
) -> None:
    """Write an endpoint down under a name. Nothing is asked yet."""
    try:
        check_name(name, "remote")
    except ValueError as error:
        raise UsageError(str(error)) from None
    price = _price(price_input, price_output)
    if ca_file is not None:
        ca_file = Path(str(_check("ca_file", str(ca_file))))
    given: dict[str, object] = {
        "url": _checked_url(name, url, plain_http=plain_http, ca_file=ca_file, proxy=proxy),
        "model": model,
        "api": api,
        "api_key_env": api_key_env,
        "api_key_cmd": api_key_cmd,
        "plain_http": plain_http or None,
        "ca_file": None if ca_file is None else str(ca_file.absolute()),
        "proxy": proxy,
        "price": price,
    }
    for key in REMOTE:
        if given.get(key.name) is not None:
            _check(key.name, given[key.name])
    becomes_default = False

    def changes(data: Mapping[str, Any]) -> Iterable[Change]:
        nonlocal becomes_default
        remotes = data.get("remotes", {})
        before = remotes.get(name)
        if before is not None and not force:
            raise UsageError(
                f"there is a remote {name} already, at {safe_line(str(before.get('url')))}: "
                "--force replaces it, another name keeps both"
            )
        becomes_default = default or not remotes
        for key in before or ():  # what is not said again is not kept: a key's variable belongs to its host
            if given.get(key) is None:
                yield Change(("remotes", name, key), None)
        for key, value in given.items():
            if value is not None:
                yield Change(("remotes", name, key), value)
        if becomes_default:
            yield Change(("default_remote",), name)

    change_config(config_path(os.environ), changes)
    say(f"{name} is {given['url']}" + (", and the default" if becomes_default else ""))
    try:  # it is written: what is wrong elsewhere is no failure of this
        its_key = known_keys([settings().remote(name)], environ=os.environ)[0]
    except UsageError as error:
        note(f"written; but {error}")
    else:
        if its_key.place is None:
            say(f"its key, if it needs one: sr-edge keys set {name}")
        elif its_key.problem:
            note(f"its key: {_key_words(its_key)}")
    say(f"to see what it can do: sr-edge remote test {name}")


@app.command("rm")
def remove(name: Name) -> None:
    """Forget a remote, the key that was kept for it, and what was found out about it."""
    config = settings()
    remote = config.remote(name)

    def changes(data: Mapping[str, Any]) -> Iterable[Change]:
        yield Change(("remotes", name), None)
        for above, layer in _layers(data):
            if above:
                yield Change((*above, "remotes", name), None)
            if layer.get("default_remote") == name:
                yield Change((*above, "default_remote"), None)

    has_key = remove_key(name, environ=os.environ, offline=offline_origin(config))
    if not change_config(config.path, changes):
        origin = config.origin(f"remotes.{name}.url").removeprefix("env ")
        raise UsageError(f"{name} is not in {config.path}: {origin} in the environment makes it")
    from sr_edge.remote.known import forget

    forget(_known_path(), remote.url)
    say(f"{name} is forgotten" + (", and its key" if has_key else ""))
    if config.default_remote == name and len(config.remotes) > 1:
        note("there is no default remote now: `sr-edge remote default NAME` chooses one")


@app.command("test")
def probe(name: OptionalName = None, as_object: AsObject = False) -> None:
    """Find out what an endpoint can do, with texts of our own, and remember it.

    Exit code 0: it can be used; 3: it cannot.
    """
    config = settings()
    remote = config.remote(name)
    _refuse_offline(config, "test", remote)
    key = find_key(remote, environ=os.environ, say=note)
    facts = {
        "endpoint": remote.url,
        "key": _its_key_words(remote) if key else "none, none is sent",
    }
    findings: list[tuple[str, str]] = []
    found = None
    error = None
    with _endpoint(remote, config, key.reveal() if key else None) as endpoint:
        try:
            facts["models"] = _few(endpoint.models())
            facts["reachable"] = "yes, and the key is accepted" if key else "yes"
        except RemoteError as failed:
            facts["reachable"] = f"not for its list of models: {failed}"
        if not as_object:
            _print_facts(facts)
            if sys.stderr.isatty():
                note("asking in every way there is; this takes a moment")
        try:
            found = endpoint.survey(lambda way, verdict: findings.append((way, verdict)))
        except RemoteError as failed:
            error = str(failed)
    if found is not None and found.thought is None and found.text is None:
        error = "it continues an answer in no way that we know"
    if as_object:
        print_json(
            {
                "name": remote.name,
                **facts,
                "usable": error is None,
                "error": error,
                "capabilities": found.to_json() if found else None,
            }
        )
    else:
        if findings:
            print()
            print_table(["way to continue", "a thought", "a text"], _verdicts(findings))
            print()
        conclusions = {} if found is None else _conclusions(found)
        _print_facts(conclusions | {"verdict": "usable" if error is None else f"not usable: {error}"})
    if error is not None:
        raise typer.Exit(RemoteError.exit_code)


@app.command("models")
def models(name: OptionalName = None, as_object: AsObject = False) -> None:
    """The names of an endpoint's models."""
    config = settings()
    remote = config.remote(name)
    _refuse_offline(config, "models", remote)
    key = find_key(remote, environ=os.environ, say=note)
    with _endpoint(remote, config, key.reveal() if key else None) as endpoint:
        names = endpoint.models()
    if as_object:
        print_json(names)
        return
    for model in names:
        say(model)
    if remote.model is not None and remote.model not in names:
        note(
            f"{remote.name} has no model {remote.model!r}: "
            f"`sr-edge config set remotes.{remote.name}.model MODEL` chooses one"
        )


@app.command("default")
def default(name: OptionalName = None) -> None:
    """Print the default remote, or make NAME it."""
    config = settings()
    if name is None:
        say(config.remote().name)
        return
    config.remote(name)
    change_config(config.path, lambda data: [Change(("default_remote",), name)])
    say(f"{name} is the default")
    origin = config.origin("default_remote")
    if config.default_remote != name and origin.startswith(("env ", "profile ")):
        note(f"but {origin} comes first, and says {config.default_remote}")


@app.command("price")
def price(
    name: Name,
    input: Annotated[
        float | None, typer.Option("--input", metavar="X", help="US dollars per million tokens sent.")
    ] = None,
    output: Annotated[
        float | None, typer.Option("--output", metavar="Y", help="US dollars per million tokens written.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Its price is not known.")] = False,
    as_object: AsObject = False,
) -> None:
    """Print what a remote's tokens cost, or set it; budgets in dollars need it."""
    config = settings()
    remote = config.remote(name)
    given = {"input": input, "output": output}
    path = ("remotes", name, "price")
    if clear:
        if any(value is not None for value in given.values()):
            raise UsageError("--clear goes with no price")
        change_config(config.path, lambda data: [Change(path, None)])
    elif any(value is not None for value in given.values()):
        if remote.price is None and (input is None or output is None):
            raise UsageError("a price is one for --input and one for --output")
        for leaf, value in given.items():
            if value is not None:
                _check(f"price.{leaf}", value, leaf)
        whole = {} if remote.price is None else dataclasses.asdict(remote.price)
        whole |= {leaf: value for leaf, value in given.items() if value is not None}
        table = {leaf: _short(value) for leaf, value in whole.items()}
        change_config(config.path, lambda data: [Change(path, table)])
    now = settings().remote(name).price
    if as_object:
        print_json(now and dataclasses.asdict(now))
    elif now is None:
        say(f"the price of {name} is not known")
    else:
        say(f"{name}: {now.input:.15g} sent, {now.output:.15g} written; US dollars per million tokens")


# --- what is shown -----------------------------------------------------------------------------------


def _as_json(remote: RemoteConfig, config: Config, key: KnownKey) -> dict[str, Any]:
    found = _capabilities(remote)
    return {
        "name": remote.name,
        "url": remote.url,
        "model": remote.model,
        "api": remote.api,
        "found": None if found is None else {"thought": found.thought, "text": found.text},
        "price": remote.price and dataclasses.asdict(remote.price),
        "key": {"from": key.place, "detail": key.detail or None, "problem": key.problem or None},
        "default": remote.name == config.default_remote,
    }


def _api(remote: RemoteConfig) -> str:
    if remote.api != "auto":
        return remote.api
    found = _capabilities(remote)
    rungs = [] if found is None else [rung for rung in (found.thought, found.text) if rung]
    return f"auto: {'/'.join(dict.fromkeys(rungs))}" if rungs else "auto"


def _key_words(key: KnownKey) -> str:
    """Where it comes from: `api_key_env LAB_KEY (not set)`."""
    if key.place is None:
        return "none"
    which = f" {key.detail}" if key.place in ("api_key_cmd", "api_key_env") else ""
    return f"{key.place}{which}" + (f" ({key.problem})" if key.problem else "")


def _its_key_words(remote: RemoteConfig) -> str:
    try:
        return _key_words(known_keys([remote], environ=os.environ)[0])
    except UsageError as error:  # the file of keys; this remote's own came from elsewhere
        return str(error)


def _few(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more


def _print_facts(facts: Mapping[str, str]) -> None:
    for what, words in facts.items():
        say(f"{what:<20} {words}", keeps_spaces=True)
    sys.stdout.flush()


def _verdicts(findings: Sequence[tuple[str, str]]) -> list[list[str]]:
    """A row for each dialect; the verdict on a thought stands under its name with `+think`."""
    verdicts = dict(findings)
    ways = dict.fromkeys(way.removesuffix("+think") for way in verdicts)
    return [[way, verdicts.get(f"{way}+think", ""), verdicts.get(way, "")] for way in ways]


def _conclusions(found: Capabilities) -> dict[str, str]:
    def words(fact: bool | None) -> str:
        return "not known" if fact is None else "yes" if fact else "no"

    return {
        "echoes the answer": words(found.echoes),
        "usage in the stream": words(found.has_usage),
        "can be cancelled": words(found.can_cancel),
        "goes on, thought": found.dialect(thinking=True).name,
        "goes on, text": found.dialect(thinking=False).name,
    }


# --- the endpoint ------------------------------------------------------------------------------------


def _endpoint(remote: RemoteConfig, config: Config, key: str | None) -> Endpoint:
    from sr_edge.remote.egress import Door
    from sr_edge.remote.endpoint import Deadlines, Endpoint
    from sr_edge.remote.known import save

    learned: Callable[[Capabilities], None] = lambda found: save(  # noqa: E731
        _known_path(), remote.url, remote.model, found
    )
    return Endpoint(
        remote.url,
        prompt=_prompt(config),
        model=remote.model,
        api_key=key,
        api="auto",
        learned=learned,
        deadlines=Deadlines(**remote.timeout),
        plain_http=remote.plain_http,
        ca_file=remote.ca_file,
        proxy=remote.proxy,
        door=Door(offline=config.offline),
        name=remote.name,
    )


def _prompt(config: Config) -> Callable[[Sequence[Message]], Prompt]:
    """Renders the probe's own words for raw completions as `ask` would: by the small model's template, which
    is read from its file without loading it. No ids: nothing is decoded here."""
    from sr_edge import template
    from sr_edge.gguf_header import read_header
    from sr_edge.passport import demo_paths
    from sr_edge.shelf import find

    try:
        header = read_header(find(config.model, os.environ) if config.model else demo_paths().small)
        source = header.texts().get("tokenizer.chat_template")
        template.render(source, [Message("user", "")])
    except (ModelError, OSError):
        source = None  # `ask` says what is wrong with the model; here any prompt will do

    def render(messages: Sequence[Message]) -> Prompt:
        rendering = template.render(source, messages)
        return Prompt((), rendering.text, rendering.opening)

    return render


def _capabilities(remote: RemoteConfig) -> Capabilities | None:
    from sr_edge.remote.known import load

    return load(_known_path(), remote.url, remote.model)


def _known_path() -> Path:
    return cache_dir(os.environ) / "endpoints.json"


def _refuse_offline(config: Config, command: str, remote: RemoteConfig) -> None:
    origin = offline_origin(config)
    if origin is not None:
        raise UsageError(f"offline ({origin}): `remote {command}` asks {remote.name}, so it did nothing")


# --- what is written ---------------------------------------------------------------------------------


def _checked_url(name: str, url: str, *, plain_http: bool, ca_file: Path | None, proxy: str | None) -> str:
    """The URL as it will be asked. Raises: UsageError: it may not be."""
    from sr_edge.remote.egress import site_of

    try:
        site = site_of(url, plain_http=plain_http, ca_file=ca_file, proxy=proxy)
    except UsageError as error:
        raise UsageError(str(error).replace("remote add NAME", f"remote add {name}")) from None
    return site.base


def _check(leaf: str, value: object, option: str | None = None) -> object:
    """Returns the value as the program uses it.

    Raises:
        UsageError: a setting of a remote cannot have this value; names the option.
    """
    key = next(key for key in REMOTE if key.name == leaf)
    try:
        return checked(key, value)
    except ValueError as error:
        named = "URL" if leaf == "url" else f"--{option or leaf.replace('_', '-')}"
        raise UsageError(f"{named} {error}") from None


def _price(input: float | None, output: float | None) -> dict[str, float | int] | None:
    if input is None and output is None:
        return None
    if input is None or output is None:
        raise UsageError("a price is one for --price-input and one for --price-output")
    for leaf, value in (("price.input", input), ("price.output", output)):
        _check(leaf, value, leaf.replace(".", "-"))
    return {"input": _short(input), "output": _short(output)}


def _short(value: float) -> float | int:
    """2 rather than 2.0, as people write it."""
    return int(value) if value.is_integer() else value


def _layers(data: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Mapping[str, Any]]]:
    profiles = data.get("profiles", {})
    return [((), data), *((("profiles", name), profiles[name]) for name in profiles)]
