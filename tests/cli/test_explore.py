"""`gradiend-hub explore`: where the page is served."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import gradiend_hub_cli.explore as explore
from gradiend_hub import GradiendModel
from gradiend_hub.explorer import Explorer

from .conftest import Run


class Page:
    """Listens as gradio does."""

    asked: int

    def launch(self, *, server_name: str, server_port: int, **_: Any) -> tuple[None, str, None]:
        Page.asked = server_port
        self.listener = socket.create_server((server_name, server_port))
        return None, f"http://{server_name}:{server_port}/", None

    def block_thread(self) -> None:
        raise KeyboardInterrupt

    def close(self) -> None:
        self.listener.close()


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "require_gradio", lambda: None)
    monkeypatch.setattr(Explorer, "load", lambda *_, **__: GradiendModel)
    monkeypatch.setattr(explore, "build_page", lambda _: Page())
    monkeypatch.setattr(explore, "launch_options", dict)


def test_port_0_is_any_free_port(run: Run) -> None:
    found = []
    for _ in range(3):
        result = run("explore", "x", "--port", "0")
        assert result.exit_code == 0 and f"http://127.0.0.1:{Page.asked}/" in result.stdout.replace("\n", " ")
        found.append(Page.asked)
    assert min(found) > 1023 and not {*found} & {*range(7860, 7960)}  # those that gradio tries by itself


def test_a_port_that_is_taken_is_said(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("explore", "x", "--port", port)
    assert result.exit_code == 1
    assert f"Port {port} of 127.0.0.1 is taken: give another one, --port 0." in " ".join(result.stderr.split())


@pytest.mark.parametrize("port", ["0", "7861"])
def test_an_address_of_another_machine_is_said(run: Run, port: str) -> None:
    result = run("explore", "x", "--host", "203.0.113.1", "--port", port)
    assert result.exit_code == 1
    assert "203.0.113.1 is no address of this machine" in " ".join(result.stderr.split())
