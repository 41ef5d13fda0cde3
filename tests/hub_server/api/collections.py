"""Collections: a title of a namespace, and the repositories in it."""

from __future__ import annotations

import re
import time
from typing import Any

from starlette.responses import JSONResponse, Response

from tests.hub_server.api.account import object_id
from tests.hub_server.errors import HubError, not_signed_in
from tests.hub_server.git import timestamp
from tests.hub_server.routing import Call, route

COLLECTION = "/api/collections/{namespace}/{slug}"


def _slug(namespace: str, title: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"{namespace}/{words}-{object_id(f'{namespace}/{title}')}"


def _of(call: Call, *, write: bool = False) -> dict[str, Any]:
    """The collection of the path, or the error that the caller deserves."""
    namespace = call.request.path_params["namespace"]
    found = call.hub.collections.get(f"{namespace}/{call.request.path_params['slug']}")
    owner = call.account is not None and call.account.owns(namespace)
    if found is None or (found["private"] and not owner):
        raise HubError(404, "Collection not found")
    if write and call.account is None:
        raise not_signed_in()
    if write and not (owner and call.account and call.account.role == "write"):
        raise HubError(403, "You don't have the rights to change this collection")
    return found


def create(call: Call) -> Response:
    account, wanted = call.signed_in(), call.json
    if not account.owns(wanted["namespace"]) or account.role != "write":
        raise HubError(403, "You don't have the rights to create a collection under this namespace")
    slug = _slug(wanted["namespace"], wanted["title"])
    if slug in call.hub.collections:
        raise HubError(409, "A collection of this title exists", body={"slug": slug})
    call.hub.collections[slug] = {
        "slug": slug,
        "title": wanted["title"],
        "description": wanted.get("description"),
        "owner": {"name": wanted["namespace"]},
        "items": [],
        "lastUpdated": timestamp(time.time()),
        "position": 0,
        "private": bool(wanted.get("private")),
        "theme": "green",
        "upvotes": 0,
    }
    return JSONResponse(call.hub.collections[slug])


def details(call: Call) -> Response:
    return JSONResponse(_of(call))


def add_item(call: Call) -> Response:
    found, wanted = _of(call, write=True), call.json
    item = wanted["item"]
    call.hub.authorized(item["type"], item["id"], call.account, "metadata")
    if any((known["type"], known["id"]) == (item["type"], item["id"]) for known in found["items"]):
        raise HubError(409, "It is in the collection already")
    note = {"note": {"html": wanted["note"], "text": wanted["note"]}} if wanted.get("note") else {}
    place = len(found["items"])
    found["items"].append({"_id": object_id(f"{found['slug']} {item['id']}"), **item, "position": place, **note})
    return JSONResponse(found)


ROUTES = [
    route("/api/collections", create, "POST"),
    route(COLLECTION, details),
    route(f"{COLLECTION}/items", add_item, "POST"),
]
