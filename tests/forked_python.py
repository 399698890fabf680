"""Python processes that need no seconds to import torch and MLflow: forks of one that has them.

:func:`programs` gives a folder with `python`, `mlflow` and `lrrt-stage`, for the front of a PATH.
Each is a process of its own, with the folder, the variables, the files and the signals of whoever
starts it. Only what a process does while it imports is not done again, and all have one seed of
hashes.
"""

import atexit
import fcntl
import gc
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import cache
from pathlib import Path

import numpy

ROOT = Path(__file__).parents[1]
PROGRAMS = {"python": [], "mlflow": ["-m", "mlflow"], "lrrt-stage": ["-m", "mlflow_project"]}
SCRIPT = """#!{python} -S
import json, os, signal, socket, sys
files = []
for number in map(int, os.listdir("/dev/fd")):
    try:
        os.fstat(number)
    except OSError:  # that of the folder
        continue
    files.append(number)
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = [{arguments!r} + sys.argv[1:], os.getcwd(), dict(os.environ), files]
socket.send_fds(connection, [json.dumps(request).encode() + b"\\n"], files)
pid = int(connection.recv(20))
def pass_on(number, _):
    try:
        # A terminal sends Ctrl-C to all of a group.
        (os.killpg if number == signal.SIGINT else os.kill)(pid, number)
    except ProcessLookupError:
        pass  # it has just ended
signal.signal(signal.SIGTERM, pass_on)
signal.signal(signal.SIGINT, pass_on)
code = int(connection.recv(20))
signal.signal(signal.SIGINT, signal.SIG_IGN)  # what ends here is the stand-in alone
if code < 0:
    if code != -signal.SIGKILL:  # which nothing can be set for
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@cache
def programs() -> Path:
    """Return the folder of the programs; the process behind them ends with this one."""
    folder = Path(tempfile.mkdtemp(prefix="python-"))
    address = str(folder / "socket")
    for name, arguments in PROGRAMS.items():
        script = folder / name
        script.write_text(
            SCRIPT.format(python=sys.executable, address=address, arguments=arguments), "utf-8"
        )
        script.chmod(0o755)
    outside = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    outside |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    log = (folder / "log").open("w")
    command = [sys.executable, str(Path(__file__)), address]
    server = subprocess.Popen(
        command, env=outside, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)
    while not Path(address).exists():
        assert server.poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    return folder


def serve(address: str) -> None:
    """Fork for every request; this returns in the forks alone, which have become what was asked."""
    # What a program starts by this name, as `mlflow server` does, is forked too.
    sys.executable = str(Path(address).with_name("python"))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address + ".new")
    listening.listen()
    os.rename(address + ".new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    parent = os.getppid()
    listening.settimeout(5)
    while True:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            if os.getppid() != parent:  # the tests were killed
                os._exit(0)
            continue
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return keep(connection)
        connection.close()


def keep(connection: socket.socket) -> None:
    """Fork once more, and tell the other end how that ends; end it if the other end has gone."""
    content, files, _, _ = socket.recv_fds(connection, 2**20, 250)  # Linux passes 253 at most
    while not content.endswith(b"\n"):
        content += connection.recv(2**20)
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.setsid()
        return become(*json.loads(content), files)
    for file in files:
        os.close(file)
    connection.sendall(str(pid).encode())
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        if select.select([connection], [], [], 0.02)[0]:
            os.kill(pid, signal.SIGKILL)


def become(
    arguments: list[str],
    folder: str,
    variables: dict[str, str],
    numbers: list[int],
    files: list[int],
) -> None:
    """Take over what a process is started with."""
    # Out of the way first: the number of one may be that of a different one.
    above = max(300, *numbers, *files) + 1
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    os.closerange(3, above)
    for number, file in zip(numbers, moved, strict=True):
        os.dup2(file, number)
        os.close(file)
    # A shell starts what runs in the background with this signal ignored, which is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    numpy.random.seed()
    random.seed()
    sys.argv = arguments
    sys.path[:1] = [folder, *filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]


def run() -> int:
    """Run what ``sys.argv`` names, as Python does; return the exit code."""
    try:
        if sys.argv[0] == "-u":  # as torchrun starts it
            sys.argv = sys.argv[1:]
        if sys.argv[0] == "-m":
            sys.argv = sys.argv[1:]
            if not hasattr(sys.modules.get(sys.argv[0]), "__path__"):
                sys.modules.pop(sys.argv[0], None)  # or Python warns that it runs twice
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        elif sys.argv[0] == "-c":
            exec(compile(sys.argv.pop(1), "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.path.insert(0, str(Path(sys.argv[0]).absolute().parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    import mlflow.cli
    import mlflow.projects  # noqa: F401

    import mlflow_project.cli.failures
    import mlflow_project.cli.outcome
    import mlflow_project.stages.check
    import mlflow_project.stages.compare
    import mlflow_project.stages.main
    import mlflow_project.stages.refine
    import mlflow_project.stages.study  # noqa: F401

    gc.freeze()
    serve(sys.argv[1])
    # Here in a fork only. To free the modules at the end, as Python does, would take seconds.
    code = run()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
