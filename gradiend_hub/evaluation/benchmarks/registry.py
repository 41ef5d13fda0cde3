"""Bias benchmarks by name, before and after an edit."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gradiend_hub.data.loading import is_path
from gradiend_hub.errors import ConfigError, DataError, GradiendError, first_line
from gradiend_hub.evaluation.report import BenchmarkResult
from gradiend_hub.model import GradiendModel

from .association import association_test, read_sets
from .harness import HarnessTask
from .scoring import BenchmarkRun
from .sentence_pairs import crows_pairs, read_crows_pairs, read_winobias, winobias
from .stereoset import read_stereoset, stereoset
from .winogender import read_winogender, winogender

T = TypeVar("T")

BENCHMARKS: dict[str, tuple[Callable[..., BenchmarkRun], Callable[..., object], tuple[str, ...]]] = {
    "stereoset": (stereoset, read_stereoset, ("dev.json or Hub id",)),
    "crows-pairs": (crows_pairs, read_crows_pairs, ("CSV file or Hub id",)),
    "winobias": (
        winobias,
        read_winobias,
        ("pro-stereotypical file or Hub id:config", "anti-stereotypical file or Hub id:config"),
    ),
    "winogender": (winogender, read_winogender, ("templates.tsv", "occupations-stats.tsv")),
    "seat": (association_test, read_sets, ("JSON file",)),
    "weat": (association_test, read_sets, ("JSON file",)),
}
"""Function of each benchmark, the one that reads its data, and what data these are."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with its data.

    Attributes:
        name: a key of `BENCHMARKS`.
        sources: files or Hub ids, as many as the benchmark reads.
    """

    name: str
    sources: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Benchmark:
        """Read `NAME=SOURCE` or `NAME=SOURCE,SOURCE`.

        Raises:
            ConfigError: there is no such benchmark (the nearest name is given), or it reads another number of sources.
        """
        given, _, listed = text.partition("=")
        name = given.strip().casefold().replace("_", "-")
        if name not in BENCHMARKS:
            nearest = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(BENCHMARKS)}."
            raise ConfigError(f"There is no benchmark {given!r}: {hint}")
        wanted = BENCHMARKS[name][2]
        sources = tuple(source for source in (part.strip() for part in listed.split(",")) if source)
        if len(sources) != len(wanted):
            usage = ",".join(f"<{part}>" for part in wanted)
            raise ConfigError(f"Benchmark {text!r}: expected {name}={usage}, found {len(sources)} sources.")
        return cls(name, sources)

    def check(self) -> None:
        """Read the data, and score nothing.

        Raises:
            DataError: the sources are missing, or not the benchmark's data.
        """
        self._on_data(lambda: BENCHMARKS[self.name][1](*self.sources))

    def run(self, model: Any, tokenizer: Any, *, strength: float = 0.0) -> BenchmarkRun:
        """Score a model as it is; `strength` is only noted in the result.

        Raises:
            DataError: the sources are missing, or not the benchmark's data.
        """
        return self._on_data(lambda: BENCHMARKS[self.name][0](model, tokenizer, *self.sources, strength=strength))

    def _on_data(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; an error names the benchmark whose data are unusable."""
        for source, kind in zip(self.sources, BENCHMARKS[self.name][2], strict=True):
            if not Path(source).exists() and (
                "Hub id" not in kind or is_path(source) or source.endswith((".dev", ".test"))
            ):
                raise DataError(f"Benchmark {self.name}: the file {source} does not exist. Expected a {kind}.")
        try:
            return work()
        except GradiendError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
            first = first_line(error)
            raise DataError(
                f"Benchmark {self.name}: {' and '.join(map(repr, self.sources))} cannot be read as "
                f"{' and '.join(BENCHMARKS[self.name][2])} ({type(error).__name__}: {first})."
            ) from error


def side_effects(
    model: GradiendModel,
    tokenizer: Any,
    benchmarks: Sequence[Benchmark | HarnessTask],
    strengths: Sequence[float] = (-1.0, 0.0, 1.0),
) -> list[BenchmarkResult]:
    """Each benchmark at each strength; the model's strength is restored.

    Raises:
        DataError: a benchmark's data cannot be used.
    """
    results = []
    for benchmark in benchmarks:
        for strength in strengths:
            with model.strength_at(strength):
                results.append(benchmark.run(model, tokenizer, strength=strength).result)
    return results
