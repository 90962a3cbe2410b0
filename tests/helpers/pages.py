"""Serves a folder to a browser, and takes what its pages send back."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Handler(SimpleHTTPRequestHandler):
    """Files with the headers that WebAssembly's threads need; a POST is put into a queue."""

    def __init__(
        self, *arguments: Any, sent: queue.Queue[tuple[str, bytes]], directory: Path
    ) -> None:
        self.sent = sent
        super().__init__(*arguments, directory=str(directory))

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def do_POST(self) -> None:
        self.sent.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, queue.Queue[tuple[str, bytes]]]]:
    """The address of a server of a folder, and the queue of what is sent to it: path, bytes."""
    sent: queue.Queue[tuple[str, bytes]] = queue.Queue()
    handler = partial(_Handler, sent=sent, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", sent
        finally:
            server.shutdown()
            thread.join()
