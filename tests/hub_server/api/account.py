"""Who am I, may I, and what the client asks for on the side."""

from __future__ import annotations

import hashlib
import re

import yaml
from starlette.responses import JSONResponse, Response

from tests.hub_server.routing import Call, route

FRONT_MATTER = re.compile(r"^---\r?\n(.*?)\r?\n---", re.DOTALL)
"""The YAML block at the top of a card."""


def object_id(text: str) -> str:
    """A stable 24-digit id, as the Hub's database has them."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def whoami(call: Call) -> Response:
    account = call.signed_in()
    token = {"displayName": "test", "role": account.role, "createdAt": "2024-01-01T00:00:00.000Z"}
    organizations = [
        {"type": "org", "id": name, "name": name, "fullname": name, "roleInOrg": "write"}
        for name in account.organizations
    ]
    return JSONResponse(
        {
            "type": "user",
            "id": object_id(account.name),
            "name": account.name,
            "fullname": account.name,
            "email": f"{account.name}@localhost",
            "emailVerified": True,
            "isPro": False,
            "periodEnd": None,
            "avatarUrl": "",
            "orgs": organizations,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def validate_yaml(call: Call) -> Response:
    """The check of a card's metadata that the client asks for before it commits a README.md."""
    match = FRONT_MATTER.match(call.json["content"])
    if match is None:
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return JSONResponse({"errors": [], "warnings": [warning]})
    try:
        problem = _metadata_problem(yaml.safe_load(match[1]))
    except yaml.YAMLError as error:
        problem = str(error)
    errors = [{"message": problem}] if problem else []
    return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)


def _metadata_problem(metadata: object) -> str | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        return "metadata must be a mapping"
    if not isinstance(metadata.get("license", ""), str | list):
        return '"license" must be a string'
    return None


def agent_harnesses(call: Call) -> Response:
    return JSONResponse({"standardEnvVars": [], "harnesses": {}})


def telemetry(call: Call) -> Response:
    return Response()


ROUTES = [
    route("/api/whoami-v2", whoami),
    route("/api/validate-yaml", validate_yaml, "POST"),
    route("/api/agent-harnesses", agent_harnesses),
    route("/api/telemetry/{rest:path}", telemetry, "GET", "HEAD", "POST"),
]
