"""From a curve to a suggested range, and how certain that suggestion is.

Importing this room registers the built-in rules, the default one first.
"""

from lrrt_stage.rules import robust  # noqa: I001 - the order is that of every list of rules
from lrrt_stage.rules import published

__all__ = ["published", "robust"]
