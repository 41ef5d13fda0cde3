"""Branches and tags."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from tests.hub_server.errors import HubError
from tests.hub_server.git import NO_COMMIT
from tests.hub_server.routing import API, Call, route

_KINDS = {
    "branches": "refs/heads/",
    "tags": "refs/tags/",
    "converts": "refs/convert/",
    "pullRequests": "refs/pr/",
}


def refs(call: Call) -> Response:
    existing = call.repository("metadata").git.refs()
    answer = {
        kind: [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit}
            for ref, commit in existing
            if ref.startswith(prefix)
        ]
        for kind, prefix in _KINDS.items()
    }
    if not call.request.query_params.get("include_prs"):
        del answer["pullRequests"]
    return JSONResponse(answer)


def create_branch(call: Call) -> Response:
    git = call.repository("write").git
    ref = f"refs/heads/{call.revision}"
    if call.revision.startswith("refs/") or not git.succeeds("check-ref-format", ref):
        raise HubError(400, "Invalid reference for a branch")
    start = git.commit_of(call.json.get("startingPoint") or "main")
    if not git.move_ref(ref, start, NO_COMMIT):
        raise HubError(409, f"Reference already exists: {ref}")
    return Response("OK", 201)


def create_tag(call: Call) -> Response:
    git = call.repository("write").git
    name = call.json["tag"]
    if not git.move_ref(f"refs/tags/{name}", git.commit_of(call.revision), NO_COMMIT):
        raise HubError(409, f"Tag reference exists already: {name}")
    return Response("OK", 201)


ROUTES = [
    route(f"{API}/refs", refs),
    route(f"{API}/branch/{{revision}}", create_branch, "POST"),
    route(f"{API}/tag/{{revision}}", create_tag, "POST"),
]
