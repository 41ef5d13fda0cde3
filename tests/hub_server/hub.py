"""State of the server: settings, accounts, permissions and signed storage URLs."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from tests.hub_server.errors import HubError, not_signed_in
from tests.hub_server.faults import Control
from tests.hub_server.store import Repository, Store
from tests.hub_server.xet import ContentStore

Access = Literal["metadata", "read", "write"]
"""What a request needs: the metadata of a gated repository stays readable, its files do not."""

URL_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and what the token may do."""

    name: str
    role: Literal["read", "write"]
    organizations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        """Whether the namespace is this user or one of the user's organisations."""
        return namespace == self.name or namespace in self.organizations


ACCOUNTS = {
    "hf_alice_write": Account("alice", "write", ("acme",)),
    "hf_alice_read": Account("alice", "read", ("acme",)),
    "hf_bob_write": Account("bob", "write"),
    "hf_carol_write": Account("carol", "write"),
}


@dataclass
class Settings:
    """Limits that a test may lower, in bytes, seconds and rows; `POST /_hub/config` sets them."""

    lfs_threshold: int = 10 * 1024 * 1024
    multipart_threshold: int = 20 * 1024 * 1024
    part_size: int = 8 * 1024 * 1024
    url_seconds: int = 900
    lock_seconds: int = 20
    page_size: int = 1000


class Hub:
    """Everything that the request handlers share."""

    def __init__(self, data: Path, url: str, storage_url: str, *, xet: bool) -> None:
        self.store = Store(data)
        self.url = url
        self.storage_url = storage_url
        self.settings = Settings()
        self.control = Control()
        self.collections: dict[str, dict[str, Any]] = {}  # by slug; gone when the server stops
        self.xet = ContentStore(data / "cas", f"{storage_url}/cas") if xet else None
        self._secret = os.urandom(16)

    def repository_url(self, repo_type: str, repo_id: str) -> str:
        """Page of a repository; git and LFS URLs start with it."""
        return f"{self.url}/{URL_PREFIX[repo_type]}{repo_id}"

    def account(self, authorization: str | None) -> Account | None:
        """Account of an Authorization header; None without one, 401 for an unknown token."""
        if not authorization:
            return None
        account = ACCOUNTS.get(authorization.removeprefix("Bearer ").strip())
        if account is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return account

    def authorized(self, repo_type: str, repo_id: str, account: Account | None, access: Access) -> Repository:
        """The repository, if `account` may do this with it; else the error that the Hub answers."""
        repository = self.store.get(repo_type, repo_id)
        owner = account is not None and account.owns(repo_id.split("/")[0])
        if repository is None or (repository.metadata.private and not owner):
            # the Hub does not tell "private" from "missing"
            raise HubError(404 if account else 401, "Repository not found", "RepoNotFound")
        gated = repository.metadata.gated and not owner
        if gated and access == "read" and (account is None or account.name not in repository.metadata.granted):
            detail = "you are not in the authorized list" if account else "you must be authenticated"
            message = f"Access to {repo_type} {repo_id} is restricted: {detail}."
            raise HubError(403 if account else 401, message, "GatedRepo")
        if access == "write":
            if account is None:
                raise not_signed_in()
            if not owner:
                raise HubError(403, "Authorization error.")
            if account.role != "write":
                raise HubError(403, "Forbidden: you must use a write token to this repository.")
        return repository

    def signed_url(self, action: str, **values: str | int) -> str:
        """A storage URL that carries its own permission until it expires."""
        query = {key: str(value) for key, value in values.items()}
        query |= {"action": action, "expires": str(int(time.time() + self.settings.url_seconds))}
        query["signature"] = self._signature(query)
        return f"{self.storage_url}/{action}?{urlencode(query)}"

    def signed_values(self, query: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, str]:
        """Values of a signed URL; 403 if it was altered or expired, 400 if a Hub token came with it."""
        values = dict(query)
        signature = values.pop("signature", "")
        if "authorization" in headers:
            raise HubError(400, "Only one auth mechanism allowed: a Hub token reached the storage host")
        if not hmac.compare_digest(signature, self._signature(values)):
            raise HubError(403, "SignatureDoesNotMatch")
        if int(values["expires"]) < time.time():
            raise HubError(403, "Request has expired")
        return values

    def _signature(self, values: Mapping[str, str]) -> str:
        return hmac.new(self._secret, urlencode(sorted(values.items())).encode(), "sha256").hexdigest()
