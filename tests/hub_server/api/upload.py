"""Before a commit: how each file is to be sent, and the Git-LFS batch protocol for the large ones."""

from __future__ import annotations

import base64
import fnmatch
import uuid
from typing import Any

from starlette.responses import JSONResponse, Response

from tests.hub_server.errors import HubError
from tests.hub_server.hub import Hub
from tests.hub_server.routing import API, PAGES, Call, route
from tests.hub_server.store import Repository, stored_as_large


def preupload(call: Call) -> Response:
    """Large or regular, ignored or not, and what the repository has at each path now."""
    as_pull_request = call.flag("create_pr")
    repository = call.repository("read" if as_pull_request else "write")
    call.signed_in()
    commit = repository.git.commit_of(call.revision)
    attributes = repository.git.text(commit, ".gitattributes")
    ignore = call.json.get("gitIgnore")
    patterns = _ignore_patterns(repository.git.text(commit, ".gitignore") if ignore is None else ignore)
    threshold = call.hub.settings.lfs_threshold
    answers = []
    for file in call.json["files"]:
        path = file["path"]
        binary = b"\0" in base64.b64decode(file.get("sample") or "")
        large = stored_as_large(attributes, path) or file["size"] > threshold or binary
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": _ignored(patterns, path)}
        entry = repository.git.entry(commit, path)
        if entry:
            answer["oid"] = entry.large.oid if entry.large else entry.oid
        answers.append(answer)
    return JSONResponse({"files": answers, "commitOid": commit})


def _ignore_patterns(text: str) -> list[str]:
    lines = (line.strip().rstrip("/") for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _ignored(patterns: list[str], path: str) -> bool:
    candidates = [path, *path.split("/")]
    return any(fnmatch.fnmatch(candidate, pattern) for pattern in patterns for candidate in candidates)


def lfs_batch(call: Call) -> Response:
    """Where to send (or fetch) large objects; no `actions` means that the object is already here."""
    wanted = call.json
    upload = wanted["operation"] == "upload"
    repository = call.repository("read")
    if upload:
        call.signed_in()  # whoever may open a pull request; what was uploaded is of no commit yet
    transfers = wanted.get("transfers") or ["basic"]
    if upload and call.hub.xet and "xet" in transfers:
        objects = [{**item, "authenticated": True} for item in wanted["objects"]]
        return _batch_answer("xet", objects)
    objects, multipart = [], False
    for item in wanted["objects"]:
        answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"], "authenticated": True}
        stored = repository.has_large(item["oid"], item["size"])
        if not upload:
            answer |= _download(call.hub, repository, item["oid"], stored)
        elif not stored:
            in_parts = "multipart" in transfers and item["size"] > call.hub.settings.multipart_threshold
            multipart = multipart or in_parts
            answer["actions"] = _upload(call.hub, repository, item["oid"], item["size"], in_parts)
        objects.append(answer)
    return _batch_answer("multipart" if multipart else "basic", objects)


def _batch_answer(transfer: str, objects: list[dict[str, Any]]) -> Response:
    content = {"transfer": transfer, "objects": objects}
    return JSONResponse(content, media_type="application/vnd.git-lfs+json")


def _download(hub: Hub, repository: Repository, oid: str, stored: bool) -> dict[str, Any]:
    if not stored:
        return {"error": {"code": 404, "message": "Object does not exist"}}
    href = hub.signed_url("get", type=repository.type, id=repository.id, oid=oid)
    return {"actions": {"download": {"href": href, "expires_in": hub.settings.url_seconds}}}


def _upload(hub: Hub, repository: Repository, oid: str, size: int, in_parts: bool) -> dict[str, Any]:
    target = {"type": repository.type, "id": repository.id, "oid": oid, "size": size}
    page = hub.repository_url(repository.type, repository.id)
    verify = {"href": f"{page}.git/info/lfs/objects/verify", "header": {}}
    if not in_parts:
        return {"upload": {"href": hub.signed_url("put", **target), "header": {}}, "verify": verify}
    upload_id = uuid.uuid4().hex
    part_size = hub.settings.part_size
    header = {"chunk_size": str(part_size)}
    for number in range(1, -(-size // part_size) + 1):
        header[f"{number:05d}"] = hub.signed_url("part", **target, upload=upload_id, number=number)
    # the completion goes to the hub origin, under the same signature as a storage URL
    query = hub.signed_url("complete", **target, upload=upload_id).split("?", 1)[1]
    return {"upload": {"href": f"{hub.url}/api/complete_multipart?{query}", "header": header}, "verify": verify}


def lfs_verify(call: Call) -> Response:
    if not call.repository("read").has_large(call.json["oid"], call.json["size"]):
        raise HubError(404, "Object does not exist")
    return JSONResponse({"success": True})


ROUTES = [
    route(f"{API}/preupload/{{revision}}", preupload, "POST"),
    *(route(f"{page}/info/lfs/objects/batch", lfs_batch, "POST") for page in PAGES),
    *(route(f"{page}/info/lfs/objects/verify", lfs_verify, "POST") for page in PAGES),
]
