import contextlib
import os
import shlex
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mlflow_project.tracking import console


def test_a_server_is_its_own_address():
    assert console.ui_command("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_in_an_active_environment_the_command_is_mlflow(monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    command = console.ui_command("sqlite:////a folder/mlflow.db")
    assert shlex.split(command) == [
        "mlflow", "ui", "--backend-store-uri", "sqlite:////a folder/mlflow.db",
    ]  # fmt: skip


def test_elsewhere_the_command_names_the_program_that_is_there(monkeypatch):
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    program, *rest = shlex.split(console.ui_command("sqlite:///mlflow.db"))
    assert rest == ["ui", "--backend-store-uri", "sqlite:///mlflow.db"]
    assert Path(program).resolve() == (Path(sys.executable).parent / "mlflow").resolve()


def test_without_a_terminal_there_is_no_bar(capfd):
    with console.progress("range test") as progress:
        progress(1, 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_on_a_terminal_there_is_one(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    main, side = os.openpty()
    with open(side, "w") as terminal:
        monkeypatch.setattr(console, "ERR", Console(file=terminal, width=80))
        with console.progress("range test") as progress:
            progress(7, 10)
    shown = b""
    with contextlib.suppress(OSError):  # raised at the end of what was written
        while part := os.read(main, 10_000):
            shown += part
    os.close(main)
    shown = shown.decode()
    assert "range test" in shown
    assert "70%" in shown
