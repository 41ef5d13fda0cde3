"""Read-only views of repositories: listing, info, tree, paths, history."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from starlette.responses import JSONResponse, Response

from tests.hub_server.api.account import FRONT_MATTER, object_id
from tests.hub_server.errors import HubError
from tests.hub_server.git import Entry, timestamp
from tests.hub_server.hub import Hub
from tests.hub_server.routing import API, Call, route
from tests.hub_server.store import Repository


def _card_metadata(repository: Repository, commit: str) -> dict[str, Any]:
    match = FRONT_MATTER.match(repository.git.text(commit, "README.md"))
    try:
        metadata = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _tags(repository: Repository, commit: str, card: dict[str, Any]) -> list[str]:
    """The card's own tags, and those that the Hub derives from its metadata."""
    tags = [*(card.get("tags") or [])]
    if card.get("library_name"):
        tags.append(card["library_name"])
    if card.get("license"):
        tags.append(f"license:{card['license']}")
    bases = card.get("base_model") or []
    relation = card.get("base_model_relation")
    if relation is None and repository.git.entry(commit, "adapter_config.json"):
        relation = "adapter"
    for base in [bases] if isinstance(bases, str) else bases:
        tags += [f"base_model:{base}"] + ([f"base_model:{relation}:{base}"] if relation else [])
    return list(dict.fromkeys(tags))


def _sibling(entry: Entry, with_blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": entry.path}
    if with_blobs:
        sibling |= {"size": entry.size, "blobId": entry.oid}
        if entry.large:
            large = entry.large
            sibling["lfs"] = {"sha256": large.oid, "size": large.size, "pointerSize": entry.pointer_size}
    return sibling


def _info(repository: Repository, commit: str, *, with_blobs: bool) -> dict[str, Any]:
    metadata = repository.metadata
    card = _card_metadata(repository, commit)
    info = {
        "_id": object_id(repository.id),
        "id": repository.id,
        "author": repository.namespace,
        "sha": commit,
        "lastModified": repository.git.history(commit, limit=1)[0]["date"],
        "createdAt": timestamp(metadata.created),
        "private": metadata.private,
        "gated": metadata.gated,
        "disabled": False,
        "downloads": metadata.downloads,
        "likes": metadata.likes,
        "tags": _tags(repository, commit, card),
        "siblings": [_sibling(entry, with_blobs) for entry in repository.git.tree(commit) if not entry.is_directory],
        "cardData": card or None,
    }
    if repository.type == "model":
        info |= {
            "modelId": repository.id,
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
        }
    return {key: value for key, value in info.items() if value is not None}


def listing(call: Call) -> Response:
    query = call.request.query_params
    tags = set(query.getlist("filter"))
    found = []
    for repository in call.hub.store.all(call.repo_type):
        hidden = repository.metadata.private and not (call.account and call.account.owns(repository.namespace))
        if hidden or query.get("search", "") not in repository.id:
            continue
        if query.get("author", repository.namespace) != repository.namespace:
            continue
        info = _info(repository, repository.git.commit_of("main"), with_blobs=False)
        if tags <= set(info["tags"]) and query.get("pipeline_tag", info.get("pipeline_tag")) == info.get(
            "pipeline_tag"
        ):
            found.append(info)
    if sort := query.get("sort"):
        found.sort(key=lambda info: info[sort], reverse=True)
    return JSONResponse(found[: call.number("limit", 1000)])


def info(call: Call) -> Response:
    repository = call.repository("metadata")
    commit = repository.git.commit_of(call.revision)
    return JSONResponse(_info(repository, commit, with_blobs=call.flag("blobs")))


def _row(hub: Hub, repository: Repository, entry: Entry, commit: str, expand: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "type": "directory" if entry.is_directory else "file",
        "oid": entry.oid,
        "size": entry.size,
        "path": entry.path,
    }
    if entry.large:
        row["lfs"] = {"oid": entry.large.oid, "size": entry.large.size, "pointerSize": entry.pointer_size}
        file = hub.xet.by_sha256(entry.large.oid) if hub.xet else None
        if file:
            row["xetHash"] = file.hash
    if expand:
        row["lastCommit"] = repository.git.last_change(commit, entry.path)
        if not entry.is_directory:
            row["securityFileStatus"] = {"status": "unscanned", "avScan": None, "pickleImportScan": None}
    return row


def tree(call: Call) -> Response:
    repository = call.repository("metadata")
    commit = repository.git.commit_of(call.revision)
    headers = {"X-Repo-Commit": commit}
    folder = unquote(call.request.path_params.get("path", "")).strip("/")
    entries = repository.git.tree(commit)
    if folder:
        here = repository.git.entry(commit, folder)
        if here is None:
            raise HubError(404, f'{folder} does not exist on "{call.revision}"', "EntryNotFound", headers)
        entries = [entry for entry in entries if entry.path.startswith(f"{folder}/")] if here.is_directory else [here]
    if not call.flag("recursive"):
        depth = len(folder) + 1 if folder else 0
        entries = [entry for entry in entries if "/" not in entry.path[depth:]]
    first = call.number("cursor", 0)
    end = first + min(call.number("limit", call.hub.settings.page_size), call.hub.settings.page_size)
    rows = [_row(call.hub, repository, entry, commit, call.flag("expand")) for entry in entries[first:end]]
    if end < len(entries):
        headers |= call.next_page(cursor=end)
    return JSONResponse(rows, headers=headers)


def paths_info(call: Call) -> Response:
    repository = call.repository("metadata")
    if "json" in call.request.headers.get("content-type", ""):
        paths, expand = call.json["paths"], bool(call.json.get("expand"))
    else:
        form = parse_qs(call.body.decode())
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() in ("true", "1")
    commit = repository.git.commit_of(call.revision)
    entries = (repository.git.entry(commit, path.strip("/")) for path in paths)
    return JSONResponse([_row(call.hub, repository, entry, commit, expand) for entry in entries if entry])


def history(call: Call) -> Response:
    repository = call.repository("metadata")
    page, limit = call.number("p", 0), call.number("limit", 50)
    commit = repository.git.commit_of(call.revision)
    rows = repository.git.history(commit, limit=limit + 1, skip=page * limit)
    headers = call.next_page(p=page + 1, limit=limit) if len(rows) > limit else {}
    return JSONResponse(rows[:limit], headers=headers)


ROUTES = [
    route(f"{API}/revision/{{revision}}", info),
    route(f"{API}/tree/{{revision}}", tree),
    route(f"{API}/tree/{{revision}}/{{path:path}}", tree),
    route(f"{API}/paths-info/{{revision}}", paths_info, "POST"),
    route(f"{API}/commits/{{revision}}", history),
    route("/api/{type:repo_type}", listing),
    route(API, info),
]
