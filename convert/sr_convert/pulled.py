"""What the client calls where it has fetched a checkpoint; see `sr_edge.converting`."""

from __future__ import annotations

from sr_convert.convert import Request, convert
from sr_edge.converting import Conversion, Progress


def convert_pulled(conversion: Conversion, progress: Progress) -> None:
    """Raises: EdgeError: it cannot be converted; there is no file then."""
    convert(
        Request(
            checkpoint=conversion.checkpoint,
            out=conversion.out,
            type=conversion.type,
            source=conversion.source,
        ),
        progress,
    )
