"""Parameters by layer and by component of a transformer, from their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gradiend_hub.errors import ConfigError
from gradiend_hub.scope import BLOCK

_COMPONENTS = (  # the first that fits
    ("norm", r"norm|\bln_|\.ln\b"),
    ("attention query", r"\bq_proj|\bq_lin|\.query\b|query_proj|\.q\."),
    ("attention key", r"\bk_proj|\bk_lin|\.key\b|key_proj|\.k\."),
    ("attention value", r"\bv_proj|\bv_lin|\.value\b|value_proj|\.v\."),
    ("attention query, key, value", r"c_attn|query_key_value|qkv|\bWqkv|in_proj"),
    ("attention output", r"attention\.output|attention\.dense|attn\.c_proj|o_proj|out_proj|out_lin|attn\.Wo|\.o\."),
    (
        "MLP up",
        r"intermediate\.dense|up_proj|gate_proj|gate_up_proj|c_fc|fc1|lin1|dense_h_to_4h|mlp\.Wi|\.w[13]\.|\.wi",
    ),
    ("MLP down", r"output\.dense|down_proj|mlp\.c_proj|fc2|lin2|dense_4h_to_h|mlp\.Wo|\.w2\.|\.wo\."),
    ("embedding", r"embed|\bwte|\bwpe"),
)


def parts_of(names: Iterable[str], by: str) -> dict[str, list[str]]:
    """Divide parameter names.

    Args:
        by: "layer" (the number of the block) or "component" (attention query, MLP up, norm, …). What is neither is "other".

    Returns:
        Part to its parameters; layers in their order.

    Raises:
        ConfigError: `by` is neither.
    """
    if by not in ("layer", "component"):
        raise ConfigError(f"by must be 'layer', 'component' or None, found {by!r}.")
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_layer(name) if by == "layer" else _component(name), []).append(name)
    if by == "layer":
        return dict(
            sorted(found.items(), key=lambda item: (item[0] == "other", int(item[0]) if item[0].isdigit() else 0))
        )
    order = [*(component for component, _ in _COMPONENTS), "other"]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def _layer(name: str) -> str:
    match = BLOCK.search(name)
    return match[1] if match else "other"


def _component(name: str) -> str:
    return next((component for component, pattern in _COMPONENTS if re.search(pattern, name, re.IGNORECASE)), "other")
