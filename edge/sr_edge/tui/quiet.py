"""Screens and containers that do little anew when little can have changed."""

from __future__ import annotations

from collections.abc import Generator
from types import coroutine
from typing import Generic

from textual.containers import VerticalScroll
from textual.geometry import Region, Size
from textual.screen import Screen, ScreenResultType
from textual.strip import Strip
from textual.widget import Widget


class QuietScreen(Screen[ScreenResultType], Generic[ScreenResultType]):
    """When the terminal's window loses or gains focus, only the focused widget and those around it change."""

    _had_app_focus = True

    def update_node_styles(self, animate: bool = True) -> None:
        if self.app.app_focus == self._had_app_focus:
            super().update_node_styles(animate)
            return
        self._had_app_focus = self.app.app_focus
        nodes = (self.focused or self).ancestors_with_self
        self.app.stylesheet.update_nodes([node for node in nodes if node is not self.app], animate=animate)


@coroutine
def one_turn() -> Generator[None, None, None]:
    """Let whatever else waits on the event loop have its turn."""
    yield


class Growing(Widget):
    """Grows often: Textual's second layout, after each that changed a size, would find nothing to do."""

    def _size_updated(
        self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True
    ) -> bool:
        return super()._size_updated(size, virtual_size, container_size, layout=False)


class Backdrop(Growing):
    """Has nothing of its own to show but its background, without a border: all of its rows are the same."""

    def render_lines(self, crop: Region) -> list[Strip]:
        return super().render_lines(Region(crop.x, crop.y, crop.width, min(1, crop.height))) * crop.height


class QuietScroll(VerticalScroll, Backdrop):  # rules are inherited from the first
    """Focused or not, under the mouse or not: what it holds stays as it is. No rule may depend on that."""

    def update_node_styles(self, animate: bool = True) -> None:
        self.app.stylesheet.update_nodes([self], animate=animate)
