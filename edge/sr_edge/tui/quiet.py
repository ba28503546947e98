"""Screens and containers that style few widgets anew when little can have changed."""

from __future__ import annotations

from typing import Generic

from textual.containers import VerticalScroll
from textual.screen import Screen, ScreenResultType


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


class QuietScroll(VerticalScroll):
    """Focused or not, under the mouse or not: what it holds stays as it is. No rule may depend on that."""

    def update_node_styles(self, animate: bool = True) -> None:
        self.app.stylesheet.update_nodes([self], animate=animate)
