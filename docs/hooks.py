"""What MkDocs makes of the code: the tables of the commands' options.

A page says ``<!-- commands -->`` where they belong.
"""

import re
from typing import Any

from rich_click import Command

from mlflow_project.cli.entry import commands

MARK = "<!-- commands -->"
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands' options where the page asks for them."""
    return markdown.replace(MARK, "\n".join(map(_section, commands.commands.values())))


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the roles that docstrings give to names, which Markdown does not know."""
    return ROLE.sub("", html)


def _section(command: Command) -> str:
    """Return a command as Markdown: what it does, and a table of options for each of its panels."""
    lines = [f"## {command.name}", "", str(command.help), ""]
    for argument in command.params:
        if argument.param_type_name == "argument":
            lines += [f"`{argument.metavar}` is given without a name.", ""]
    options = {name: each for each in command.params for name in each.opts}
    for panel in command.panels:
        lines += [f"### {panel.name} {{ #{command.name}-{_slug(panel.name)} }}", ""]
        lines += ["| option | type | default | |", "|---|---|---|---|"]
        for option in map(options.__getitem__, panel.options):
            text, _, default = (option.help or "").partition(" [default: ")
            shown = default.removesuffix("]") or option.show_default or "none"
            cells = (f"`{option.opts[0]}`", option.type.name, f"`{shown}`", text)
            lines.append("| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")
