"""A PostgreSQL server for tests: a cluster of its own in a temporary folder, as long as needed.

Debian's package installs the programs outside of the search path. The server refuses to run as
root: then it is that of the user whom the package has made.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PLACES = "/usr/lib/postgresql/*/bin"
USERS = ("postgres", "nobody")
PASSWORD = "not-a-secret-of-anybody"
QUICK = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}
"""Nobody needs the data after a crash: the server is stopped in order, where a test goes on."""


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs; skip the test where there are none."""
    found = sorted(Path("/").glob(f"{PLACES[1:]}/initdb"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return (found[-1] if found else Path(str(on_path))).parent


def unprivileged() -> dict[str, str]:
    """Return as whom the server runs, for a process that is root."""
    if os.geteuid() != 0:
        return {}
    for name in USERS:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": name}
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


@dataclass
class Server:
    """A server that runs, and the address of an empty database."""

    address: str
    stop: Callable[[], None]
    start: Callable[[], None]


@contextmanager
def postgresql(name: str = "test") -> Iterator[str]:
    """Run a server on a free port of 127.0.0.1, and give the address of an empty database."""
    with postgresql_server(name) as server:
        yield server.address


@contextmanager
def postgresql_server(name: str = "test") -> Iterator[Server]:
    """Run a server on a free port of 127.0.0.1, which a test can stop and start again."""
    programs, user = binaries(), unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if user:
            for each in (folder, folder / "password"):
                shutil.chown(each, user["user"])
        data, log = folder / "data", folder / "log"

        def run(program: str, *arguments: object) -> None:
            command = [str(programs / program), *map(str, arguments)]
            with (folder / f"{program}.out").open("w+") as out:
                done = subprocess.run(command, cwd=folder, stdout=out, stderr=out, **user)
                out.seek(0)
                text = out.read()
            assert done.returncode == 0, text + (log.read_text() if log.exists() else "")

        run(
            *("initdb", "--pgdata", data, "--username", "tester", "--auth", "scram-sha-256"),
            *("--pwfile", folder / "password", "--no-sync", "--encoding", "UTF8"),
            *("--locale", "C"),
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = QUICK | {"listen_addresses": "127.0.0.1", "unix_socket_directories": folder}
        options = " ".join(f"-c {key}={value}" for key, value in settings.items())

        def start() -> None:
            run(
                *("pg_ctl", "--pgdata", data, "--log", log),
                *("-o", f"-p {port} {options}", "-w", "start"),
            )

        def stop() -> None:
            if (data / "postmaster.pid").exists():
                run("pg_ctl", "--pgdata", data, "-m", "fast", "-w", "stop")

        start()
        address = f"postgresql://tester:{PASSWORD}@127.0.0.1:{port}"
        try:
            import psycopg

            with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE "{name}"')
            yield Server(f"{address}/{name}", stop, start)
        finally:
            stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def postgresql_address() -> Iterator[str]:
    """The address of an empty database, which the tests of a module share."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install psycopg[binary]")
    with postgresql() as address:
        yield address


@pytest.fixture
def own_postgresql() -> Iterator[Server]:
    """A server of one test, which may stop it."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install psycopg[binary]")
    with postgresql_server() as server:
        yield server
