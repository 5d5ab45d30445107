"""A file server on the loopback address that misbehaves as it is told to."""

import hashlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread


class FileServer:
    """Serves `content` at `url`.

    Attributes:
        requests: the Range header of each request, None without one.
        plan: what the next requests get, first one first; "whole" when the list is empty. "cut": half of the bytes,
            then the connection is closed. "stall": half of them, then silence. "no ranges": all bytes, whatever range
            was asked for. "404": that.
    """

    def __init__(self, content):
        self.content, self.requests, self.plan, self.released = content, [], [], Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.bin"

    @property
    def md5(self):
        return f"md5:{hashlib.md5(self.content).hexdigest()}"

    def answer(self, request):
        asked = request.headers.get("Range")
        self.requests.append(asked)
        how = self.plan.pop(0) if self.plan else "whole"
        start = 0 if asked is None or how == "no ranges" else int(asked.removeprefix("bytes=").removesuffix("-"))
        if how == "404":
            return request.send_error(404)
        if start >= len(self.content):
            return request.send_error(416)
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        if start:
            end = len(self.content)
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if how in ("cut", "stall") else body)
        if how == "stall":
            request.wfile.flush()
            self.released.wait(30)
        return request.close_connection


@contextmanager
def serving(content):
    """A `FileServer` for as long as the block runs."""
    server = FileServer(content)
    Thread(target=server.http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.http.shutdown()
        server.http.server_close()
