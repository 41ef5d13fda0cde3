"""YAML files that say what to do, with values that the command line replaces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gradiend_hub.data.text_files import read_text
from gradiend_hub.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as a text and `no` as false; here they are what everybody means, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Return what YAML says, as files of this program are read.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, _Loader)


def read_yaml(path: Path, overrides: Sequence[str] | None, example: str) -> dict[str, Any]:
    """The keys and values of a file, some replaced by `KEY=VALUE` with dots in the key.

    Raises:
        ConfigError: no such file, or no YAML mapping; the message names the example to look at.
    """
    try:
        content = parse_yaml(read_text(path))  # with the encodings and line ends of any system
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Expected a YAML file as {example}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values as in {example}, found {type(content).__name__}.")
    for override in overrides or ():
        _override(content, override)
    return content


def _override(content: dict[str, Any], override: str) -> None:
    key, given, text = override.partition("=")
    *parents, last = key.split(".")
    if not given or not all([*parents, last]):
        raise ConfigError(f"--set {override}: expected KEY=VALUE, e.g. --set seed=1")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {override}: {parent} has a value of its own and no keys.")
    content[last] = parse_yaml(text)
