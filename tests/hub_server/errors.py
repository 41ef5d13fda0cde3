"""The one error of the server, rendered as the Hub renders it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

STALE_PARENT = "A commit has happened since. Please refresh and try again."
NOT_SIGNED_IN = "Invalid username or password."


class HubError(Exception):
    """An answer with status >= 400. The client picks its exception by `code`, which goes out as `X-Error-Code`."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.body = dict(body or {})

    def response(self) -> Response:
        """The HTTP answer of this error."""
        headers = {
            **self.headers,
            "X-Error-Message": self.message.replace("\n", " "),
            "X-Request-Id": f"Root={uuid.uuid4().hex}",
        }
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message, **self.body}, self.status, headers)


def not_signed_in() -> HubError:
    """401 of a request that needs a token and has none."""
    return HubError(401, NOT_SIGNED_IN)


def no_such_revision(revision: str) -> HubError:
    """404 of an unknown branch, tag or commit."""
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def stale_parent() -> HubError:
    """412: the branch moved since the client looked at it."""
    return HubError(412, STALE_PARENT)
