"""A web server on this machine that counts what is asked of it, and fails as told."""

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(kw_only=True)
class Asked:
    """One request, and what became of it."""

    method: str
    path: str
    """With the query."""
    bytes_range: str | None
    status: int = 0
    sent: int = 0
    """Bytes of the body."""


@dataclass(kw_only=True)
class Served:
    """What a server has, how it behaves, and what was asked of it."""

    url: str = ""
    """Without a slash at its end."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents by path, which begins with a slash."""
    times: dict[str, float] = field(default_factory=dict)
    """When they changed last; 2020 unless given."""
    asked: list[Asked] = field(default_factory=list)
    failing: list[int] = field(default_factory=list)
    """Statuses of the next requests, one each; 0 for a connection that is cut."""
    always: int = 0
    """The status of every request, if not 0."""
    delay: float = 0.0
    """Seconds before each answer."""
    ranges: bool = True
    """Whether a part of a file can be had."""
    head: bool = True
    """Whether HEAD is allowed, which signed addresses often do not."""
    tags: bool = True
    """Whether it says of which version a file is: its ETag, and when it changed."""

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(asked.sent for asked in self.asked)

    def forget(self) -> None:
        """Count anew."""
        self.asked.clear()


_PIECE = 65536  # written at once: who has heard enough hangs up
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        served = self.served
        asked = Asked(
            method=self.command,
            path=self.path,
            bytes_range=self.headers.get("Range"),
        )
        served.asked.append(asked)
        time.sleep(served.delay)
        path = self.path.partition("?")[0]
        trouble = served.always
        if served.failing:
            trouble = served.failing.pop(0)
            if trouble == 0:
                self._give(asked, path, cut=True)
                return
        if self.command == "HEAD" and not served.head:
            trouble = 403
        if not trouble and path not in served.files:
            trouble = 404
        if trouble:
            self._head(asked, trouble, 0)
            return
        self._give(asked, path)

    def _give(self, asked: Asked, path: str, *, cut: bool = False) -> None:
        """Give a file or a part of it; half of that if it is to be cut."""
        body = self.served.files[path]
        begin, end = 0, len(body)
        found = _RANGE.match(asked.bytes_range or "") if self.served.ranges else None
        if found:
            begin = int(found[1])
            end = min(int(found[2]) + 1, end) if found[2] else end
        extra = {}
        if self.served.tags:
            changed = self.served.times.get(path, 1.6e9)
            extra["Last-Modified"] = formatdate(changed, usegmt=True)
            extra["ETag"] = f'"{hashlib.md5(body).hexdigest()}"'
        if self.served.ranges:
            extra["Accept-Ranges"] = "bytes"
        if found:
            extra["Content-Range"] = f"bytes {begin}-{end - 1}/{len(body)}"
        self._head(asked, 206 if found else 200, end - begin, extra)
        if self.command == "GET":
            last = begin + (end - begin) // (2 if cut else 1)
            for place in range(begin, last, _PIECE):
                asked.sent += self.wfile.write(body[place : min(place + _PIECE, last)])
        self.close_connection |= cut

    def _head(
        self,
        asked: Asked,
        status: int,
        length: int,
        extra: dict[str, str] | None = None,
    ) -> None:
        asked.status = status
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Answer, and do not mind who hangs up."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


@contextmanager
def serving(files: dict[str, bytes] | None = None) -> Iterator[Served]:
    """Serve files from memory, at a port of this machine."""
    served = Served(files=dict(files or {}))
    handler = type("Handler", (_Handler,), {"served": served})
    server = _Server(("127.0.0.1", 0), handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
