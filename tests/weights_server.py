"""A web server on the loopback with files and planned faults, for the tests of downloads."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class WeightsServer(ThreadingHTTPServer):
    """Serves `files`; the faults planned for a path come first, one for each request.

    Attributes:
        files: path → (content, ETag or "").
        faults: path → what answers the next requests in place of the file.
        requests: (path, headers) of every request so far.
        ranges: whether Range is understood; obeys If-Range only where `if_range`.
        sent: bytes of bodies sent so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, tuple[bytes, str]] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.ranges = self.if_range = True
        self.sent = 0
        self.over = threading.Event()

    def url(self, path: str) -> str:
        """Address of a path."""
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what many of these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WeightsServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        planned = self.server.faults[self.path]
        (planned.pop(0) if planned else serve)(self)

    def answer(
        self, code: int, body: bytes, headers: dict[str, str], *, stop_after: int | None = None
    ) -> None:
        """Send headers that promise `body`, and all of it or its first bytes."""
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        part = body if stop_after is None else body[:stop_after]
        self.wfile.write(part)
        self.server.sent += len(part)
        self.close_connection = stop_after is not None

    def log_message(self, *_: Any) -> None:
        pass


Fault = "Callable[[Any], None]"


def serve(handler: Any, stop_after: int | None = None) -> None:
    """The file, or the range of it that is asked for."""
    server = handler.server
    if handler.path not in server.files:
        handler.answer(404, b"no such file", {})
        return
    content, tag = server.files[handler.path]
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")) if server.ranges else None
    condition = handler.headers.get("If-Range", tag) if server.if_range else tag
    headers = {"ETag": tag, "Content-Type": "application/octet-stream"}
    if asked and condition == tag:
        start = int(asked[1])
        if start >= len(content):
            handler.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.answer(206, content[start:], headers, stop_after=stop_after)
    else:
        handler.answer(200, content, headers, stop_after=stop_after)


def drop_after(num_bytes: int) -> Any:
    """The connection ends after so many bytes of the body."""
    return lambda handler: serve(handler, num_bytes)


def reset_after(num_bytes: int) -> Any:
    """The same, with a reset in place of an orderly end."""

    def fault(handler: Any) -> None:
        serve(handler, num_bytes)
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return fault


def status(code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Any:
    """Another answer than the file."""
    return lambda handler: handler.answer(code, body, headers or {})


def redirect(target: str) -> Any:
    """A redirect."""
    return status(302, {"Location": target})


def hang(handler: Any) -> None:
    """No answer until the test is over."""
    handler.server.over.wait(30)
    handler.close_connection = True


def then_change(content: bytes, tag: str, num_bytes: int) -> Any:
    """Drop after so many bytes, and have another file under the name from then on."""

    def fault(handler: Any) -> None:
        serve(handler, num_bytes)
        handler.server.files[handler.path] = (content, tag)

    return fault


@contextlib.contextmanager
def weights_server() -> Iterator[WeightsServer]:
    """A server for the length of a `with` block."""
    with WeightsServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
