"""The server as a child process: start it, steer it, stop it. Nothing here imports the server or the client."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

_ROOT = Path(__file__).parents[2]
_SECONDS_TO_STOP = 10
_SECONDS_TO_WAIT = 45
_OVERRIDING = {
    "HF_DATASETS_CACHE",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN_PATH",
    "HF_XET_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "TRANSFORMERS_CACHE",
    "TRANSFORMERS_OFFLINE",
}
"""Variables of the user's shell that would win over HF_HOME, or keep the client offline."""


@dataclass(frozen=True)
class Tokens:
    """Access tokens that the server knows. Alice belongs to the organisation `acme`, Bob and Carol do not."""

    alice: str = "hf_alice_write"
    alice_read: str = "hf_alice_read"
    bob: str = "hf_bob_write"
    carol: str = "hf_carol_write"


TOKENS = Tokens()


def listening_socket(port: int = 0) -> socket.socket:
    """A listening loopback socket; clients can connect from now on, and wait until somebody accepts."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


def hub_url(listener: socket.socket) -> str:
    """Origin of the Hub."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def storage_url(listener: socket.socket) -> str:
    """Origin of the storage: another host name than the Hub's, so that clients keep their token from it."""
    return f"http://localhost:{listener.getsockname()[1]}"


def client_environment(base: Mapping[str, str], url: str, home: Path, token: str = TOKENS.alice) -> dict[str, str]:
    """`base` with the variables that point Hugging Face libraries to the server; they are read at import."""
    return {
        **{name: value for name, value in base.items() if name not in _OVERRIDING},
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


class HubServer:
    """A running server. It dies with this process, however this process ends.

    Args:
        data: directory of the repositories and of the server's log.
        xet: serve large files by Xet; else by plain LFS.
    """

    def __init__(self, data: Path, *, xet: bool = True) -> None:
        self.data = data
        self.tokens = TOKENS
        self._log = data / "server.log"
        data.mkdir(parents=True, exist_ok=True)
        with listening_socket() as hub_listener, listening_socket() as storage_listener, self._log.open("ab") as log:
            self.url = hub_url(hub_listener)
            self.storage_url = storage_url(storage_listener)
            descriptors = (hub_listener.fileno(), storage_listener.fileno())
            command = [sys.executable, "-m", "tests.hub_server", "serve", "--data", str(data)]
            command += ["--sockets", ",".join(map(str, descriptors)), "--xet", "http" if xet else "off"]
            self._process = subprocess.Popen(
                command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=descriptors
            )

    def __enter__(self) -> HubServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _control(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/_hub/{path}", content, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=60) as response:
                return json.loads(response.read())
        except (urllib.error.URLError, ConnectionError) as error:
            raise RuntimeError(f"the Hub server does not answer; its log:\n{self.errors()}") from error

    def fault(self, action: str, **rule: Any) -> None:
        """Make coming requests fail; `tests.hub_server.faults.Rule` lists actions and fields."""
        self._control("POST", "faults", {"action": action, **rule})

    def configure(self, **settings: int) -> None:
        """Change limits until `clear`; `tests.hub_server.hub.Settings` lists them."""
        self._control("PUT", "settings", settings)

    def clear(self) -> None:
        """Forget all faults, the log and changed settings. Repositories stay."""
        self._control("POST", "reset")

    def log(self, *, method: str = "", path: str = "") -> list[dict[str, Any]]:
        """Requests since the last `clear`, those with this method and this text in their path."""
        records = self._control("GET", "log")
        return [record for record in records if method in ("", record["method"]) and path in record["path"]]

    def wait_for(self, path: str) -> None:
        """Return when a request with this text in its path has arrived since the last `clear`, answered or not."""
        if not self._control("GET", f"wait?{urlencode({'path': path, 'seconds': _SECONDS_TO_WAIT})}"):
            raise TimeoutError(f"no request to {path} in {_SECONDS_TO_WAIT} s")

    def errors(self) -> str:
        """What the server printed: empty unless it failed."""
        return self._log.read_text()

    def stop(self) -> None:
        """Stop the process and wait for its end."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run_against_server(command: list[str], data: Path, *, xet: bool = True) -> int:
    """Run a command against a fresh server; its exit status.

    The command finds the server, Alice's write token and an empty cache in its environment.
    """
    with HubServer(data / "server", xet=xet) as server:
        environment = client_environment(os.environ, server.url, data / "home")
        with subprocess.Popen(command, env=environment) as process:
            try:
                return process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
