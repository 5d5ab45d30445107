"""The server of the live page: local by default, without telemetry, and with pages that fetch from this server only."""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from consistency_models.errors import ConfigError, import_extra

if TYPE_CHECKING:
    from consistency_models.app.demo.runs import Run

__all__ = ["application", "listen", "serve"]

LOCAL = ("127.0.0.1", "localhost", "::1")
FONTS = ("system-ui", "sans-serif")
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
"""The browser refuses every script, style, font and connection of another address; Gradio's own need the rest."""

LARGEST_CANVAS = 4_000_000
"""Pixels of an image that a browser may send."""


def listen(host: str, port: int) -> socket.socket:
    """Open the socket.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "another program listens on it"
            raise ConfigError("port", port, "a free port", "port=0 takes one", reason=reason) from error
        reason = f"port {port} cannot be opened there ({error})"
        raise ConfigError("host", host, "an address of this computer", reason=reason) from error


def serve(runs: Sequence[Run], listening: socket.socket) -> None:
    """Serve the page of the runs until SIGINT or SIGTERM."""
    uvicorn = import_extra("uvicorn", "demo")
    from PIL import Image

    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server hands a signal on after its end
    pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LARGEST_CANVAS  # an error above twice as many
    host, port = listening.getsockname()[:2]
    with tempfile.TemporaryDirectory(prefix="consistency_models_demo_") as folder:
        app = application(runs, host, folder)
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C ends it)", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        try:
            server.run(sockets=[listening])
        finally:
            signal.signal(signal.SIGTERM, handler)
            Image.MAX_IMAGE_PIXELS = pixels


def application(runs: Sequence[Run], host: str, folder: str) -> Any:
    """Build the ASGI application.

    Args:
        runs: runs side by side.
        host: address of the server; requests to a local server under another name are refused.
        folder: where Gradio keeps the files of the canvas.

    Raises:
        ModuleNotFoundError: the extra `demo` is not installed.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read at the import
    gradio = import_extra("gradio", "demo")
    from fastapi import FastAPI, Request, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from consistency_models.app.demo.html import STYLE
    from consistency_models.app.demo.page import page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    theme = gradio.themes.Default(primary_hue="indigo", font=FONTS, font_mono=("ui-monospace", "monospace"))

    @app.middleware("http")
    async def with_policy(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    if host in LOCAL:  # a page of another site cannot reach this one by a name that leads here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]"])
    options = {"ssr_mode": False, "footer_links": [], "enable_monitoring": False, "pwa": False, "mcp_server": False}
    return gradio.mount_gradio_app(app, page(runs), "/", theme=theme, css=STYLE, max_file_size="50mb", **options)
