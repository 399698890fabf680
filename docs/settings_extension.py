"""Griffe: an option is documented by what its ``setting`` says."""

import ast
from typing import Any

from griffe import Attribute, Docstring, ExprCall, Extension


class Settings(Extension):
    """Give a field that is declared by ``setting`` its help as docstring, and its default."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Read one field."""
        call = attr.value
        if isinstance(call, ExprCall) and str(call.function) == "setting":
            attr.value, text = call.arguments[:2]
            attr.docstring = Docstring(ast.literal_eval(str(text)), lineno=attr.lineno, parent=attr)
