"""The two ASGI applications, and the loop that serves them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from tests.hub_server.api import (
    account,
    browse,
    collections,
    commit,
    control,
    discussions,
    download,
    refs,
    repos,
    storage,
    upload,
    xet,
)
from tests.hub_server.faults import FaultMiddleware, TrackedProtocol
from tests.hub_server.hub import Hub
from tests.hub_server.process import hub_url, storage_url
from tests.hub_server.routing import QuotedPaths

_HUB_ROUTES: list[BaseRoute] = [
    *control.ROUTES,
    *account.ROUTES,
    *repos.ROUTES,
    *collections.ROUTES,
    *storage.HUB_ROUTES,
    *xet.HUB_ROUTES,
    *refs.ROUTES,
    *upload.ROUTES,
    *commit.ROUTES,
    *discussions.ROUTES,
    *browse.ROUTES,
    *download.ROUTES,
]
_STORAGE_ROUTES: list[BaseRoute] = [*storage.ROUTES, *xet.ROUTES]


def _application(hub: Hub, routes: list[BaseRoute]) -> Starlette:
    application = Starlette(routes=routes)
    application.state.hub = hub
    return application


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: two servers share one loop, and `serve` stops both."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: ASGIApp) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http=TrackedProtocol,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
        )
    )


def serve(
    data: Path,
    hub_socket: socket.socket,
    storage_socket: socket.socket,
    *,
    xet_enabled: bool,
    ready: Path | None,
    until_stdin_closes: bool,
) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent process is gone.

    Args:
        data: directory of the repositories; what is there from an earlier run is served.
        ready: file to write `{"hub": URL, "storage": URL, "pid": N}` to once requests are answered.
        until_stdin_closes: stop at the end of stdin. The parent holds the other end of that pipe and never writes.
    """
    data.mkdir(parents=True, exist_ok=True)
    # hf_xet in this process (it checks uploads) must not touch the user's cache
    os.environ["HF_HOME"] = str(data / "hf_home")
    hub = Hub(data, hub_url(hub_socket), storage_url(storage_socket), xet=xet_enabled)
    applications = (QuotedPaths(_application(hub, _HUB_ROUTES)), _application(hub, _STORAGE_ROUTES))
    servers = [
        _server(FaultMiddleware(applications[0], hub.control, "hub")),
        _server(FaultMiddleware(applications[1], hub.control, "storage")),
    ]

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    if until_stdin_closes:
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), stop()), daemon=True).start()

    async def main() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        if ready:
            temporary = ready.with_suffix(".tmp")
            temporary.write_text(json.dumps({"hub": hub.url, "storage": hub.storage_url, "pid": os.getpid()}))
            temporary.replace(ready)
        sockets = (hub_socket, storage_socket)
        await asyncio.gather(*(server.serve([one]) for server, one in zip(servers, sockets, strict=True)))

    asyncio.run(main())
