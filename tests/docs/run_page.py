"""Carries out one page of the documentation in the current folder: every block, in order.

    python tests/docs/run_page.py PAGE

- `python`: in one namespace for the whole page; with a title, the content of the file of that name.
- `console`: by bash, line by line, as on a reader's terminal: folder and variables are kept. A line
  that fails ends the page.
- `text`: lines that the block before it prints, among others.
- `json`, `yaml`, `toml`: must be valid.

A command that would take long is shortened by :data:`SHORTENED`, one that would install something
or run the tests is left out by :data:`LEFT_OUT`, and a server gets a free port, is asked once over
loopback, and stays until the page ends. `make run` is what make would run once all is installed.
Everything else runs as it is written.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A command's beginning -> what is appended to it. The first that matches is taken.
SHORTENED = {
    # As few tests as a kind can do with; `validation` has one, and no number to choose.
    r"lrrt-stage study --kind validation\b": "--iterations 60 --model mlp",
    r"lrrt-stage study\b": "--tests 2 --iterations 60 --model mlp --epochs 1",
    r"lrrt-stage lrrt .*--tests": "--tests 2 --iterations 60 --model mlp",
    r"mlflow run \. -e study\b": "-P tests=2 -P iterations=60 -P model=mlp",
    r"mlflow run \. -e main\b.* -P tests=": "-P tests=2 -P model=mlp -P trials=1 -P epochs=1",
    # One epoch in place of 20, one trial in place of eight.
    r"(PATH=\S+ )?mlflow run \. -e main\b": "-P trials=1 -P epochs=1",
    r"mlflow run \. -e train\b": "-P epochs=1",
    r"lrrt-stage main\b": "--trials 1 --epochs 1",
    r"lrrt-stage train\b": "--epochs 1",
}
# A command's beginning -> why it is not run.
LEFT_OUT = {
    r"(python3? -m )?pip install\b": "the environment of the tests is installed already",
    r"python3 -m venv\b": "the environment of the tests is installed already",
    r"\. \.venv/bin/activate": "the environment of the tests is active already",
    r"make test\b": "it runs this very test",
    r"make docs\b": "test_build.py builds the pages",
    r"make (suggestions|bench)\b": "it takes an hour; tests/benchmarks runs its parts",
}
# A server's beginning -> its port where none is given, and what is asked.
SERVERS = {
    r"mlflow (ui|server)\b": (5000, "/health"),
    r"optuna-dashboard\b": (8080, "/api/studies"),
}
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
CHECKS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "yaml": yaml.safe_load,
    "toml": tomllib.loads,
}
SERVER_SECONDS = 90


@dataclass
class Page:
    """A page that is being carried out."""

    path: Path
    namespace: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: str = ""
    servers: list[subprocess.Popen] = field(default_factory=list)
    ports: dict[str, str] = field(default_factory=dict)

    def carry_out(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        try:
            for block in BLOCK.finditer(text):
                language, info, content = block.groups()
                line = text.count("\n", 0, block.start(3))
                print(f"--- {self.path.name}:{line} {language}", flush=True)
                self.block(language, TITLE.search(info), content, line)
        finally:
            for server in self.servers:
                os.killpg(server.pid, 15)
                server.wait(30)

    def block(self, language: str, title: re.Match | None, content: str, line: int) -> None:
        if language == "python" and title:
            Path(title[1]).write_text(content, encoding="utf-8")
        elif language == "python":
            # With the lines before it, so that a traceback names the page's own line.
            code = compile("\n" * line + content, str(self.path), "exec")
            with redirect_stdout(StringIO()) as printed:
                exec(code, self.namespace)
            self.printed = printed.getvalue()
            print(self.printed, flush=True)
        elif language == "console":
            self.printed = ""
            for command in commands_of(content):
                self.command(command)
        elif language == "text":
            lines = content.splitlines()
            missing = [each for each in lines if each.strip() not in self.printed]
            assert not missing, f"not printed: {missing}"
        else:
            assert language in CHECKS, f"{language!r} is no language that is checked"
            CHECKS[language](content)

    def command(self, command: str) -> None:
        for pattern, why in LEFT_OUT.items():
            if re.match(pattern, command):
                print(f"# {command}: {why}", flush=True)
                return
        for old, new in self.ports.items():
            command = command.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
        for pattern, (port, path) in SERVERS.items():
            if re.match(pattern, command):
                self.serve(command, port, path)
                return
        if command.partition("#")[0].strip() == "make run":
            command = run("make --dry-run --old-file=.venv/installed run").strip()
        self.printed += run(shortened(command))

    def serve(self, command: str, default: int, path: str) -> None:
        """Start a server on a free port, and ask it once."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        given = re.search(r"--port[ =](\d+)", command)
        self.ports[given[1] if given else str(default)] = port
        command = re.sub(r" --port[ =]\d+", "", command) + f" --host 127.0.0.1 --port {port}"
        print(f"+ {command} &", flush=True)
        server = subprocess.Popen(shlex.split(command), start_new_session=True)
        self.servers.append(server)
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    print(answer.read().decode(), flush=True)
                    return
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not answer"
                time.sleep(0.3)


def commands_of(content: str) -> list[str]:
    """Return a block's commands, with continued lines joined and without comments."""
    lines = content.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def shortened(command: str) -> str:
    """Return a command with the options that make it short, in front of what follows it."""
    for pattern, options in SHORTENED.items():
        if re.match(pattern, command):
            call, *after = re.split(r"(?= (?:\|\||&&|\||;|#) )", command, maxsplit=1)
            if call.startswith("mlflow"):  # which refuses a parameter that is given twice
                for name in re.findall(r"-P (\w+)=", options):
                    call = re.sub(rf" -P {name}=\S+", "", call)
            return " ".join([call.rstrip(), options, *(each.strip() for each in after)])
    return command


def run(command: str) -> str:
    """Run a line by bash, with what it changes in folder and variables kept; return its output."""
    print(f"+ {command}", flush=True)
    state = Path(".reader")
    script = (
        f"{command}\ncode=$?\n{{ pwd; env -0; }} > {shlex.quote(str(state.absolute()))}\nexit $code"
    )
    done = subprocess.run(
        ["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout, flush=True)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}"
    folder, _, variables = state.read_text(encoding="utf-8").partition("\n")
    state.unlink()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(each.split("=", 1) for each in variables.split("\0") if "=" in each)
    return done.stdout


if __name__ == "__main__":
    sys.path.insert(0, "")
    try:
        Page(Path(sys.argv[1])).carry_out()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        sys.exit(1)
