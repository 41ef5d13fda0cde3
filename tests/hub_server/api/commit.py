"""The commit endpoint: all operations of one request become one git commit, or nothing does."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import JSONResponse, Response

from tests.hub_server.api.discussions import open_pull_request
from tests.hub_server.errors import HubError, stale_parent
from tests.hub_server.git import Change, lfs_pointer
from tests.hub_server.hub import Hub
from tests.hub_server.routing import API, Call, route
from tests.hub_server.store import Repository

Operation = tuple[str, dict[str, Any]]

_BUSY = "Another commit operation is in progress for this repository. Please try again later."
_DANGLING = "Your push was rejected because an LFS pointer pointed to a file that does not exist. Offending files: "


def _parse(body: bytes) -> tuple[dict[str, Any], list[Operation]]:
    """The header and the operations of an NDJSON commit."""
    lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    if not lines or lines[0].get("key") != "header":
        raise HubError(400, "Missing header")
    header = lines[0]["value"]
    if not header.get("summary"):
        raise HubError(400, "Missing summary")
    return header, [(line["key"], line["value"]) for line in lines[1:]]


@contextmanager
def _exclusive(repository: Repository, seconds: float) -> Iterator[None]:
    if not repository.lock.acquire(timeout=seconds):
        raise HubError(409, _BUSY)
    try:
        yield
    finally:
        repository.lock.release()


def _large_size(hub: Hub, repository: Repository, oid: str, size: int | None) -> int | None:
    """Size of a large object that this repository may point to; None if it was never uploaded."""
    path = repository.large_path(oid)
    if not repository.has_large(oid, size):
        file = hub.xet.by_sha256(oid) if hub.xet else None
        if hub.xet is None or file is None or size not in (None, file.size):
            return None
        try:
            # the stored bytes must be what the client claims: put the file together and look
            hub.xet.rebuild(file, path)
        except ValueError as error:
            raise HubError(400, str(error)) from error
    return path.stat().st_size


def _write(hub: Hub, repository: Repository, key: str, value: dict[str, Any]) -> Change:
    path = value["path"]
    if path.startswith("/") or not {"..", ".git"}.isdisjoint(path.split("/")):
        raise HubError(400, f"Invalid path: {path}")
    if key == "lfsFile":
        size = _large_size(hub, repository, value["oid"], value.get("size"))
        if size is None:
            raise HubError(400, _DANGLING + path)
        return Change(path, lfs_pointer(value["oid"], size))
    encoded = value.get("encoding") == "base64"
    content = base64.b64decode(value["content"]) if encoded else value["content"].encode()
    if len(content) > hub.settings.lfs_threshold:
        raise HubError(413, f"{path} is too large for a regular file")
    return Change(path, content)


def _delete(repository: Repository, head: str, path: str, is_directory: bool) -> Change:
    entry = repository.git.entry(head, path.rstrip("/"))
    if entry is None or entry.is_directory != is_directory:
        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
    return Change(entry.path, None)


def _changes(hub: Hub, repository: Repository, head: str, operations: list[Operation]) -> list[Change]:
    changes = []
    for key, value in operations:
        if key in ("file", "lfsFile"):
            changes.append(_write(hub, repository, key, value))
        elif key in ("deletedFile", "deletedFolder"):
            changes.append(_delete(repository, head, value["path"], key == "deletedFolder"))
        else:
            raise HubError(400, f"Unknown operation {key}")
    return changes


def commit(call: Call) -> Response:
    as_pull_request = call.flag("create_pr")
    repository = call.repository("read" if as_pull_request else "write")
    account = call.signed_in()
    header, operations = _parse(call.body)
    title, description = header["summary"], header.get("description", "")
    page = call.hub.repository_url(repository.type, repository.id)
    answer = {"success": True, "hookOutput": ""}
    with _exclusive(repository, call.hub.settings.lock_seconds):
        git = repository.git
        head, ref = git.commit_of(call.revision), git.writable_ref(call.revision)
        parent = header.get("parentCommit")
        if parent and not head.startswith(parent):
            if not as_pull_request:
                raise stale_parent()
            head = git.commit_of(parent)
        changes = _changes(call.hub, repository, head, operations)
        if as_pull_request:
            number = open_pull_request(repository, account, title, head=head)
            ref = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{page}/discussions/{number}"
        new = git.commit(ref, head, changes, title=title, description=description, author=account.name)
    return JSONResponse({**answer, "commitOid": new, "commitUrl": f"{page}/commit/{new}"})


ROUTES = [route(f"{API}/commit/{{revision}}", commit, "POST")]
