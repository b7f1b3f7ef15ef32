"""A web server on this machine, from which tests download files."""

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATIENCE = 60  # seconds that a process waits for another one before the test fails


class Server:
    """A web server on this machine, which answers once ``go_when()`` is true. ``asked`` lists the requested paths.

    If ``broken`` is true, the server sends the first half of each file.
    """

    def __init__(self):
        server, self.files, self.asked = self, {}, []
        self.broken, self.go_when = False, lambda: True

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                end = time.monotonic() + PATIENCE
                while not server.go_when() and time.monotonic() < end:
                    time.sleep(0.02)
                content = server.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client has closed the connection
                    self.wfile.write((content or b"")[: len(content or b"") // 2 if server.broken else None])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Yield a server, and stop it at the end."""
    server = Server()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
