"""The HTTP surface of the Xet store: tokens on the hub origin, everything else on the storage origin."""

from __future__ import annotations

import re
import time

from starlette.responses import FileResponse, JSONResponse, Response

from tests.hub_server.errors import HubError
from tests.hub_server.routing import API, Call, route
from tests.hub_server.xet import ContentStore, access_token, allows

_TOKEN_SECONDS = 3600


def token(call: Call) -> Response:
    """A store token, in the body for hf_xet and in headers for the Python client."""
    kind = call.request.path_params["kind"]
    call.repository("write" if kind == "write" and not call.flag("create_pr") else "read")
    if call.hub.xet is None:
        raise HubError(404, "Xet is not enabled for this repository")
    url, value, expiry = call.hub.xet.url, access_token(kind), int(time.time()) + _TOKEN_SECONDS
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": value, "X-Xet-Token-Expiration": str(expiry)}
    return JSONResponse({"accessToken": value, "exp": expiry, "casUrl": url}, headers=headers)


def _store(call: Call, kind: str) -> ContentStore:
    if call.hub.xet is None:
        raise HubError(404, "Xet is not enabled")
    if not allows(call.request.headers.get("authorization"), kind):
        raise HubError(401, "Unauthorized")
    return call.hub.xet


def add_xorb(call: Call) -> Response:
    inserted = _store(call, "write").add_xorb(call.request.path_params["hash"], call.body)
    return JSONResponse({"was_inserted": inserted})


def add_shard(call: Call) -> Response:
    try:
        _store(call, "write").add_shard(call.body)
    except ValueError as error:
        raise HubError(400, str(error)) from error
    return JSONResponse({"result": 1})


def reconstruction(call: Call) -> Response:
    store = _store(call, "read")
    file = store.file(call.request.path_params["hash"])
    if file is None:
        raise HubError(404, "Unknown file")
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", call.request.headers.get("range", ""))
    first = int(match[1]) if match else 0
    last = int(match[2]) if match and match[2] else None
    if file.size and first >= file.size:
        raise HubError(416, "Range not satisfiable")
    return JSONResponse(store.plan(file, first, last))


def blob(call: Call) -> Response:
    """The bytes of a xorb. The URL comes from a reconstruction and needs no token, as a signed one."""
    path = call.hub.xet.xorb_path(call.request.path_params["hash"]) if call.hub.xet else None
    if path is None or not path.is_file():
        raise HubError(404, "NoSuchKey")
    return FileResponse(path)


def no_deduplication(call: Call) -> Response:
    return Response(status_code=404)


HUB_ROUTES = [route(f"{API}/xet-{{kind}}-token/{{revision}}", token)]
ROUTES = [
    route("/cas/v1/xorbs/default/{hash}", add_xorb, "POST"),
    route("/cas/v1/shards", add_shard, "POST"),
    route("/cas/shards", add_shard, "POST"),
    route("/cas/v1/chunks/{rest:path}", no_deduplication),
    route("/cas/v1/reconstructions/{hash}", reconstruction),
    route("/cas/blob/{hash}", blob),
]
