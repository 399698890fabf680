"""Models and datasets of the user's own, named ``package.module:factory``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from lrrt_stage.errors import LRRTError, first_line

__all__ = ["call_factory", "is_factory"]


def is_factory(name: str) -> bool:
    """Tell whether ``name`` has the form ``package.module:factory``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])


def call_factory(kind: str, name: str, arguments: Mapping[str, Any]) -> Any:
    """Return what the factory makes of ``arguments``; the current folder is on the path.

    Raises
    ------
    LRRTError
        If the module or the factory is not there, or the factory raises; the cause is chained.
    """
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        # A console script, unlike ``python -m``, does not look in the current folder.
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # an import runs the module, which may raise anything
        raise LRRTError(
            f"{kind} {name!r} cannot be imported ({type(error).__name__}: {first_line(error)}): "
            f"run from the folder that holds {module_name.split('.')[0]!r}, or put it on PYTHONPATH"
        ) from error
    try:
        return factory(**arguments)
    except Exception as error:
        raise LRRTError(
            f"{kind} {name!r} raised {type(error).__name__}: {first_line(error)} "
            f"(called with {dict(arguments)}): check {kind}_args"
        ) from error
