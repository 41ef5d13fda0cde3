"""The storage origin: signed uploads and downloads of large objects. No Hub token is welcome here."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from tests.hub_server.errors import HubError
from tests.hub_server.hub import Hub
from tests.hub_server.routing import Call, route
from tests.hub_server.store import Repository


def _target(hub: Hub, request: Request) -> tuple[dict[str, str], Repository]:
    """Values of the signed URL and the repository that it is about."""
    values = hub.signed_values(request.query_params, request.headers)
    repository = hub.store.get(values["type"], values["id"])
    if repository is None:
        raise HubError(404, "NoSuchKey")
    return values, repository


def _check_digest(values: dict[str, str], sha256: str, size: int) -> None:
    if sha256 != values["oid"] or size != int(values["size"]):
        raise HubError(400, f"BadDigest: got {size} bytes, sha256 {sha256}")


async def _receive(request: Request, path: Path) -> tuple[str, str, int]:
    """Stream the body to a file; its sha256, its MD5 (the ETag) and its size in bytes."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("wb") as file:
        async for block in request.stream():
            file.write(block)
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return sha256.hexdigest(), md5.hexdigest(), size


async def put(request: Request) -> Response:
    """A whole object; it becomes visible only if its digest and size are the announced ones."""
    values, repository = _target(request.app.state.hub, request)
    temporary = repository.scratch_path(uuid.uuid4().hex)
    try:
        sha256, md5, size = await _receive(request, temporary)
        _check_digest(values, sha256, size)
        repository.keep_large(temporary, values["oid"])
    finally:
        temporary.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{md5}"'})


async def put_part(request: Request) -> Response:
    """One part of a multipart upload."""
    values, repository = _target(request.app.state.hub, request)
    part = repository.scratch_path(values["upload"], f"{int(values['number']):05d}")
    temporary = part.with_suffix(f".{uuid.uuid4().hex}")
    try:
        _, md5, _ = await _receive(request, temporary)
        temporary.replace(part)
    finally:
        temporary.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{md5}"'})


def complete(call: Call) -> Response:
    """Join the parts of a multipart upload."""
    values, repository = _target(call.hub, call.request)
    sha256, size = hashlib.sha256(), 0
    temporary = repository.scratch_path(uuid.uuid4().hex)
    try:
        with temporary.open("wb") as file:
            for part in call.json["parts"]:
                content = repository.scratch_path(values["upload"], f"{part['partNumber']:05d}").read_bytes()
                if hashlib.md5(content, usedforsecurity=False).hexdigest() != part["etag"].strip('"'):
                    raise HubError(400, "InvalidPart")
                file.write(content)
                sha256.update(content)
                size += len(content)
        _check_digest(values, sha256.hexdigest(), size)
        repository.keep_large(temporary, values["oid"])
    finally:
        temporary.unlink(missing_ok=True)
    return JSONResponse({"success": True})


def get(call: Call) -> Response:
    values, repository = _target(call.hub, call.request)
    path = repository.large_path(values["oid"])
    if not path.is_file():
        raise HubError(404, "NoSuchKey")
    return FileResponse(path, headers={"ETag": f'"{values["oid"]}"'}, media_type="application/octet-stream")


def _streaming(path: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
    """A PUT route whose body is not read into memory."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except HubError as error:
            async for _ in request.stream():  # the client is still sending
                pass
            return error.response()
        except ClientDisconnect:
            return Response(status_code=499)

    return Route(path, endpoint, methods=["PUT"])


ROUTES = [_streaming("/put", put), _streaming("/part", put_part), route("/get", get)]
HUB_ROUTES = [route("/api/complete_multipart", complete, "POST")]
