"""Names from files of strangers, as text for a terminal and for a Markdown page."""

from __future__ import annotations

import re

__all__ = ["markdown", "printable"]


def printable(name: str) -> str:
    """Replace each character that a terminal does not show, or takes as a command, by "?"."""
    return "".join(c if c.isprintable() else "?" for c in name)


def markdown(name: object) -> str:
    """Format a name as text of a Markdown page: no HTML, link, code, cell or line of its own.

    Brackets and colons are escaped only where they could make a link.
    """
    return re.sub(
        r"([\\`*#!|<>&~@]|\](?=[(\[:])|:(?=\S)|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9]))",
        lambda match: f"&#{ord(match[1])};",
        printable(" ".join(str(name).split())),
    )
