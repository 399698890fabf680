"""Griffe extension that documents options from their ``setting(...)`` declarations."""

import ast
from typing import Any

from griffe import Attribute, Docstring, ExprCall, Extension


class Settings(Extension):
    """Use the first two arguments of ``setting`` as the default and the docstring of a field."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Update a field that is declared with ``setting``."""
        call = attr.value
        if isinstance(call, ExprCall) and str(call.function) == "setting":
            attr.value, text = call.arguments[:2]
            attr.docstring = Docstring(ast.literal_eval(str(text)), lineno=attr.lineno, parent=attr)
