"""What `sr-edge ask` costs before it decodes anything; see `program`."""

from sr_edge.bench.program import startup_rows as rows

__all__ = ["rows"]
