"""A proxy in front of an MLflow server, which answers, hangs, or fails as a test wants it to."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = str | int | None
"""None: the server answers; an HTTP status: in its place; ``gone``: the connection is closed;
``hangs``: it stays open without an answer; ``lost``: the server answers, and nobody hears it."""


@dataclass
class Proxy:
    """``fault(method, path, body)`` decides on every request; ``requests`` is what came."""

    address: str = ""
    fault: Callable[[str, str, bytes], Fault] = lambda method, path, body: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def fail(self, fault: Fault, path: str = "", after: int = 0) -> None:
        """Fail the requests whose path has ``path`` in it, but for the first ``after``."""
        passed = 0

        def decide(method, requested, body):
            nonlocal passed
            if path not in requested:
                return None
            passed += 1
            return fault if passed > after else None

        self.fault = decide

    def gone_after_epochs(self, epochs: int, fault: Fault = "gone") -> None:
        """Fail all requests from the one on that would log this epoch of a training."""
        logged = 0

        def decide(method, path, body):
            nonlocal logged
            logged += path.endswith("log-batch") and b"train_loss" in body
            return fault if logged > epochs else None

        self.fault = decide

    def lose_answers(self, path: str, count: int = 1, body: bytes = b"") -> list[str]:
        """Lose the answers to the first requests to this path; return those, as they come."""
        lost: list[str] = []

        def decide(method, requested, content):
            if not (requested.endswith(path) and body in content and len(lost) < count):
                return None
            lost.append(requested)
            return "lost"

        self.fault = decide
        return lost

    def answer(self) -> None:
        """Answer all requests from now on."""
        self.fault = lambda method, path, body: None


@contextmanager
def proxy(server: str) -> Iterator[Proxy]:
    """Serve ``server`` at a different address of 127.0.0.1."""
    state, target = Proxy(), urlsplit(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            state.requests.append((self.command, self.path))
            fault = state.fault(self.command, self.path, body)
            if fault in ("gone", "hangs"):
                if fault == "hangs":
                    state.over.wait(60)
                self.close_connection = True
                return
            if fault not in (None, "lost"):
                status, headers, answer = fault, [], b"no"
            else:
                connection = http.client.HTTPConnection(target.hostname, target.port)
                dropped = ("host", "transfer-encoding", "content-length")
                headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
                connection.request(self.command, self.path, body, headers)
                given = connection.getresponse()
                status, headers, answer = given.status, given.getheaders(), given.read()
                connection.close()
                if fault == "lost":
                    self.close_connection = True
                    return
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.daemon_threads = True
        threading.Thread(target=served.serve_forever, daemon=True).start()
        state.address = f"http://127.0.0.1:{served.server_address[1]}"
        try:
            yield state
        finally:
            state.over.set()
            served.shutdown()
