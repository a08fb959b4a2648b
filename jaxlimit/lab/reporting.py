"""What experiments and benchmarks share, by the names of version 0.1."""

from jaxlimit.lab.console import Stages, console
from jaxlimit.lab.content import OtherRunError, build, plain, read_json, write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.jobs import sole_writer
from jaxlimit.lab.markdown import comparison_table, markdown_table, replace_block
from jaxlimit.lab.timing import kernel_times, time_in_turns

__all__ = [
    "OtherRunError",
    "Stages",
    "build",
    "comparison_table",
    "console",
    "environment",
    "kernel_times",
    "markdown_table",
    "plain",
    "read_json",
    "replace_block",
    "sole_writer",
    "time_in_turns",
    "write_json",
]
