"""Files by revision: small ones from git, large ones by redirect to the storage."""

from __future__ import annotations

import re
from urllib.parse import quote

from starlette.responses import Response

from tests.hub_server.errors import HubError
from tests.hub_server.routing import PAGES, Call, route


def resolve(call: Call) -> Response:
    repository = call.repository("read")
    path = call.request.path_params["path"]
    commit = repository.git.commit_of(call.revision)
    entry = repository.git.entry(commit, path)
    if entry is None or entry.is_directory:
        # the client remembers for which commit the file is missing
        raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit})
    headers = {
        "X-Repo-Commit": commit,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/')[-1])};",
    }
    if entry.large is None:
        headers |= {"ETag": f'"{entry.oid}"', "Content-Type": "text/plain; charset=utf-8"}
        return _content(repository.git.blob(entry.oid), call.request.headers.get("range"), headers)
    oid = entry.large.oid
    headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(entry.size)}
    file = call.hub.xet.by_sha256(oid) if call.hub.xet else None
    if file:
        token_url = f"{call.hub.url}/api/{repository.type}s/{repository.id}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": file.hash, "Link": f'<{token_url}>; rel="xet-auth"'}
    headers["Location"] = call.hub.signed_url("get", type=repository.type, id=repository.id, oid=oid)
    return Response("Found", 302, headers)


def _content(content: bytes, requested: str | None, headers: dict[str, str]) -> Response:
    """The whole content, or the range that was asked for."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", requested or "")
    if match is None or not (match[1] or match[2]):
        return Response(content, 200, headers)
    last = len(content) - 1
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or last), last)
    else:
        start, end = max(0, len(content) - int(match[2])), last
    if start > end:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(content)}"})
    headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}
    return Response(content[start : end + 1], 206, headers)


ROUTES = [route(f"{page}/resolve/{{revision}}/{{path:path}}", resolve) for page in PAGES]
