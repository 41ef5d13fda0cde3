"""Tables of the benchmark of damage, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradiend_hub.evaluation.intervals import mean_interval

__all__ = ["compared_biases", "continuations", "table"]


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as Markdown; each cell has the figures of the + sign and of the − sign."""
    shown = [
        "| base | feature | decoder | form | b_d | r / AUC / neutral \\|h\\| | MB | CPU s | before | "
        "effect at 1 % of neutral text | own text | own, without class words | other "
        "source | effect with every set held to 1 % | limited by | damage at equal effect |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def both(r: Mapping[str, Any], rule: str, read: Callable[[Mapping[str, Any]], str]) -> str:
        return " / ".join(read(r["rules"][f"{rule} {side}"]) for side in "+-")

    def effect(of: Mapping[str, Any]) -> str:
        return f"{of['effect']:.3f} [{of['interval'][0]:.3f}, {of['interval'][1]:.3f}]"

    for r in records:
        figures = " / ".join(f"{value:.3f}" for value in r["encoder"].values())
        cells = [r["base"], r["feature"], r["decoder"], r["form"], r["bias"], figures, f"{r['bytes'] / 1e6:.2f}"]
        cells += [f"{r['seconds']:.0f}", f"{r['before +']:.3f} / {r['before -']:.3f}"]
        cells += [both(r, "neutral", effect)]
        for kind, name in (("rise", "own"), ("collateral", "own"), ("rise", "other")):
            cells.append(both(r, "neutral", lambda of, kind=kind, name=name: f"{100 * of[kind][name]:+.2f} %"))  # type: ignore[misc]
        cells += [both(r, "every set", effect), both(r, "every set", lambda of: of["limit"])]
        cells.append(" / ".join(_share(r[f"damage at equal effect {side}"]) for side in "+-"))
        shown.append(f"| {' | '.join(cells)} |")
    return "\n".join(shown)


def compared_biases(records: Sequence[Mapping[str, Any]]) -> str:
    """The effect without the bias less that with it, of decoders measured in both ways, as Markdown."""
    shown = [
        "| base | feature | decoder | form | neutral text at 1 % | every set at 1 % |",
        "|---|---|---|---|---|---|",
    ]
    named = {tuple(r[key] for key in ("base", "feature", "decoder", "form", "bias")): r for r in records}
    for (*name, bias), other in named.items():
        one = named.get((*name, "with"))
        if bias != "without" or one is None:
            continue
        cells = []
        for rule in ("neutral", "every set"):
            ends = [_difference(one["rules"][f"{rule} {side}"], other["rules"][f"{rule} {side}"]) for side in "+-"]
            cells.append(" / ".join(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in ends))
        shown.append(f"| {' | '.join([*name, *cells])} |")
    return "\n".join(shown)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float, float]:
    """Mean of the second's effect less the first's on the same rows, and its 95 % interval by group."""
    groups, before = np.array(one["by row"]).T
    values = np.array(other["by row"])[:, 1] - before
    low, high = mean_interval(values, groups.astype(int))
    return float(values.mean()), low, high


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.2f} %"


def continuations(records: Sequence[Mapping[str, Any]]) -> str:
    """What a model writes at both largest doses with every set held, and without an edit."""
    shown = ["| base | feature | decoder | form | prompt | − | 0 | + |", "|---|---|---|---|---|---|---|---|"]
    for r in records:
        for prompt, written in r.get("written", {}).items():
            cells = [r["base"], r["feature"], r["decoder"], r["form"], prompt, *(written[s] for s in "-0+")]
            shown.append(f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |")
    return "\n".join(shown) if len(shown) > 2 else ""
