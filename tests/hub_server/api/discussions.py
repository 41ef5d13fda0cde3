"""Pull requests: each has a number and a branch refs/pr/N."""

from __future__ import annotations

import time

from starlette.responses import JSONResponse, Response

from tests.hub_server.git import NO_COMMIT, timestamp
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


ROUTES = [
    route(f"{API}/discussions", listing),
    route(f"{API}/discussions", create, "POST"),
    route(f"{API}/discussions/{{number:int}}", details),
]
