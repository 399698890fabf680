"""A reader who carries out a page of the documentation: every block, in order.

- `python`: in one namespace for the whole page; with a title, the content of the file of that name.
- `console`: by bash, line by line, as on a terminal: folder and variables are kept. A line that
  fails ends the page.
- `text`: lines that the block before it prints, among others.
- `json`, `yaml`, `toml`: must be valid.

A command that would take long is shortened, and one that would install something or run the tests
is left out: `shortening.py` has the tables. A server gets a free port, is asked once over loopback,
and stays until the page ends. `make run` is what make would run once all is installed. Everything
else runs as it is written.

To import the project takes longer than most commands. So a page is a process that is forked from
one which has imported it, and so are its `lrrt-stage` commands and its Python interpreter.
"""

import json
import marshal
import multiprocessing
import os
import re
import shlex
import signal
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
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType

import yaml
from shortening import LEFT_OUT, OPERATOR, commands_of, shortened

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A server's beginning -> its port where none is given, and what is asked.
SERVERS = {
    r"mlflow (ui|server)\b": (5000, "/health"),
    r"optuna-dashboard\b": (8080, "/api/studies"),
}
SECONDS, SERVER_SECONDS, END_SECONDS = 600, 90, 30
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')


def excerpt(content: str) -> None:
    """Check that a block, whose lines may stand further left, is in a file of the examples."""
    files = (Path(__file__).parents[2] / "examples").rglob("*.py")
    sources = [path.read_text(encoding="utf-8") for path in files]
    assert any(squeezed(content) in squeezed(each) for each in sources), "not in examples/"


def squeezed(text: str) -> str:
    return "\n".join(map(str.strip, text.strip().splitlines()))


CHECKS: dict[str, Callable[[str], object]] = {
    "py": excerpt,
    "json": json.loads,
    "yaml": yaml.safe_load,
    "toml": tomllib.loads,
}
IMPORTED = [
    "mlflow_project.cli.entry",
    "torch._dynamo",
    "torch.export",
    "sklearn.datasets",
    "readers",
]


def forked(method: str, function: Callable[..., None], *arguments: object, output: Path) -> int:
    """Call ``function`` in a process of its own and return its exit code.

    The process is forked from this one, or with the method ``forkserver`` from one that has nothing
    but the imports. What it prints goes to ``output``.
    """
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_call, args=(function, arguments, str(output)))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        print(f"ended after {SECONDS} s")
        process.terminate()
        process.join(2 * END_SECONDS)
        process.kill()
        process.join()
    return process.exitcode


def _call(function: Callable[..., None], arguments: tuple, output: str) -> None:
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*arguments)


def make_database(folder: Path) -> None:
    """Make `mlflow.db`, without a run."""
    import mlflow

    os.chdir(folder)
    mlflow.search_experiments()


def carry_out(page: Path, folder: Path, variables: dict[str, str]) -> None:
    """Carry out ``page`` in ``folder``; exit with 1 at the first block that does not run."""
    os.chdir(folder)
    # So that servers are ended where the page takes too long.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    reader = Reader(page, variables)
    try:
        reader.carry_out()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        sys.exit(1)
    finally:
        reader.interpreter.end()
        for server in reader.servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(END_SECONDS)


def lrrt_stage(arguments: list[str], folder: str, variables: dict[str, str]) -> None:
    """Be the command `lrrt-stage`."""
    from mlflow_project.cli import entry as cli

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    cli.main(arguments)


class Interpreter:
    """A Python interpreter: code is run in one namespace, in a process of its own.

    So nothing that the code does (an open database, for one) is in the processes of commands.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=self._serve, args=(theirs,))
        self.process.start()

    def __call__(self, code: CodeType, folder: str, variables: dict[str, str]) -> str:
        """Return what the code prints; raise AssertionError with its traceback if it raises."""
        self.connection.send((marshal.dumps(code), folder, variables))
        printed, error = self.connection.recv()
        assert not error, printed + error
        return printed

    def end(self) -> None:
        self.process.kill()
        self.process.join()

    def _serve(self, connection: Connection) -> None:
        sys.path.insert(0, "")
        namespace: dict[str, object] = {"__name__": "__main__"}
        while True:
            code, folder, variables = connection.recv()
            os.chdir(folder)
            os.environ.update(variables)
            error = ""
            with redirect_stdout(StringIO()) as printed:
                try:
                    exec(marshal.loads(code), namespace)
                except Exception:
                    error = traceback.format_exc()
            connection.send((printed.getvalue(), error))


@dataclass
class Reader:
    """A page that is being carried out."""

    page: Path
    variables: dict[str, str]
    interpreter: Interpreter = field(default_factory=Interpreter)
    printed: str = ""
    servers: list[subprocess.Popen] = field(default_factory=list)
    ports: dict[str, str] = field(default_factory=dict)

    def carry_out(self) -> None:
        text = self.page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            language, info, content = block.groups()
            line = text.count("\n", 0, block.start(3))
            began = time.monotonic()
            print(f"--- {self.page.name}, line {line}: {language}")
            if language == "console":
                self.printed = ""
                for command in commands_of(content):
                    self.type(command)
            elif language == "python" and (title := TITLE.search(info)):
                Path(title[1]).write_text(content, encoding="utf-8")
            elif language == "python":
                # With the lines before it, so that a traceback names the page's own line.
                code = compile("\n" * line + content, str(self.page), "exec")
                self.printed = self.interpreter(code, os.getcwd(), self.variables)
                print(self.printed, end="")
            elif language == "text":
                lines = map(str.strip, content.splitlines())
                missing = [each for each in lines if each not in self.printed]
                assert not missing, f"not printed: {missing}"
            else:
                assert language in CHECKS, f"{language!r} is no language that is checked"
                CHECKS[language](content)
            print(f"({time.monotonic() - began:.1f} s)", flush=True)

    def type(self, command: str) -> None:
        for pattern, reason in LEFT_OUT.items():
            if re.match(pattern, command):
                print(f"# {command}: {reason}")
                return
        if re.match(r"make run\b", command):
            # Also inside another make, which would name the folders.
            recipe = "make --no-print-directory --dry-run --old-file=.venv/installed run"
            command = self.run(recipe).strip()
        for old, new in self.ports.items():
            command = command.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
        command = shortened(command)
        for pattern, (port, path) in SERVERS.items():
            if re.match(pattern, command):
                self.serve(command, port, path)
                return
        self.printed += self.run(command)

    def run(self, command: str) -> str:
        """Run a line, keep what it changes in folder and variables, and return its output."""
        print(f"+ {command}", flush=True)
        before, kept = "", Path(".kept").absolute()
        if command.startswith("lrrt-stage "):
            # Bash gets a function that prints and returns what the command did.
            output = Path(".output").absolute()
            # As bash splits it, and with what it puts in for $(…).
            split = ["bash", "-c", f"printf '%s\\0' {OPERATOR.split(command)[0]}"]
            words = subprocess.check_output(split, text=True, env=self.variables).split("\0")[:-1]
            arguments = (words[1:], os.getcwd(), self.variables)
            code = forked("fork", lrrt_stage, *arguments, output=output)
            before = f"lrrt-stage() {{ cat {shlex.quote(str(output))}; return {code}; }}\n"
        after = f"\ncode=$?\n{{ pwd; env -0; }} > {shlex.quote(str(kept))}\nexit $code"
        done = subprocess.run(
            ["bash", "-c", before + command + after],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.variables,
        )  # fmt: skip
        print(done.stdout, flush=True)
        assert done.returncode == 0, f"{command}: exit code {done.returncode}"
        folder, _, variables = kept.read_text(encoding="utf-8").partition("\n")
        kept.unlink()
        os.chdir(folder)
        self.variables = dict(each.split("=", 1) for each in variables.split("\0") if "=" in each)
        return done.stdout

    def serve(self, command: str, default: int, path: str) -> None:
        """Start a server on a free port, and ask it once."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        given = re.search(r" --port[ =](\d+)", command)
        self.ports[given[1] if given else str(default)] = port
        command = command.replace(given[0], "") if given else command
        command += f" --host 127.0.0.1 --port {port}"
        print(f"+ {command} &", flush=True)
        program, *arguments = shlex.split(command)
        script = Path(sys.executable).with_name(program)
        server = subprocess.Popen([script, *arguments], env=self.variables, start_new_session=True)
        self.servers.append(server)
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    print(answer.read().decode())
                    return
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not answer"
                time.sleep(0.3)
