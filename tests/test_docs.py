"""The documentation's pages: their code runs, their links lead somewhere, and no public name is without a page."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import gradiend_hub
from tests.explorer.test_page import browser, emulate  # noqa: F401
from tests.pages import BLOCK, publish, run_blocks, run_line
from tests.test_readme import require_command

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "scripts" / "reference.py"), run_name="reference")


def test_every_public_name_has_a_page(reference: dict[str, Any]) -> None:
    pages = reference["pages"]()
    shown = {name for page in pages.values() for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    shown_values = {id(_value(name)) for name in shown}
    rooms = [m.name for m in pkgutil.iter_modules(gradiend_hub.__path__, "gradiend_hub.") if m.ispkg]
    missing = [
        f"{module}.{name}"
        for module in ["gradiend_hub", *rooms]
        for name in getattr(importlib.import_module(module), "__all__", [])
        if not name.startswith("__") and id(_value(f"{module}.{name}")) not in shown_values
    ]
    assert not missing
    assert "`safe_band`" in pages["reference/schema.md"]  # a field of the configuration
    assert "## train" in pages["reference/commands.md"]


def _value(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_every_public_name_says_what_it_is(reference: dict[str, Any]) -> None:
    silent = []
    for module, names in reference["public_names"]().items():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            if (inspect.isclass(value) or inspect.isroutine(value)) and not (value.__doc__ or "").strip():
                silent.append(f"{module}.{name}")
    assert not silent


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str, reference: dict[str, Any]) -> None:
    known = {*PAGES, *reference["pages"]()}
    for target in re.findall(r"\]\(([^)#\s]+)", (DOCS / page).read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path = os.path.normpath(Path(page).parent / target)
        assert path in known or (DOCS / path).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_exist_with_their_options(page: str) -> None:
    lines = re.findall(r"^gradiend-hub .*$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    for line in lines:
        require_command(shlex.split(line, comments=True))  # raises
    assert all(line.split()[1:] for line in lines)


def test_quoted_messages_are_said_by_the_library() -> None:
    sources = "\n".join(p.read_text(encoding="utf-8") for p in [*ROOT.glob("gradiend_hub*/**/*.py")])
    quoted = re.findall(r'^\?\?\? question "`([^`]+)`', (DOCS / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 3
    for message in quoted:
        if message.startswith("ModuleNotFoundError"):
            continue  # said by Python
        # a word of the message that stands for a name is written otherwise in the code
        longest = max(re.split(r"…|matplotlib", message), key=len).strip()
        assert longest in re.sub(r'"\s*\n\s*f?"', "", sources), message


NOT_RUN = {
    "git clone REPOSITORY gradiend_hub && cd gradiend_hub": "of a shell; .ci/run does the same",
    "gradiend-hub explore out/first": "until Ctrl-C; tests/explorer/test_page.py runs it in a browser",
    'pip install "gradiend_hub[gguf]"': "llama-cli is no library; tests/export/test_gguf_lora.py runs the file in llama.cpp",
    "FROM ./BASE.gguf": "Ollama's own language",
    "for s in -1 0.5 1; do gradiend-hub export DIRECTION":
        "the servers need a GPU; tests/export/test_lora.py holds the files to their rules",
    "curl localhost:8000/v1/completions": "the same",
    "merge_method: task_arithmetic": "tests/export/test_mergekit.py runs it",
    "from transformers import AutoModelForCausalLM, BitsAndBytesConfig": "bitsandbytes; tests/training/test_quantized.py",
    "with model.strengths_by_row(": "a part of a program; tests/adapter/test_pipelines.py",
    "model.generate(**inputs, schedule=": "a part of a program; examples/schedule.py",
    "strength 1": "what examples/schedule.py prints",
}  # fmt: skip
"""How the blocks begin that are not run as they stand, and why."""


def test_every_block_runs_or_says_why_not() -> None:
    found = []
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
        found += [block.strip() for kind, block in blocks if kind not in ("bash", "python")]
    assert [block for block in found if not block.startswith(tuple(NOT_RUN))] == []
    assert [start for start in NOT_RUN if not any(block.startswith(start) for block in found)] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search((DOCS / p).read_text(encoding="utf-8"))])
def test_the_code_of_a_page_runs(
    page: str, first_direction: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "guides/exploring.md":
        pytest.importorskip("gradio", reason="the explorer's page comes with the extra [explorer]")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if page != "index.md":  # the first page makes the direction that the others use
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "first").symlink_to(first_direction)
        if page == "guides/serving.md":  # after that on rewriting a model
            (tmp_path / "out" / "plural").symlink_to(first_direction.with_name("plural"))
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert blocks  # a block that raises, or a command that ends with another status, fails
    run_blocks(blocks, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def first_direction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The direction that the first page makes, from few rows; `plural` beside it is a model with it, and the Hub has it."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "examples").symlink_to(ROOT / "examples")
        train = ["train", "examples/train.yaml", "--set", "args.output_dir=out/first", "--quiet"]
        run_line(["gradiend-hub", *train], folder)
        run_line(["gradiend-hub", "merge", "out/first", "out/plural", "--strength", "-1"], folder)
    publish(folder / "out" / "first", alice="number", bob="gender")
    return folder / "out" / "first"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    pytest.importorskip("mkdocs", reason="the documentation's tools come with `make docs`")
    folder = tmp_path_factory.mktemp("built") / "site"
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_needs_no_other_server(site: Path) -> None:
    for file in sorted(site.rglob("*.html")):
        page = file.read_text(encoding="utf-8")
        assert not re.findall(
            r'<(?:link[^>]*stylesheet[^>]*|script[^>]*|img[^>]*)(?:href|src)="(?:https?:)?//[^"]+"', page
        )


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (1200, "dark"), (1200, "light")])
def test_the_site_can_be_read_by_everybody(
    browser: Any,  # noqa: F811
    site: Path,
    width: int,
    scheme: str,
) -> None:
    """Contrast, names, alternative texts, reach by keyboard; nothing is wider than the screen."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
    found_pages = [
        f"{file.parent.relative_to(site).as_posix()}/".removeprefix("./") for file in site.rglob("index.html")
    ]
    # pages of the reference are made alike
    pages = sorted(
        {p for p in found_pages if not p.startswith("reference/")} | {"reference/commands/", "reference/data/"}
    )
    assert len(pages) > 12
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for page in pages:
            emulate(browser, width, scheme)
            address = f"http://127.0.0.1:{server.server_port}/{page}"
            browser.get(address)
            browser.execute_script("localStorage.clear()")  # the theme keeps what it was
            browser.get(address)
            found = axe.Axe().run(browser)
            assert len(found["passes"]) > 10
            wrong = [(page, v["id"], node["html"][:200]) for v in found["violations"] for node in v["nodes"]]
            assert wrong == []
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        server.shutdown()
        server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, *_: Any) -> None:
        return
