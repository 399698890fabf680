"""Where the jobs of a command run, and how many at a time.

Importing this imports neither torch nor joblib.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TypeVar

from lrrt_stage.settings import Options, require, setting

__all__ = ["PoolOptions"]

Pool = TypeVar("Pool", bound="PoolOptions")


@dataclass(frozen=True, kw_only=True)  # the options of a subclass come first
class PoolOptions(Options):
    """Where tests run that do not depend on each other. Their results do not depend on it."""

    workers: int | None = setting(
        None,
        "Tests that run at a time; none: one per core, or per GPU, of this machine or of the "
        "cluster. Results do not depend on it.",
        minimum=1,
    )
    backend: str | None = setting(
        None,
        "What runs tests side by side: ray (the cluster of RAY_ADDRESS, or one on this machine) or "
        "ray://HOST:PORT; none: processes on this machine.",
    )
    gpus_per_test: float | None = setting(
        None,
        "Part of a GPU that a test takes: with 0.25, each GPU has four tests; none: a GPU.",
        above=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        address = re.compile(r"ray://[^/\s]+:\d{1,5}")
        require(
            self.backend in (None, "ray") or address.fullmatch(str(self.backend)) is not None,
            f"backend={self.backend!r} is not known: give ray, ray://HOST:PORT, or none",
        )
        require(
            self.backend is None or find_spec("ray") is not None,
            f"backend={self.backend!r} is not installed: pip install 'lrrt-stage[ray]'",
        )

    def without_place(self: Pool) -> Pool:
        """Return the options that results depend on."""
        return replace(self, workers=None, backend=None, gpus_per_test=None)
