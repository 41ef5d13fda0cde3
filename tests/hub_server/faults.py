"""Fault injection and the request log: ASGI middleware that can also cut the TCP connection."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

Action = Literal["status", "drop_request", "drop_response", "lost_response", "delay", "hang", "corrupt"]

_transports: dict[tuple[Any, ...], asyncio.Transport] = {}


class TrackedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with its transport within reach of the fault injection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._key = (transport.get_extra_info("peername")[:2], transport.get_extra_info("sockname")[1])
        _transports[self._key] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        _transports.pop(self._key, None)
        super().connection_lost(exc)


@dataclass
class Rule:
    """One fault: what happens to which requests, and how often.

    `status` answers with `status`, `headers` and `body`; `drop_request` and `drop_response` cut the connection after
    `after_bytes` of a body; `lost_response` lets the request happen and cuts the connection before the answer; `delay`
    and `hang` wait `seconds` before the request happens, or instead of it; `corrupt` flips the byte at `after_bytes`.
    A cut is a FIN, or an RST with `reset`.
    """

    action: Action
    method: str = ".*"
    path: str = ".*"
    origin: str = "hub|storage"
    skip: int = 0
    times: int = 1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    after_bytes: int = 0
    seconds: float = 0.0
    reset: bool = False
    seen: int = 0
    hits: int = 0

    def applies(self, origin: str, method: str, path: str) -> bool:
        """Whether this request is hit; counts it."""
        if not (re.fullmatch(self.method, method) and re.search(self.path, path) and re.fullmatch(self.origin, origin)):
            return False
        self.seen += 1
        if self.seen <= self.skip or self.hits >= self.times:
            return False
        self.hits += 1
        return True


class Control:
    """The rules in force and the log of all requests."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.log: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def register(self, record: dict[str, Any]) -> Rule | None:
        """Log a request; the rule that hits it, if any."""
        with self._changed:
            self.log.append(record)
            self._changed.notify_all()
            request = (record["origin"], record["method"], record["path"])
            return next((rule for rule in self.rules if rule.applies(*request)), None)

    def wait(self, path: str, seconds: float) -> bool:
        """Wait for a request with this text in its path; False if none came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: any(path in record["path"] for record in self.log), seconds)


async def _cut(scope: Scope, reset: bool) -> None:
    """Cut the connection of a request, and wait until uvicorn has noticed."""
    key = (tuple(scope["client"]), scope["server"][1])
    transport = _transports.get(key)
    if transport is None:
        return
    if reset:
        linger = struct.pack("ii", 1, 0)  # SO_LINGER with timeout 0 makes the close an RST
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()
    for _ in range(200):
        await asyncio.sleep(0.005)
        if key not in _transports:
            break


class FaultyRequest:
    """One request under (perhaps) one rule: wraps `receive` and `send` of the application."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, record: dict[str, Any], rule: Rule | None) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.record = record
        self.rule = rule
        self.action = rule.action if rule else None
        self.cut = False

    async def _cut(self) -> None:
        assert self.rule is not None
        self.cut = True
        await _cut(self.scope, self.rule.reset)

    async def intercepted(self) -> bool:
        """Apply what happens instead of the request; False if the application is to answer."""
        rule = self.rule
        if rule is None:
            return False
        if rule.action in ("delay", "hang"):
            await asyncio.sleep(rule.seconds)
        if rule.action == "hang":
            await self._cut()
            return True
        if rule.action == "status":
            await self._answer(rule)
            return True
        return False

    async def _answer(self, rule: Rule) -> None:
        while (await self._receive()).get("more_body"):
            pass
        body = rule.body.encode()
        headers = {"content-type": "text/plain", "content-length": str(len(body)), **rule.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self.record["status"] = rule.status
        await self._send({"type": "http.response.start", "status": rule.status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})

    async def receive(self) -> Message:
        """The next part of the request body, unless the rule cuts it."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.record["received"] += len(message.get("body", b""))
            if self.rule and self.action == "drop_request" and self.record["received"] >= self.rule.after_bytes:
                await self._cut()
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """Pass on a part of the answer, unless the rule cuts or alters it."""
        if self.cut:
            return
        if message["type"] == "http.response.start":
            self.record["status"] = message["status"]
        if self.action == "lost_response":
            if message["type"] != "http.response.start":
                await self._cut()
            return
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            if self.rule and self.action == "drop_response":
                left = self.rule.after_bytes - self.record["sent"]
                if len(body) >= left:
                    await self._send_and_cut(body[: max(0, left)])
                    return
            if self.rule and self.action == "corrupt":
                message = {**message, "body": _flipped(body, self.rule.after_bytes - self.record["sent"])}
            self.record["sent"] += len(body)
        await self._send(message)

    async def _send_and_cut(self, body: bytes) -> None:
        if body:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self.record["sent"] += len(body)
            await asyncio.sleep(0.05)  # let the bytes leave before the connection dies
        await self._cut()


def _flipped(body: bytes, position: int) -> bytes:
    """`body` with all bits of one byte flipped, if it contains that byte."""
    if not 0 <= position < len(body):
        return body
    return body[:position] + bytes([body[position] ^ 0xFF]) + body[position + 1 :]


class FaultMiddleware:
    """Logs every request to one origin and applies the rules; the control plane itself is exempt."""

    def __init__(self, app: ASGIApp, control: Control, origin: Literal["hub", "storage"]) -> None:
        self.app = app
        self.control = control
        self.origin = origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/_hub/"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode().lower(): value.decode("latin1") for name, value in scope["headers"]}
        record: dict[str, Any] = {
            "origin": self.origin,
            "method": scope["method"],
            "path": scope["raw_path"].decode("latin1"),
            "query": scope["query_string"].decode(),
            "range": headers.get("range"),
            "token": headers.get("authorization", "").startswith("Bearer hf_"),
            "status": None,
            "received": 0,
            "sent": 0,
            "fault": None,
        }
        rule = self.control.register(record)
        record["fault"] = rule.action if rule else None
        request = FaultyRequest(scope, receive, send, record, rule)
        if not await request.intercepted():
            await self.app(scope, request.receive, request.send)
