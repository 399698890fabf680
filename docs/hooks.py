"""Show the full documentation of each module in the built reference, in place of its table."""

import re
from typing import Any

MODULE = re.compile(r"<!-- generated: (?!commands\b)(\S+) -->(.*?)<!-- /generated -->", re.DOTALL)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the tables of public names, which are for reading without a build."""
    return MODULE.sub(_documented, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Remove Sphinx roles such as ``:class:``, which Markdown does not know."""
    return ROLE.sub("", html)


def _documented(part: re.Match[str]) -> str:
    """Keep the heading and the imports of a module; mkdocstrings renders the docstrings."""
    module, text = part.groups()
    kept = [line for line in text.splitlines() if line.startswith(("### ", "`from "))]
    return "\n\n".join([*kept, f"::: {module}"])
