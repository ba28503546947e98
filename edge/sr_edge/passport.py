"""Where the built-in pair of models lies, and what a model's passport says about it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_edge.errors import ModelError

_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE / "models" / "demo", _HERE.parents[1] / "models" / "demo")
"""In an installed wheel, and in a checkout."""


@dataclass(frozen=True, slots=True)
class Pair:
    small: Path
    big: Path


def demo_paths() -> Pair:
    """The built-in pair.

    Raises:
        ModelError: it is not here; only an incomplete installation lacks it.
    """
    for folder in _FOLDERS:
        pair = Pair(folder / "small.gguf", folder / "big.gguf")
        if pair.small.is_file() and pair.big.is_file():
            return pair
    raise ModelError(
        f"the built-in models are missing (looked in {' and '.join(map(str, _FOLDERS))}): "
        "install sr-edge again, or name a model with -m"
    )


def read_passport(model: Path) -> Mapping[str, Any]:
    """The passport that lies beside a model file: the same name, ending in .toml.

    Raises:
        ModelError: there is none, or it is not TOML.
    """
    path = model.with_suffix(".toml")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{model} has no passport: {path} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from None
