"""HTML of what the explorer shows: answers, bars, the measured curve, coloured words. All text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradiend_hub.evaluation import Report, SplitReport
from gradiend_hub.notebook import safe
from gradiend_hub.printable import dose

from .asking import Shown, Word

CSS = """
.gh {font-size: 1rem; line-height: 1.5}
.gh .two {display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem}
.gh .one {border: 1px solid #8888; border-radius: .5rem; padding: .75rem; min-width: 0; overflow-wrap: anywhere}
.gh #kl {margin: .5rem 0}
.gh h2 {margin: 0 0 .5rem; font-size: 1rem}
.gh .bar {display: grid; grid-template-columns: minmax(4rem, 9rem) 1fr 4.5rem; gap: .5rem; align-items: center}
.gh .track {background: #8883; border-radius: .25rem; height: .8rem}
.gh .fill {background: #3b6fd4; border-radius: .25rem; height: 100%}
.gh .fill.class {background: #b3541e}
.gh .number {text-align: right; font-variant-numeric: tabular-nums}
.gh .said {margin: .5rem 0; padding-left: .75rem; border-left: 3px solid #3b6fd4; white-space: pre-wrap}
.gh .notice {border-left: .3rem solid #b3541e; padding: .5rem .75rem; background: #b3541e22; margin: .25rem 0}
.gh .word {border-radius: .2rem; padding: 0 .15rem}
.gh .text {line-height: 2; overflow-wrap: anywhere}
.gh svg {width: 100%; max-width: 40rem; height: auto}
.gh svg text {fill: currentColor; font-size: 13px}
.gh .key {display: flex; flex-wrap: wrap; gap: 0 1.5rem; margin: 0}
.gh .line {display: inline-block; width: 1.5rem; margin-right: .4rem; vertical-align: middle}
@media (max-width: 600px) {
  .gh .bar {grid-template-columns: 1fr auto; gap: 0 .5rem; margin-bottom: .5rem}
  .gh .track {grid-row: 2; grid-column: 1 / -1}
  .gh svg text {font-size: 20px}
}
.gradio-container input[type=range]::-webkit-slider-thumb {background: #3b6fd4 !important}
.gradio-container input[type=range]::-moz-range-thumb {background: #3b6fd4 !important}
.min_value, .max_value {color: var(--block-info-text-color) !important}
#gh-stopped {position: fixed; inset: 0 0 auto 0; z-index: 9999; padding: 1rem; background: #7a2e0b; color: #fff}
"""

HEAD = """
<script>
setInterval(async () => {
  let there = true;
  try { await fetch(location.pathname, {method: "HEAD", cache: "no-store"}); } catch { there = false; }
  let told = document.getElementById("gh-stopped");
  if (there && told) told.remove();
  if (!there && !told) {
    told = document.createElement("div");
    told.id = "gh-stopped";
    told.setAttribute("role", "alert");
    told.textContent = "The explorer has stopped. Start it again with the same gradiend-hub command, then reload this page.";
    document.body.append(told);
  }
}, 3000);
</script>
"""
"""Says so when the server is gone."""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 240, 44, 24, 12, 52
_COLOURS = ("#3b6fd4", "#b3541e")


def notice(messages: Sequence[str]) -> str:
    """Return messages that a user should read, announced to screen readers."""
    if not messages:
        return ""
    shown = "".join(f'<p class="notice">{_text(message, 1000)}</p>' for message in messages)
    return f'<div class="gh" role="alert">{shown}</div>'


def answers(base: Shown, edited: Shown, strengths: Mapping[str, float]) -> str:
    """Return what the model says at 0 and at the chosen strengths, side by side."""
    chosen = ", ".join(f"{_text(name)} {dose(strength)}" for name, strength in strengths.items())
    parts = [_answer("At strength 0 (the base model)", base), _answer(f"At {chosen}", edited)]
    kl = "" if edited.kl is None else f'<p id="kl">KL(base‖edited) at the slot: <b>{edited.kl:.4f}</b> nats</p>'
    return f'<div class="gh"><div class="two">{"".join(parts)}</div>{kl}</div>'


def _answer(title: str, shown: Shown) -> str:
    lines = [f"<h2>{title}</h2>"]
    lines += [_bar(word, chance) for word, chance in shown.outputs]
    for classes in shown.classes.values():
        lines += [_bar(f"P({name})", chance, "class") for name, chance in classes.items()]
    if shown.continuation is not None:
        lines.append(f'<p class="said">{_text(shown.continuation, 4000) or "(nothing)"}</p>')
    return f'<div class="one">{"".join(lines)}</div>'


def _bar(name: str, chance: float, kind: str = "") -> str:
    share = f"{100 * chance:.1f} %"
    return (
        f'<div class="bar"><span>{_text(name)}</span><span class="track" aria-hidden="true"><span class="fill {kind}" '
        f'style="display:block;width:{100 * min(max(chance, 0.0), 1.0):.2f}%"></span></span>'
        f'<span class="number">{share}</span></div>'
    )


def curve(
    name: str, report: Report | None, classes: tuple[str, str], band: Sequence[float] | None, strength: float
) -> str:
    """Return the measured curve of a direction, the present dose marked in it."""
    split = _measured(report)
    if split is None:
        return f'<div class="gh"><p>{_text(name)}: no curve was measured. gradiend-hub evaluate measures one.</p></div>'
    first, second = classes
    lines = {
        f"P({first}) on {second} rows": [(p.strength, p.reading(first, second).value) for p in split.curve],
        f"P({second}) on {first} rows": [(p.strength, p.reading(second, first).value) for p in split.curve],
    }
    low, high = min(-2.0, strength), max(2.0, strength)

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (1 - value) * (_HEIGHT - _TOP - _BOTTOM)

    drawn, key = [], []
    if band:
        left, right = x(max(band[0], low)), x(min(band[1], high))
        drawn.append(
            f'<rect x="{left:.1f}" y="{_TOP}" width="{max(right - left, 0):.1f}" height="{_HEIGHT - _TOP - _BOTTOM}" '
            'fill="#888" fill-opacity=".18"><title>safe band</title></rect>'
        )
    for number, (label, points) in enumerate(lines.items()):
        found = [(x(s), y(p)) for s, p in points if p is not None and low <= s <= high]
        drawn.append(
            f'<polyline fill="none" stroke="{_COLOURS[number]}" stroke-width="2" '
            f'stroke-dasharray="{"6 3" if number else "none"}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in found)}"/>'
        )
        key.append(
            f'<span><span class="line" style="border-top:3px {"dashed" if number else "solid"} {_COLOURS[number]}"></span>'
            f"{_text(label)}</span>"
        )
    for value in (0.0, 0.5, 1.0):
        drawn.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for tick in sorted({low, -1.0, 0.0, 1.0, high}):
        drawn.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 32}" text-anchor="middle">{dose(tick)}</text>')
    drawn.append(
        f'<line class="dose" x1="{x(strength):.1f}" x2="{x(strength):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
        f'stroke="currentColor" stroke-width="2" data-strength="{strength:g}"/>'
        f'<text x="{min(x(strength), _WIDTH - 60):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">now {dose(strength)}</text>'
    )
    title = f"Measured curve of {_text(name)}; the line is at the present strength, {dose(strength)}; grey is the safe band."
    return (
        f'<div class="gh"><h2>{_text(name)}: as measured</h2><p class="key">{"".join(key)}</p>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">{"".join(drawn)}</svg></div>'
    )


def _measured(report: Report | None) -> SplitReport | None:
    splits = report.splits if report else {}
    return next((splits[name] for name in ("test", "eval", *splits) if name in splits and splits[name].curve), None)


def words(found: Sequence[Word], classes: tuple[str, str]) -> str:
    """Return a text whose words are coloured by feature value: blue for the first class, orange for the second."""
    first, second = classes
    parts = []
    for word in found:
        if word.h is None:
            parts.append(_text(word.text, 4000, keep=True))
            continue
        red, green, blue = (59, 111, 212) if word.h > 0 else (222, 120, 40)
        mark = "underline" if abs(word.h) >= 0.5 else "none"
        parts.append(
            f'<span class="word" title="h = {word.h:+.2f}" style="background:rgba({red},{green},{blue},'
            f'{0.45 * abs(word.h):.2f});text-decoration:{mark}">{_text(word.text)}<sub>{word.h:+.2f}</sub></span>'
        )
    key = f"Blue, above 0: {_text(first)}. Orange, below 0: {_text(second)}. Underlined: |h| ≥ 0.5."
    return f'<div class="gh"><p class="text">{"".join(parts)}</p><p>{key}</p></div>'


def _text(value: str, most: int = 80, *, keep: bool = False) -> str:
    return value if keep and value.isspace() else safe(value, most)
