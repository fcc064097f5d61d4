"""A hub on the loopback device that serves one repository in the way of the Hugging Face hub."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(
    repository: str,
    files: dict[str, bytes],
    *,
    lie: bool = False,
    status: int = 200,
    code: str = "GatedRepo",
    cut: bool = False,
) -> Iterator[str]:
    """Serve the files and yield the address.

    `lie` states the hash of other content, `status` refuses everything with the hub's error `code`, `cut` ends the
    weights early.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            name = self.path.removeprefix(f"/{repository}/resolve/main/").removeprefix(
                f"/{repository}/resolve/{COMMIT}/"
            )
            if status != 200 or name not in files:
                self.send_response(404 if status == 200 else status)
                self.send_header("X-Error-Code", "EntryNotFound" if status == 200 else code)
                self.end_headers()
                return
            content = files[name]
            digest = hashlib.sha256(content + b"other" * lie).hexdigest()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{digest if name.endswith("safetensors") else digest[:40]}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content[:-1] if cut and name.endswith("safetensors") else content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
