"""A direction as a plain LoRA: how much of its effect that holds, and what it costs."""

from __future__ import annotations

import logging

from gradiend_hub.errors import ConfigError, first_line
from gradiend_hub.export import Loras, as_loras

from .control import instead
from .curve import WIDER
from .part import NotFiniteError
from .probe import StrengthProbe
from .records import LoraReport, StrengthPoint

logger = logging.getLogger(__name__)

WHOLE = 1 - 1e-6
"""Share of ‖Δ‖² that is all of it but for rounding in fp32."""


def measure_lora(probe: StrengthProbe) -> LoraReport | None:
    """Measure the active direction's LoRA at strengths ±1, beside what the probe has read of the direction.

    It is read on as much as its figures need: it does nearly what the direction does, so their difference varies little.
    What holds the whole change is not read: it is the direction.

    Returns:
        `None`, with a log that says why, where no parameter of the direction has a place in a LoRA, or where the model
        computes NaN.
    """
    model, base = probe.model, probe.measure(0.0)
    try:
        loras = as_loras(model.direction, model.active_peft_config, model.get_base_model())
        own = {sign: probe.measure(sign) for sign in (-1.0, 1.0)}
        found = own if not loras.left_out and loras.energy > WHOLE else _read(probe, loras)
    except (ConfigError, NotFiniteError) as error:
        logger.info("No LoRA is published beside the direction: %s", first_line(error))
        return None
    shares = {str(sign): _share(found[sign], point, base) for sign, point in own.items()}
    worst = {str(sign): point.worst(bound=False) for sign, point in found.items()}
    return LoraReport(
        rank=loras.rank,
        modules=len(loras.shapes),
        energy=loras.energy,
        left_out=len(loras.left_out),
        effect={sign: share for sign, share in shares.items() if share is not None},
        quality={sign: quality[1] for sign, quality in worst.items() if quality is not None},
    )


def _read(probe: StrengthProbe, loras: Loras) -> dict[float, StrengthPoint]:
    aside, (direction, fields) = probe.aside(like=True), loras.direction()
    with instead(probe.model, direction, **fields):
        return {sign: aside.measure(sign, WIDER) for sign in (-1.0, 1.0)}


def _share(lora: StrengthPoint, own: StrengthPoint, base: StrengthPoint) -> float | None:
    """The LoRA's change of the wanted class's probability by the direction's; `None` where that has no effect."""
    if own.effect is None or lora.effect is None:
        return None
    wanted, other = own.effect_of()
    before = base.probability[other][wanted]
    return (lora.effect - before) / (own.effect - before) if own.effect > before else None
