"""Create, move and configure repositories."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from tests.hub_server.errors import HubError
from tests.hub_server.routing import API, Call, route


def create(call: Call) -> Response:
    wanted = call.json
    account = call.signed_in()
    repo_type = wanted.get("type") or "model"
    namespace = wanted.get("organization") or account.name
    repo_id = f"{namespace}/{wanted['name']}"
    if not account.owns(namespace) or account.role != "write":
        raise HubError(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}"')
    url = call.hub.repository_url(repo_type, repo_id)
    private = wanted.get("visibility") == "private" or wanted.get("private") is True
    try:
        call.hub.store.create(repo_type, repo_id, private=private)
    except HubError as error:
        error.body = {"url": url}  # create_repo(exist_ok=True) reads it out of the 409
        raise
    return JSONResponse({"url": url, "name": repo_id, "id": repo_id})


def move(call: Call) -> Response:
    wanted, account = call.json, call.signed_in()
    repo_type, former, present = wanted.get("type") or "model", wanted["fromRepo"], wanted["toRepo"]
    call.hub.authorized(repo_type, former, account, "write")
    if not account.owns(present.split("/")[0]):
        raise HubError(403, "You don't have the rights to move a repository there")
    call.hub.store.move(repo_type, former, present)
    return JSONResponse({"success": True})


def configure(call: Call) -> Response:
    repository = call.repository("write")
    wanted = call.json
    with repository.lock:
        metadata = repository.metadata
        if "visibility" in wanted:
            metadata.private = wanted["visibility"] == "private"
        metadata.private = wanted.get("private", metadata.private)
        metadata.gated = wanted.get("gated", metadata.gated)
        for name in ("downloads", "likes"):  # which the real Hub counts by itself
            setattr(metadata, name, wanted.get(name, getattr(metadata, name)))
        repository.save()
    return JSONResponse({"private": metadata.private, "gated": metadata.gated})


def grant_access(call: Call) -> Response:
    repository = call.repository("write")
    with repository.lock:
        repository.metadata.granted.append(call.json["user"])
        repository.save()
    return JSONResponse({})


ROUTES = [
    route("/api/repos/create", create, "POST"),
    route("/api/repos/move", move, "POST"),
    route(f"{API}/settings", configure, "PUT"),
    route(f"{API}/user-access-request/grant", grant_access, "POST"),
]
