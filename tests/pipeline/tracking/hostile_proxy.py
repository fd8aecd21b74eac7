"""A small HTTP proxy that stands before a real MLflow server and misbehaves as it is told, request by request."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

# What becomes of a request. "lost": MLflow does what it was asked, and nobody hears of it. "slow": after SLOW_SECONDS.
# "dead": the connection is closed without an answer.
Fate = Literal["ok", "429", "500", "503", "401", "html", "redirect", "reset", "lost", "slow", "dead"]
SLOW_SECONDS = 5.0
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "server", "date", "host", "accept-encoding"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no failure."""


@contextmanager
def hostile_proxy(upstream: int, fate: Callable[[], Fate]) -> Iterator[int]:
    """A proxy on 127.0.0.1 before the server on the port `upstream`, while the block runs; its port.

    fate: asked for each request. Answers that are errors repeat the request's address and headers, as careless servers do.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            match fate():
                case "ok":
                    self._say(*_ask(upstream, self, body))
                case "slow":
                    time.sleep(SLOW_SECONDS)
                    self._say(*_ask(upstream, self, body))
                case "lost":
                    _ask(upstream, self, body)
                    self._cut()
                case "reset":
                    self._cut()
                case "dead":
                    with suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                case "redirect":
                    self._say(302, {"Location": f"http://{self.headers.get('Host')}/elsewhere"}, self._careless())
                case "html":
                    self._say(200, {"Content-Type": "text/html"}, b"<html>" + self._careless())
                case code:
                    headers = {"Retry-After": "1"} if code == "429" else {}
                    self._say(int(code), headers, self._careless())

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer  # noqa: N815

        def _careless(self) -> bytes:
            given = "".join(f"{name}: {value}\n" for name, value in self.headers.items())
            return f"cannot do {self.path}\n{given}".encode()

        def _say(self, code: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(code)
            for name, value in headers.items():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _cut(self) -> None:
            """End the connection as a machine does that has crashed: with a reset."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _ask(port: int, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """(code, headers, body) of the real server's answer."""
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request(request.command, request.path, body, headers)
        response = connection.getresponse()
        return response.status, dict(response.headers.items()), response.read()
    finally:
        connection.close()
