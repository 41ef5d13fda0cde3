"""Account of every text that was read: nothing is dropped without being counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradiend_hub.printable import aligned


@dataclass
class Funnel:
    """Counts of what was left after each filter.

    Attributes:
        steps: (name, what is counted, how many are left), in the order of the filters.
        neutral: what became of the texts without the feature, if any were asked for.
    """

    steps: list[tuple[str, str, int]] = field(default_factory=list)
    neutral: Funnel | None = None

    def start(self, name: str, unit: str, count: int) -> None:
        """A first step, or one that counts something else: texts become sentences, and those rows."""
        self.steps.append((name, unit, count))

    def drop(self, name: str, count: int) -> None:
        """`count` of the last step's were left out. A filter that left out none is not listed."""
        if count:
            _, unit, left = self.steps[-1]
            self.steps.append((name, unit, left - count))

    @property
    def kept(self) -> int:
        return self.steps[-1][2]

    def rows(self) -> list[tuple[str, str, str]]:
        """(step, left, dropped) as text, for tables."""
        table = []
        for number, (name, unit, left) in enumerate(self.steps):
            before = self.steps[number - 1] if number else None
            dropped = f"−{before[2] - left:,}" if before and before[1] == unit and left <= before[2] else ""
            table.append((name, f"{left:,} {unit}", dropped))
        return table

    def __str__(self) -> str:
        return "\n".join([aligned(self.rows()), *([str(self.neutral)] if self.neutral else [])])
