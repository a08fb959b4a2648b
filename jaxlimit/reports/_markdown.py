"""Text inside of Markdown: names that came from elsewhere stand as they are."""

import re
from typing import Any

# What ends a line, which would end a table's row or a list's item, and other control characters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")
_SPECIAL = re.compile(
    r"""[`*|~$]
    | \\(?=[!-/:-@\[-`{-~]|\Z)        # a backslash, where it would escape
    | <(?=[A-Za-z/!?])                # a tag
    | &(?=\#?\w+;)                    # an entity
    | \](?=[(\[:])                    # a link
    | (?<![^\W_])_+ | _+(?![^\W_])    # emphasis, which inside of a word is none
    """,
    re.VERBOSE,
)
# What begins a block; a hyphen alone stays, since in a table's cell it is one.
_FIRST = re.compile(r"(\#|>|\+(?=\s|\Z)|-(?=[\s-])|\d+[.)](?=\s|\Z)|\[[ xX]\])")


def escape(text: Any) -> str:
    r"""Return Markdown, of one line, that shows the text as it is.

    >>> print(escape("conv_1 | *<b>"))
    conv_1 \| \*\<b>
    """
    line = _CONTROL.sub(" ", str(text)).lstrip()
    line = _SPECIAL.sub(lambda found: "".join(f"\\{mark}" for mark in found[0]), line)
    first = _FIRST.match(line)
    return line if first is None else f"{first[0][:-1]}\\{line[first.end() - 1 :]}"


def code(text: Any) -> str:
    """Return Markdown that shows a line of code; no mark in it is special but the backtick.

    >>> print(code("a`b"))
    ``a`b``
    """
    line = _CONTROL.sub(" ", str(text))
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"
