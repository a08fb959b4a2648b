"""Reports of a study: a page, a text, JSON, and two studies side by side."""

from jaxlimit.reports.comparison import Comparison, compare
from jaxlimit.reports.contents import SCHEMA, SCHEMA_VERSION, content, read, read_schema
from jaxlimit.reports.files import read_mask, write, write_pruned
from jaxlimit.reports.pages import fragment, html, markdown

__all__ = [
    "SCHEMA",
    "SCHEMA_VERSION",
    "Comparison",
    "compare",
    "content",
    "fragment",
    "html",
    "markdown",
    "read",
    "read_mask",
    "read_schema",
    "write",
    "write_pruned",
]
