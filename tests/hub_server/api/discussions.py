"""Pull requests: each has a number and a branch refs/pr/N."""

from __future__ import annotations

import time

from starlette.responses import JSONResponse, Response

from tests.hub_server.api.account import object_id
from tests.hub_server.errors import HubError
from tests.hub_server.git import NO_COMMIT, Change, timestamp
from tests.hub_server.hub import Account
from tests.hub_server.routing import API, Call, route
from tests.hub_server.store import Repository


def open_pull_request(repository: Repository, account: Account, title: str, *, head: str) -> int:
    """Open a pull request whose branch starts at `head`; its number. The caller holds the lock."""
    number = len(repository.metadata.discussions) + 1
    repository.metadata.discussions.append(
        {
            "num": number,
            "title": title,
            "status": "draft",
            "author": {"name": account.name},
            "createdAt": timestamp(time.time()),
            "repo": {"name": repository.id, "type": repository.type},
            "isPullRequest": True,
            "filesWithConflicts": [],
            "changes": {"base": "refs/heads/main"},
            "diff": "",
            "events": [],
        }
    )
    repository.save()
    repository.git.move_ref(f"refs/pr/{number}", head, NO_COMMIT)
    return number


def listing(call: Call) -> Response:
    shown = call.repository("read").metadata.discussions
    return JSONResponse({"discussions": shown, "count": len(shown), "start": 0, "numClosedDiscussions": 0})


def details(call: Call) -> Response:
    return JSONResponse(call.repository("read").metadata.discussions[call.request.path_params["number"] - 1])


def create(call: Call) -> Response:
    repository = call.repository("read")
    with repository.lock:
        head = repository.git.commit_of("main")
        number = open_pull_request(repository, call.signed_in(), call.json["title"], head=head)
    page = call.hub.repository_url(repository.type, repository.id)
    return JSONResponse({"num": number, "url": f"{page}/discussions/{number}"})


def merge(call: Call) -> Response:
    """Bring the files that a pull request changes to main, in a commit of the one who merges."""
    repository, account = call.repository("write"), call.signed_in()
    number = call.request.path_params["number"]
    with repository.lock:
        git, discussion = repository.git, repository.metadata.discussions[number - 1]
        head, theirs = git.commit_of("main"), git.commit_of(f"refs/pr/{number}")
        if discussion["status"] not in ("open", "draft"):
            raise HubError(400, "This pull request is closed")
        base = git.run("merge-base", head, theirs).decode().strip()
        names = [name for name in git.run("diff", "--name-only", "-z", base, theirs).decode().split("\0") if name]
        entries = {name: git.entry(theirs, name) for name in names}
        changes = [Change(name, git.blob(entry.oid) if entry else None) for name, entry in entries.items()]
        title = f"{discussion['title']} (#{number})"
        git.commit("refs/heads/main", head, changes, title=title, description="", author=account.name)
        discussion["status"] = "merged"
        repository.save()
    event = {"id": object_id(title), "type": "status-change", "createdAt": timestamp(time.time())}
    return JSONResponse(
        {"newStatus": "merged", **event, "author": {"name": account.name}, "data": {"status": "merged"}}
    )


ROUTES = [
    route(f"{API}/discussions", listing),
    route(f"{API}/discussions", create, "POST"),
    route(f"{API}/discussions/{{number:int}}", details),
    route(f"{API}/discussions/{{number:int}}/merge", merge, "POST"),
]
