"""Carries out the commands that are typed with a slash; `slash` says what they mean."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from sr_edge.budget import dollars
from sr_edge.config import load_config
from sr_edge.errors import EdgeError, UsageError
from sr_edge.report import size
from sr_edge.terminal import safe_line
from sr_edge.tui.slash import Typed

if TYPE_CHECKING:
    from sr_edge.tui.screens.chat import ChatScreen

_WORDS = {"on": True, "off": False}


class Commanding:
    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen

    async def run(self, typed: Typed) -> None:
        """Raises: EdgeError: what was typed can't be done; says why."""
        screen, deeds, argument = self._screen, self._screen.deeds, typed.argument
        match typed.name:
            case "new":
                await screen.action_new()
            case "model":
                self._model(argument)
            case "remote":
                self._remote(argument)
            case "policy":
                self._policy(argument)
            case "budget":
                self._budget(argument)
            case "effort":
                self._effort(argument)
            case "think":
                self._think(argument)
            case "regen":
                await deeds.regenerate()
            case "continue":
                await deeds.go_on()
            case "edit":
                deeds.edit()
            case "fork":
                await deeds.fork()
            case "copy":
                self._copy(argument)
            case "export":
                screen.action_export(_format(argument))
            case "stats":
                self._stats()
            case "offline":
                self._offline(argument)
            case "rename":
                screen.rename(argument)
            case "help":
                screen.app.action_help()  # type: ignore[attr-defined]  # EdgeApp's
            case "quit":
                screen.app.exit(return_code=0)

    def _model(self, name: str) -> None:
        ready = self._screen.state.ready
        if not name:
            self._screen.tell(f"the small model is {ready.model}" if ready else "no model is loaded yet")
            return
        had = self._screen.choices
        self._screen.choices = replace(had, lora=None)  # it was for the other model
        try:
            self._reopen("model", name)
        except EdgeError:
            self._screen.choices = had
            raise

    def _remote(self, name: str) -> None:
        screen = self._screen
        if not name:
            ready = screen.state.ready
            known = ", ".join(sorted(screen.config.remotes)) or "none yet: `sr-edge remote add NAME URL`"
            big = (ready.big if ready else None) or "none"
            screen.tell(f"the large model is {big}; remotes: {known}")
            return
        screen.config.remote(name)  # says which there are
        if screen.choices.big is not None:
            screen.choices = replace(screen.choices, big=None, big_model=None)
        self._reopen("default_remote", name)

    def _policy(self, word: str) -> None:
        if not word:
            self._screen.tell(f"the policy is {self._screen.state.dial}; shift+tab changes it")
        elif word in ("auto", "ask", "local"):
            self._screen.turn_dial(word)  # type: ignore[arg-type]  # just checked
        else:
            raise UsageError(f"/policy {word}: auto, ask or local")

    def _budget(self, amount: str) -> None:
        screen = self._screen
        if not amount:
            limit = screen.config.budget.usd_per_answer
            screen.tell(
                f"an answer may cost {dollars(limit)}" if limit is not None else "no limit in dollars is set"
            )
            return
        try:
            usd = float(amount.removeprefix("$"))
        except ValueError:
            raise UsageError(f"/budget {amount}: an amount of dollars, such as 0.05") from None
        self._reopen("budget.usd_per_answer", usd)

    def _effort(self, amount: str) -> None:
        screen = self._screen
        steps = {"+": screen.bias + 1, "-": screen.bias - 1}
        if not amount:
            screen.tell(f"effort {screen.bias:+g}: above 0 the large model is asked more readily")
            return
        try:
            bias = steps[amount] if amount in steps else float(amount)
            if not math.isfinite(bias):
                raise ValueError(amount)
            screen.set_bias(bias)
        except ValueError:
            raise UsageError(f"/effort {amount}: +, - or a number from -10 to 10") from None

    def _think(self, word: str) -> None:
        if not word:
            self._screen.action_reasoning()
        elif word in ("auto", "always", "never"):
            self._screen.set_folding(word)  # type: ignore[arg-type]  # just checked
        else:
            raise UsageError(f"/think {word}: auto, always or never")

    def _copy(self, what: str) -> None:
        match what or "answer":
            case "answer":
                self._screen.deeds.copy_answer()
            case "code":
                self._screen.deeds.copy_code()
            case "all":
                self._screen.deeds.copy_all()
            case other:
                raise UsageError(f"/copy {other}: answer, code or all")

    def _stats(self) -> None:
        transcripts = [turn.transcript for turn in self._screen.dialogue.turns if turn.transcript]
        local = sum(one.local_tokens for one in transcripts)
        remote = sum(one.remote_tokens for one in transcripts)
        spans = [span for one in transcripts for span in one.spans]
        costs = [span.cost for span in spans if span.cost is not None]
        share = remote / (local + remote) if local + remote else 0.0
        parts = [
            f"local {local:,} tokens",
            f"remote {remote:,} in {len(spans)} span{'' if len(spans) == 1 else 's'} ({share:.1%})".replace(
                "%", " %"
            ),
            f"sent {size(sum(span.sent_bytes for span in spans))}",
            dollars(sum(costs)) if costs else "",
            f"{sum(one.seconds for one in transcripts):.0f} s",
        ]
        self._screen.tell("this conversation: " + " · ".join(part for part in parts if part))

    def _offline(self, word: str) -> None:
        if word and word not in _WORDS:
            raise UsageError(f"/offline {word}: on or off")
        self._screen.set_offline(_WORDS.get(word, not self._screen.state.is_offline))

    def _reopen(self, name: str, value: object) -> None:
        """Load the models anew, with another setting.

        Raises:
            UsageError: it cannot have this value, or an answer is being written.
        """
        screen = self._screen
        if screen.dialogue.is_answering:
            raise UsageError("an answer is being written: stop it first (esc)")
        flags = {**screen.choices.flags, name: value}
        path = screen.choices.config
        screen.config = load_config(
            environ=screen.environ,
            path=None if path is None else screen.config.path,
            profile=screen.choices.profile,
            flags=flags,
        )
        screen.choices = replace(screen.choices, flags=flags)
        screen.dialogue.engine.reopen(screen.choices)


def _format(word: str) -> str:
    """Raises: UsageError: there is none like it."""
    word = {"md": "markdown", "": "markdown", "txt": "markdown"}.get(word, word)
    if word not in ("markdown", "html", "json", "jsonl", "svg"):
        raise UsageError(f"/export {safe_line(word)}: markdown, html, json, jsonl or svg")
    return word
