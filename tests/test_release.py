"""What a release needs: one version everywhere, addresses, a checklist whose commands and files are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

import gradiend_hub

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the standard library reads TOML from 3.11 on")
def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[(\d[^]]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest
    assert {project["version"], gradiend_hub.__version__, citation["version"], newest[1]} == {project["version"]}
    assert str(citation["date-released"]) == newest[2]
    assert f"v{project['version']}" in (ROOT / "RELEASING.md").read_text(encoding="utf-8")
    assert all(re.fullmatch(r"https://[a-z0-9.-]+/\S+", url) for url in project["urls"].values())
    assert len(project["urls"]) >= 2


def test_every_change_begins_with_a_verb() -> None:
    """`- Learn …`, `- Write …`: a capital, no full stop in a heading, and no bullet twice."""
    lines = re.findall(r"^- (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == len({*lines}) > 50
    assert [line for line in lines if not re.match(r"[A-Z][a-z]+ ", line)] == []


def test_the_checklist_names_what_is_there() -> None:
    text = (ROOT / "RELEASING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"(?:`|python )((?:tests|docs|examples|\.ci)/[\w/.-]+)", text):
        assert (ROOT / path).exists(), path
