"""The keymap as Textual wants it."""

from __future__ import annotations

from textual.binding import Binding, BindingType

from sr_edge.keymap import KEYMAP, Where


def bindings(where: Where, *, target: str = "") -> list[BindingType]:
    """Those heard in this place, for a class's BINDINGS. `App.set_keymap(config.ui.keymap)` changes them.

    Args:
        target: who has the actions if not the class itself, such as `screen`.
    """
    prefix = f"{target}." if target else ""
    return [
        Binding(
            key.keys,
            prefix + key.action,
            key.description,
            show=key.show,
            priority=key.is_first,
            id=key.id,
        )
        for key in KEYMAP
        if key.where == where
    ]
