"""What `sr-edge quantize` does besides quantising: which file it writes, and what it has to say of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sr_convert.writing import check_out
from sr_edge.quantizer import TYPES, Progress, Quantized, quantize

_NAMED_TYPE = re.compile(rf"[-._](?:{'|'.join(TYPES)})$", re.IGNORECASE)
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Done:
    quantized: Quantized
    notices: tuple[str, ...]


def default_target(source: Path, type: str) -> Path:
    """`model-F16.gguf` becomes `model-Q4_K_M.gguf`, in the current folder."""
    return Path(f"{_NAMED_TYPE.sub('', source.stem)}-{type.upper()}.gguf")


def quantize_file(
    source: Path,
    target: Path,
    type: str,
    *,
    imatrix: Path | None = None,
    threads: int | None = None,
    requantize: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Done:
    """As `quantizer.quantize`; a file that is there is replaced with `force` only.

    Raises:
        EdgeError
    """
    check_out(target, force=force)
    quantized = quantize(
        source,
        target,
        type.lower(),
        imatrix=imatrix,
        threads=threads,
        requantize=requantize,
        progress=progress,
    )
    return Done(quantized, notices_of(quantized))


def notices_of(quantized: Quantized) -> tuple[str, ...]:
    """What the user should know of the result, a line each."""
    notices: list[str] = []
    for wanted, got in dict.fromkeys((one.wanted, one.got) for one in quantized.fallbacks):
        names = [one.tensor for one in quantized.fallbacks if (one.wanted, one.got) == (wanted, got)]
        notices.append(
            f"{_counted(names)} {'has' if len(names) == 1 else 'have'} a width that {wanted} cannot divide: "
            f"{got} instead"
        )
    if quantized.without_importance:
        notices.append(f"the importance matrix says nothing of {_counted(quantized.without_importance)}")
    return tuple(notices)


def _counted(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
