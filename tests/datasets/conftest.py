"""A local HTTP server with the failures of real ones, and a console that keeps its text."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from codec.datasets import download


@dataclass
class Server:
    """Server of one file; `cuts` lists after how many bytes of each response the connection closes."""

    content: bytes
    ranges: bool = True
    lengths: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    etag: str = '"1"'
    dated: str = ""
    ignores_if_range: bool = False
    pause: float = 0.0
    """Seconds before each byte of the body."""
    excess: bytes = b""
    """Bytes sent after the content, beyond Content-Length."""
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    state = Server(bytes(range(256)) * 4000)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.requests.append(wanted)
            condition = self.headers.get("If-Range", "")
            state.conditions.append(condition)
            if condition not in ("", state.etag, state.dated) and not state.ignores_if_range:
                wanted = ""
            if state.statuses and (status := state.statuses.pop(0)) != 200:
                self.send_error(status)
                return
            first = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if state.ranges else 0
            body = state.content[first:]
            if wanted and state.ranges and not body:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
            elif wanted and state.ranges:
                self.send_response(206)
                last = len(state.content) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(state.content)}")
            else:
                self.send_response(200)
            if state.lengths:
                self.send_header("Content-Length", str(len(body)))
            for name, value in (("ETag", state.etag), ("Last-Modified", state.dated)):
                if value:
                    self.send_header(name, value)
            self.end_headers()
            body = body[: state.cuts.pop(0)] if state.cuts else body + state.excess
            with suppress(OSError):  # the client has gone
                for start in range(0, len(body), 1 if state.pause else len(body) or 1):
                    time.sleep(state.pause)
                    self.wfile.write(body[start : start + 1] if state.pause else body)

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/data.zip"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)
