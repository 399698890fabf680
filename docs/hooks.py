"""Add what only the built site has: the full documentation of every module in the reference."""

import re
from typing import Any

MODULE = re.compile(r"<!-- generated: (?!commands\b)(\S+) -->.*?<!-- /generated -->", re.DOTALL)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Follow each module's table with its docstrings, which mkdocstrings renders."""
    return MODULE.sub(r"\g<0>\n\n::: \1\n", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Remove Sphinx roles such as ``:class:``, which Markdown does not know."""
    return ROLE.sub("", html)
