"""From a raw ASGI request to a handler: `Call` is what every handler gets, `route` wires one up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.hub_server.errors import HubError, not_signed_in
from tests.hub_server.hub import Access, Account, Hub
from tests.hub_server.store import Repository

_SINGULAR = {"models": "model", "datasets": "dataset", "spaces": "space"}


class _RepoType(Convertor[str]):
    regex = "models|datasets|spaces"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _PrefixedType(_RepoType):
    regex = "datasets|spaces"


register_url_convertor("repo_type", _RepoType())
register_url_convertor("prefixed_type", _PrefixedType())

API = "/api/{type:repo_type}/{namespace}/{name}"
"""Prefix of the API of one repository."""

PAGES = ("/{namespace}/{name}", "/{type:prefixed_type}/{namespace}/{name}")
"""Prefixes of file and git URLs; those of models have no type."""


@dataclass(frozen=True)
class Call:
    """One request with its whole body."""

    hub: Hub
    request: Request
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty without a body."""
        return json.loads(self.body) if self.body else {}

    @property
    def account(self) -> Account | None:
        """Who sent the request, None if anonymous."""
        return self.hub.account(self.request.headers.get("authorization"))

    def signed_in(self) -> Account:
        """Who sent the request; 401 if anonymous."""
        account = self.account
        if account is None:
            raise not_signed_in()
        return account

    @property
    def repo_type(self) -> str:
        """model, dataset or space; a path without a type is a model's."""
        return _SINGULAR[self.request.path_params.get("type", "models")]

    @property
    def repo_id(self) -> str:
        """namespace/name."""
        parameters = self.request.path_params
        return f"{parameters['namespace']}/{parameters['name'].removesuffix('.git')}"

    @property
    def revision(self) -> str:
        """The revision of the path, unquoted; main where the path has none."""
        return unquote(self.request.path_params.get("revision", "main"))

    def flag(self, name: str) -> bool:
        """A boolean of the query string."""
        return self.request.query_params.get(name, "").lower() in ("true", "1")

    def number(self, name: str, default: int) -> int:
        """An integer of the query string."""
        return int(self.request.query_params.get(name, default))

    def repository(self, access: Access = "read") -> Repository:
        """The repository of the path, or the error that the caller deserves; a former id leads on to the present one."""
        present = self.hub.store.moved(self.repo_type, self.repo_id)
        if present is not None:
            self.hub.authorized(self.repo_type, present, self.account, "metadata")
            path = self.request.scope["raw_path"].decode().replace(self.repo_id, present, 1)
            query = self.request.scope["query_string"].decode()
            location = f"{path}?{query}" if query else path
            raise HubError(307, f"Temporary Redirect. Redirecting to {location}", headers={"Location": location})
        return self.hub.authorized(self.repo_type, self.repo_id, self.account, access)

    def next_page(self, **values: str | int) -> dict[str, str]:
        """The Link header of the next page: this URL with other query values."""
        query = {**self.request.query_params, **{key: str(value) for key, value in values.items()}}
        path = self.request.scope["raw_path"].decode()
        return {"Link": f'<{self.hub.url}{path}?{urlencode(query)}>; rel="next"'}


Handler = Callable[[Call], Response]


def route(path: str, handler: Handler, *methods: str) -> Route:
    """A route whose handler runs in a thread, after the body was read, and may raise HubError."""

    async def endpoint(request: Request) -> Response:
        try:
            # an early answer to a client that is still sending would look like a broken connection
            call = Call(request.app.state.hub, request, await request.body())
            return await run_in_threadpool(handler, call)
        except HubError as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=499)

    return Route(path, endpoint, methods=list(methods or ("GET",)))


class QuotedPaths:
    """Match routes on the still-quoted path, so that `refs%2Fpr%2F1` stays one segment.

    Only the file path behind `/resolve/{revision}/` is unquoted: it may contain anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["raw_path"].decode("latin1")
            match = re.match(r"^(.*?/resolve/[^/]+/)(.*)$", path)
            scope = dict(scope, path=match[1] + unquote(match[2]) if match else path)
        await self.app(scope, receive, send)
