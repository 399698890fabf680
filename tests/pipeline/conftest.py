from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from lrrt_stage import LRRTError


@pytest.fixture
def complains() -> Callable[..., AbstractContextManager[None]]:
    """A block that must raise an LRRTError of one line in which all of the words stand."""

    @contextmanager
    def check(*words: str) -> Iterator[None]:
        with pytest.raises(LRRTError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        assert [word for word in words if word not in message] == [], message

    return check


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that writes a module which can then be imported by name."""
    written = []

    def write(name: str, source: str) -> None:
        folder = tmp_path / "modules"
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        monkeypatch.syspath_prepend(folder)
        written.append(name.partition("/")[0])

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def dropout_model(write_module: Callable[..., None]) -> str:
    """The name of a factory whose model draws random numbers in every training step."""
    write_module(
        "dropout_for_tests",
        """
from torch import nn

class Louder(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return x * self.gain

def make(rate=0.5, gain=1):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(rate),
        nn.Flatten(), nn.Linear(8 * 6 * 6, 10), Louder(gain),
    )
""",
    )
    return "dropout_for_tests:make"
