"""Writing a conversation: form, path, and the truth about where it went."""

from pathlib import Path

import pytest
from tests.tui.small import SIZES, shown, until
from textual.app import App
from textual.widgets import Input, OptionList

from sr_edge.errors import UsageError
from sr_edge.tui.screens.export import FORMATS, ExportScreen


class Host(App[None]):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.written: list[tuple[str, Path]] = []
        self.results: list[Path | None] = []
        self.failure: Exception | None = None

    def on_mount(self) -> None:
        self.push_screen(ExportScreen(self.write, "Sums: of?", folder=self.folder), self.results.append)

    def write(self, format: str, path: Path) -> Path:
        if self.failure is not None:
            raise self.failure
        self.written.append((format, path))
        return path.with_name(f"{path.stem}-2{path.suffix}")  # as if it had been there

    @property
    def line(self) -> Input:
        return self.screen.query_one(Input)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", range(len(FORMATS)))
async def test_each_form_has_its_ending_and_is_written(
    tmp_path: Path, size: tuple[int, int], number: int
) -> None:
    name, ending, _ = FORMATS[number]
    app = Host(tmp_path)
    async with app.run_test(size=size) as pilot:
        await pilot.press("up", *["down"] * number)
        await until(pilot, lambda: f"● {name}" in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.written != [])
        assert app.written == [(name, tmp_path / f"sums-of{ending}")]
        await until(pilot, lambda: "written to" in shown(app))
        assert f"sums-of-2{ending}" in "".join(
            shown(app).replace("│", "").split()
        )  # where it is, not where it was to be
        await pilot.press("enter")
        await until(pilot, lambda: app.results == [tmp_path / f"sums-of-2{ending}"])
        assert len(app.written) == 1


async def test_a_path_of_ones_own_keeps_its_name_when_the_form_changes(tmp_path: Path) -> None:
    app = Host(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("ctrl+u", *"~/mine.md", "down")
        await pilot.pause()
        assert app.line.value == "~/mine.html"
        await pilot.press("ctrl+u", *"notes", "up", "enter")
        await until(pilot, lambda: app.written == [("markdown", Path("notes"))])


async def test_a_folder_gets_the_proposed_name_and_nothing_means_the_proposal(tmp_path: Path) -> None:
    app = Host(tmp_path)
    (tmp_path / "sub").mkdir()
    async with app.run_test() as pilot:
        app.line.value = str(tmp_path / "sub")
        await pilot.press("enter")
        await until(pilot, lambda: app.written == [("markdown", tmp_path / "sub" / "sums-of.md")])


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (UsageError("there is nothing to export"), "there is nothing to export"),
        (PermissionError(13, "Permission denied"), "can't be written: Permission denied"),
    ],
)
async def test_what_fails_is_a_line_and_can_be_tried_again(
    tmp_path: Path, failure: Exception, said: str
) -> None:
    app = Host(tmp_path)
    app.failure = failure
    async with app.run_test() as pilot:
        await pilot.press("enter")
        await until(pilot, lambda: said in shown(app))
        app.failure = None
        await pilot.press("enter")
        await until(pilot, lambda: "written to" in shown(app))
        assert said not in shown(app)


async def test_escape_leaves(tmp_path: Path) -> None:
    app = Host(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("escape")
        await until(pilot, lambda: app.results == [None])
        assert app.written == []


async def test_a_click_chooses_the_form(tmp_path: Path) -> None:
    app = Host(tmp_path)
    async with app.run_test() as pilot:
        await pilot.pause()
        await pilot.click(OptionList, offset=(5, 3))
        await until(pilot, lambda: app.line.value.endswith("sums-of.jsonl"))
        assert app.focused is app.line
