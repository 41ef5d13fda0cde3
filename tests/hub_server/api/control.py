"""The server's own controls, outside of the Hub's API: faults, request log, settings."""

from __future__ import annotations

from dataclasses import asdict

from starlette.responses import JSONResponse, Response

from tests.hub_server.faults import Rule
from tests.hub_server.hub import Settings
from tests.hub_server.routing import Call, route


def add_fault(call: Call) -> Response:
    call.hub.control.rules.append(Rule(**call.json))
    return faults(call)


def faults(call: Call) -> Response:
    return JSONResponse([asdict(rule) for rule in call.hub.control.rules])


def log(call: Call) -> Response:
    return JSONResponse(list(call.hub.control.log))


def wait(call: Call) -> Response:
    """Answer once a matching request has arrived, however it ends."""
    query = call.request.query_params
    return JSONResponse(call.hub.control.wait(query["path"], float(query["seconds"])))


def configure(call: Call) -> Response:
    call.hub.settings = Settings(**{**asdict(call.hub.settings), **call.json})
    return JSONResponse(asdict(call.hub.settings))


def reset(call: Call) -> Response:
    """No faults, an empty log, the default settings; repositories stay."""
    call.hub.control.rules.clear()
    call.hub.control.log.clear()
    call.hub.settings = Settings()
    return JSONResponse({})


ROUTES = [
    route("/_hub/faults", faults),
    route("/_hub/faults", add_fault, "POST"),
    route("/_hub/log", log),
    route("/_hub/wait", wait),
    route("/_hub/settings", configure, "PUT"),
    route("/_hub/reset", reset, "POST"),
]
