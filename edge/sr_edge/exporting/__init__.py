"""A conversation as a file that others can read: Markdown, JSON, JSON lines, HTML.

Each shows who wrote what. The texts come from people, models and servers: none of them can leave its place in
the file, whatever it says. Reading the history and choosing what is exported is not done here.
"""

from __future__ import annotations

from sr_edge.exporting.data import as_object, json_lines, json_text
from sr_edge.exporting.page import html
from sr_edge.exporting.prose import markdown
from sr_edge.exporting.saving import ENDINGS, Format, file_name, stem_of, write

__all__ = [
    "ENDINGS",
    "Format",
    "as_object",
    "file_name",
    "html",
    "json_lines",
    "json_text",
    "markdown",
    "stem_of",
    "write",
]
