"""YAML of strangers: heads of cards, and lists of evaluation results."""

from __future__ import annotations

from typing import Any, Final

import yaml

from gradiend_hub.errors import first_line

MOST_YAML: Final = 100_000
"""Values that are read."""


def parse_yaml(text: str) -> Any:
    """Parse a stranger's YAML. A few lines of aliases may stand for more than any memory holds.

    Raises:
        ValueError: it is no YAML, or stands for more than `MOST_YAML` values.
    """
    try:
        if (root := yaml.compose(text, yaml.SafeLoader)) is not None and _expanded(root, {}) > MOST_YAML:
            raise ValueError(f"its aliases (*name) stand for more than {MOST_YAML:,} values")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _expanded(node: Any, known: dict[int, int]) -> int:
    """Count the values that a node of YAML stands for, its aliases written out.

    Raises:
        RecursionError: it is a part of itself.
    """
    if id(node) not in known:
        parts = node.value if isinstance(node.value, list) else []
        nodes = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in nodes)
    return known[id(node)]
