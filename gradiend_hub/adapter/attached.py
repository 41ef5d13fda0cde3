"""A direction as it is attached to a model: what all its side-cars share."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradiend_hub.artifact.config import GradiendConfig, check_strength


@dataclass(eq=False)
class AttachedDirection:
    """State of one adapter, kept once and referred to by every side-car.

    Attributes:
        config: Its configuration, under the parameter names of its artifact.
        stored_names: Parameter name in the model → in the artifact.
        strength: Current strength, in units of the artifact; the recommended one at first.
        feature_factor: Current feature factor.
    """

    config: GradiendConfig
    stored_names: dict[str, str]
    strength: float = field(init=False)
    feature_factor: float = field(init=False)

    def __post_init__(self) -> None:
        self.strength, self.feature_factor = self.config.strength, self.config.feature_factor

    @property
    def state(self) -> tuple[float, float]:
        """Strength and feature factor."""
        return self.strength, self.feature_factor

    def set(self, strength: float, feature_factor: float | None = None) -> None:
        """Take note of another strength (and feature factor, if given); nothing is written to the model.

        Raises:
            ConfigError: If one of them is no finite number.
        """
        for value in (strength, self.feature_factor if feature_factor is None else feature_factor):
            check_strength(value)
        self.strength = float(strength)
        if feature_factor is not None:
            self.feature_factor = float(feature_factor)

    def coefficients(self, scaling: float) -> tuple[float, float]:
        """Factors `(c_w, c_b)` of the decoder's weight and bias in a layer that scales by `scaling`."""
        return self.config.coefficients(self.strength * scaling, self.feature_factor)
