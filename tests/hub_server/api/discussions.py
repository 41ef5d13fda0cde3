"""Discussions and pull requests. A pull request is a discussion with a branch refs/pr/N."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.responses import JSONResponse, Response

from tests.hub_server.errors import HubError, stale_parent
from tests.hub_server.git import NO_COMMIT, timestamp
from tests.hub_server.hub import Account
from tests.hub_server.routing import API, Call, route
from tests.hub_server.store import Repository


def _event(kind: str, account: Account, data: dict[str, Any]) -> dict[str, Any]:
    now = timestamp(time.time())
    return {"id": uuid.uuid4().hex[:24], "type": kind, "createdAt": now, "author": {"name": account.name}, "data": data}


def _open(repository: Repository, account: Account, title: str, description: str, base: str | None) -> int:
    """Add a discussion, a pull request against `base` if there is one; its number. The caller holds the lock."""
    latest = {"raw": description, "updatedAt": timestamp(time.time())}
    comment = _event("comment", account, {"edited": False, "hidden": False, "latest": latest})
    number = len(repository.metadata.discussions) + 1
    repository.metadata.discussions.append(
        {
            "num": number,
            "title": title,
            "status": "draft" if base else "open",
            "author": comment["author"],
            "createdAt": comment["createdAt"],
            "base": base,
            "merged": None,
            "events": [comment],
        }
    )
    repository.save()
    return number


def open_pull_request(
    repository: Repository, account: Account, title: str, description: str, *, base: str, head: str
) -> int:
    """Open a pull request whose branch starts at `head`; its number. The caller holds the lock."""
    number = _open(repository, account, title, description, base if base.startswith("refs/") else f"refs/heads/{base}")
    repository.git.move_ref(f"refs/pr/{number}", head, NO_COMMIT)
    return number


def _shown(repository: Repository, discussion: dict[str, Any]) -> dict[str, Any]:
    changes = None
    if discussion["base"]:
        changes = {"base": discussion["base"]}
        if discussion["merged"]:
            changes["mergeCommitId"] = discussion["merged"]
    fields = ("title", "num", "author", "createdAt", "status", "events")
    return {
        **{field: discussion[field] for field in fields},
        "repo": {"name": repository.id, "type": repository.type},
        "isPullRequest": discussion["base"] is not None,
        "filesWithConflicts": [],
        "changes": changes,
        "diff": "",
    }


def _selected(call: Call, repository: Repository) -> dict[str, Any]:
    number, discussions = call.request.path_params["number"], repository.metadata.discussions
    if not 1 <= number <= len(discussions):
        raise HubError(404, "Discussion not found")
    return discussions[number - 1]


def listing(call: Call) -> Response:
    repository = call.repository("read")
    shown = [_shown(repository, discussion) for discussion in repository.metadata.discussions]
    return JSONResponse({"discussions": shown, "count": len(shown), "start": 0, "numClosedDiscussions": 0})


def create(call: Call) -> Response:
    repository = call.repository("read")
    account, wanted = call.signed_in(), call.json
    title, description = wanted["title"], wanted.get("description", "")
    with repository.lock:
        if wanted.get("pullRequest"):
            head = repository.git.commit_of("main")
            number = open_pull_request(repository, account, title, description, base="main", head=head)
        else:
            number = _open(repository, account, title, description, None)
    page = call.hub.repository_url(repository.type, repository.id)
    return JSONResponse({"num": number, "url": f"{page}/discussions/{number}"})


def details(call: Call) -> Response:
    repository = call.repository("read")
    return JSONResponse(_shown(repository, _selected(call, repository)))


def merge(call: Call) -> Response:
    repository = call.repository("write")
    discussion = _selected(call, repository)
    git = repository.git
    with repository.lock:
        if discussion["base"] is None:
            raise HubError(400, "This discussion is not a pull request")
        head = git.commit_of(discussion["base"])
        tree = git.merge_tree(head, git.commit_of(f"refs/pr/{discussion['num']}"))
        if tree is None:
            raise HubError(409, "This pull request has conflicts")
        author = call.signed_in().name
        new = git.commit_tree(tree, parents=[head], message=discussion["title"], author=author)
        if not git.move_ref(discussion["base"], new, head):
            raise stale_parent()
        discussion["merged"], discussion["status"] = new, "merged"
        repository.save()
    return JSONResponse({"ok": True})


def change_status(call: Call) -> Response:
    repository = call.repository("write")
    discussion, wanted = _selected(call, repository), call.json
    data = {"status": wanted["status"], "reason": wanted.get("comment", "")}
    with repository.lock:
        event = _event("status-change", call.signed_in(), data)
        discussion["status"] = wanted["status"]
        discussion["events"].append(event)
        repository.save()
    return JSONResponse({"newStatus": event})


ROUTES = [
    route(f"{API}/discussions", listing),
    route(f"{API}/discussions", create, "POST"),
    route(f"{API}/discussions/{{number:int}}", details),
    route(f"{API}/discussions/{{number:int}}/merge", merge, "POST"),
    route(f"{API}/discussions/{{number:int}}/status", change_status, "POST"),
]
