"""Every setting with where it comes from; a change goes to the file, a bad value nowhere."""

import tomllib
from pathlib import Path

import pytest
from tests.tui.small import SIZES, shown, until
from textual import on
from textual.app import App
from textual.widgets import Input, OptionList

from sr_edge.config import Config, load_config
from sr_edge.config.schema import KEYS, SCHEMA
from sr_edge.tui.screens.settings import SettingsScreen, rows

TEXT = """\
# mine
default_remote = "lab"  # the dear one

[remotes.lab]
url = "https://api.example.com/v1"
api_key_cmd = "echo sk-secret"
"""


class Host(App[None]):
    def __init__(self, folder: Path, environ: dict[str, str] | None = None) -> None:
        super().__init__()
        self.path = folder / "config.toml"
        self.path.write_text(TEXT)
        self.environ = {"SR_EDGE_HOME": str(folder), **(environ or {})}
        self.changed: list[Config] = []

    def load(self) -> Config:
        return load_config(environ=self.environ)

    def on_mount(self) -> None:
        self.push_screen(SettingsScreen(self.load(), self.load))

    @on(SettingsScreen.Changed)
    def keep(self, message: SettingsScreen.Changed) -> None:
        self.changed.append(message.config)

    @property
    def listed(self) -> OptionList:
        return self.screen.query_one(OptionList)

    def go_to(self, name: str) -> None:
        self.listed.highlighted = self.listed.get_option_index(name)

    @property
    def data(self) -> dict[str, object]:
        return tomllib.loads(self.path.read_text())


def test_every_setting_is_a_row(tmp_path: Path) -> None:
    found = {row.name: row for row in rows(Host(tmp_path).load())}
    expected = [key.name for key in SCHEMA] + ["remotes.lab.url", "remotes.lab.api_key_cmd"]
    assert [*found] == expected + [key.name for key in KEYS]
    assert (found["default_remote"].value, found["default_remote"].origin) == ("lab", "config.toml:2")
    assert (found["ui.keymap.chat.send"].value, found["ui.keymap.chat.send"].origin) == ("enter", "default")
    assert all("secret" not in row.value for row in found.values())


@pytest.mark.parametrize("size", SIZES)
async def test_a_value_is_typed_and_written_and_told(tmp_path: Path, size: tuple[int, int]) -> None:
    app = Host(tmp_path)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        app.go_to("offload.max_spans")
        await pilot.press("enter", "7", "enter")
        await until(pilot, lambda: app.changed != [])
        assert app.changed[0].offload.max_spans == 7
        assert app.data["offload"] == {"max_spans": 7}
        assert app.path.read_text().startswith(TEXT)  # with its comments
        assert "offload.max_spans is 7" in shown(app)
        assert "config.toml:9" in shown(app)
        assert app.focused is app.listed
        assert app.listed.highlighted_option is not None
        assert app.listed.highlighted_option.id == "offload.max_spans"


@pytest.mark.parametrize("size", SIZES)
async def test_a_bad_value_is_a_line_and_the_old_one_stays(tmp_path: Path, size: tuple[int, int]) -> None:
    app = Host(tmp_path)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        app.go_to("budget.share")
        await pilot.press("enter", "2", "enter")
        await until(pilot, lambda: "budget.share must be a number from 0 to 1, not 2" in shown(app))
        assert app.path.read_text() == TEXT
        assert app.changed == []
        assert app.screen.query_one(Input).has_focus
        await pilot.press("escape")
        await pilot.pause()
        assert app.focused is app.listed
        assert "must be" not in shown(app)


async def test_space_takes_the_next_value_and_u_the_default(tmp_path: Path) -> None:
    app = Host(tmp_path)
    async with app.run_test() as pilot:
        await pilot.pause()
        app.go_to("ui.reasoning")
        for value in ("always", "never", "auto"):
            await pilot.press("space")
            await until(pilot, lambda value=value: app.data.get("ui") == {"reasoning": value})  # type: ignore[misc]
        app.go_to("ui.mouse")
        await pilot.press("space")
        await until(pilot, lambda: app.data["ui"] == {"reasoning": "auto", "mouse": False})
        for name in ("ui.mouse", "ui.reasoning"):
            app.go_to(name)
            await pilot.press("u")
            await until(pilot, lambda name=name: name.removeprefix("ui.") not in app.data.get("ui", {}))  # type: ignore[misc]
        assert app.changed[-1].ui.mouse
        assert app.changed[-1].origin("ui.reasoning") == "default"
        await pilot.press("u")
        await until(pilot, lambda: "ui.reasoning is not set in" in shown(app))


async def test_a_key_is_changed_and_a_clash_is_not(tmp_path: Path) -> None:
    folder = tmp_path / ("a folder with a long name " * 4).strip()  # what is wrong must be seen all the same
    folder.mkdir()
    app = Host(folder)
    async with app.run_test() as pilot:
        await pilot.pause()
        app.go_to("ui.keymap.nav.new")
        await pilot.press("enter", "ctrl+u", *"ctrl+t", "enter")
        await until(pilot, lambda: "view.reasoning" in shown(app).partition("nothing was changed")[2])
        assert app.path.read_text() == TEXT
        await pilot.press("ctrl+u", *"f5, f9", "enter")
        await until(pilot, lambda: app.changed != [])
        assert app.changed[0].ui.keymap == {"nav.new": "f5,f9"}


async def test_the_same_key_given_by_space_does_nothing_to_numbers(tmp_path: Path) -> None:
    app = Host(tmp_path)
    async with app.run_test() as pilot:
        await pilot.pause()
        app.go_to("sampling.seed")
        await pilot.press("space")
        await pilot.pause()
        assert app.path.read_text() == TEXT


async def test_what_the_environment_says_comes_first_and_that_is_said(tmp_path: Path) -> None:
    app = Host(tmp_path, {"SR_EDGE_POLICY": "local"})
    async with app.run_test() as pilot:
        await pilot.pause()
        app.go_to("offload.policy")
        await pilot.press("space")
        await until(pilot, lambda: "written; but env SR_EDGE_POLICY comes first" in shown(app))
        assert app.data["offload"] == {"policy": "remote"}
        assert app.changed[0].offload.policy == "local"


async def test_a_remote_is_shown_and_changed_elsewhere(tmp_path: Path) -> None:
    app = Host(tmp_path)
    async with app.run_test() as pilot:
        await pilot.pause()
        app.go_to("remotes.lab.url")
        for key in ("enter", "space", "u", "delete"):
            await pilot.press(key)
            await until(pilot, lambda: "changed by: sr-edge config set remotes.lab.url VALUE" in shown(app))
        assert app.path.read_text() == TEXT


async def test_a_path_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = Host(tmp_path)
    async with app.run_test() as pilot:
        await pilot.pause()
        app.go_to("model")
        await pilot.press("enter", *"x.gguf", "enter")
        await until(pilot, lambda: app.data.get("model") == str(tmp_path / "x.gguf"))


async def test_a_file_that_became_broken_is_a_line(tmp_path: Path) -> None:
    app = Host(tmp_path)
    async with app.run_test() as pilot:
        await pilot.pause()
        app.path.write_text("x = [\n")
        app.go_to("offline")
        await pilot.press("space")
        await until(pilot, lambda: "not TOML" in shown(app))
        assert app.path.read_text() == "x = [\n"
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, SettingsScreen))


async def test_keys_and_mouse_move_and_the_help_says_what_it_is(tmp_path: Path) -> None:
    app = Host(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("j", "j", "k", "down", "up")
        await until(
            pilot, lambda: "model: the small model, a GGUF; none is the built-in one · default" in shown(app)
        )
        await pilot.click(OptionList, offset=(5, 6))
        await until(pilot, lambda: app.screen.query_one(Input).has_focus)
        assert "offload.hedge: " in shown(app)
