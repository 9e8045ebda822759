"""A web server on this machine that breaks off, redirects, changes its files and lies about them."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content``; ``cut`` holds how many bytes each further answer sends before the connection breaks."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.version, self.cut, self.asked, self.fail, self.redirect = b"", '"1"', [], [], [], None

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if self.path == "/moved" and server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if server.fail:
            self.send_error(server.fail.pop(0))
            return
        start = 0
        if (given := self.headers.get("Range")) and self.headers.get("If-Range") == server.version:
            start = int(given.removeprefix("bytes=").rstrip("-"))
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.version)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut.pop(0)] if server.cut else body)


@contextmanager
def running(monkeypatch):
    """A server that runs, without the proxies of this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    server.content = bytes(range(256)) * 4000
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
