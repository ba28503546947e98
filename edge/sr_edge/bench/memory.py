"""How much memory `sr-edge ask` takes at most; see `program`."""

from sr_edge.bench.program import memory_rows as rows

__all__ = ["rows"]
