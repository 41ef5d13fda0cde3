"""Rows of the features of a set: those of a user, or the probes that travel with the directions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from gradiend_hub.artifact.files import PROBES_FILE
from gradiend_hub.artifact.probes import Probes
from gradiend_hub.base_model import base_commit, base_name
from gradiend_hub.data import Row, read_rows
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.evaluation import Report
from gradiend_hub.gradients import GradientReader, Scope, read_pair
from gradiend_hub.objectives import (
    Example,
    Objective,
    examples_of,
    make_objective,
    objective_class,
    objective_name,
)
from gradiend_hub.scope import parameters_of
from gradiend_hub.solvers import Shard, SplitMeans

from .members import Member
from .references import references_of

Records = Mapping[str, Iterable[Mapping[str, Any]]]
"""Records by the name of the direction whose feature they are of."""


class SetRows:
    """Reads rows for the directions of a set.

    Attributes:
        notes: which directions have no rows of their own.
    """

    def __init__(self, members: Sequence[Member], base: nn.Module, processor: Any = None) -> None:
        self.members, self.base, self._processor = members, base, processor
        self.notes: tuple[str, ...] = ()

    @cached_property
    def objective(self) -> Objective:
        """The objective of the directions, which read one head of the base model."""
        names = sorted({member.config.objective or "" for member in self.members})
        if len(names) > 1:
            raise ConfigError(
                f"These directions are of different objectives ({', '.join(names)}); compare those of one."
            )
        processor = self._processor
        if processor is None:
            name = base_name(self.base) or self.members[0].config.base_model_name_or_path
            if not name:
                raise ConfigError("The base model has no name, so its tokenizer is unknown. Pass processing_class.")
            kind = objective_class(objective_name(self.base, names[0] or None))
            processor = kind.load_processor(name, revision=base_commit(self.base))
        by_options: dict[str, Member] = {}
        for member in self.members:
            by_options.setdefault(json.dumps(member.config.objective_options or {}, sort_keys=True), member)
        first, *others = by_options.values()
        one = make_objective(self.base, processor, name=names[0] or None, options=first.config.objective_options)
        for other in others:
            found = make_objective(self.base, processor, name=one.name, options=other.config.objective_options)
            if found.key != one.key:
                raise ConfigError(
                    f"{first.name} and {other.name} read the base model by other options of {one.name!r} ({one.options} and "
                    f"{found.options}), so they have no common unit. Compare directions of the same options, or from their "
                    "artifacts alone."
                )
        return one

    def read(self, given: Records | None) -> dict[str, tuple[list[Row], list[Example]]]:
        """Rows and examples by direction.

        Raises:
            ConfigError: A name that is not in the set, or no rows for any of it.
            DataError: A row is unusable.
        """
        known = {member.name: member for member in self.members}
        if given is not None:
            if strange := [name for name in given if name not in known]:
                raise ConfigError(f"rows: there is no direction {strange[0]!r} in this set; it has {', '.join(known)}.")
            records: dict[str, list[Any]] = {name: list(rows) for name, rows in given.items()}
        else:
            records = {name: probes for name, member in known.items() if (probes := _probes(member))}
        if not records:
            raise ConfigError(
                "None of these directions carries probes, and no rows were given. Pass rows={NAME: records, …} by the name "
                "of the direction whose feature they are of."
            )
        missing = [name for name in known if name not in records]
        self.notes = (f"Without rows: {', '.join(missing)}.",) if missing else ()
        found = {}
        for name, some in records.items():
            read = read_rows(
                some,
                known[name].classes,
                read=self.objective.read,
                prepare=self.objective.prepare,
                what=f"rows of {name}",
                need_both=False,
            )
            found[name] = (read, examples_of(self.objective, read, what=f"rows of {name}"))
        return found


def _probes(member: Member) -> list[dict[str, Any]]:
    if member.folder is None or not (member.folder / PROBES_FILE).is_file():
        return []
    return Probes.load(member.folder).rows


def measured_references(
    member: Member, base: nn.Module, objective: Objective, rows: Sequence[Row], examples: Sequence[Example], size: int
) -> Member:
    """Measure what a training would have kept for comparisons, from rows of the feature.

    Args:
        size: rows in a gradient.

    Raises:
        DataError: A class has rows for fewer than two gradients.
    """
    config, shapes = member.config, member.shapes
    scope = Scope.dense(parameters_of(base, shapes))
    means = SplitMeans(Shard(scope.size), len(rows))
    with GradientReader(base, scope, reuse=True) as reader, torch.enable_grad():
        for name in config.feature_classes or ():
            of = [i for i, row in enumerate(rows) if row.factual_class == name]
            batches = [of[start : start + size] for start in range(0, len(of) - size + 1, size)]
            if len(batches) < 2:
                raise DataError(
                    f"rows of {member.name}: {name} has {len(of)} rows, and two halves of {size} rows a gradient need "
                    f"{2 * size}. Give more rows, or a smaller batch_size."
                )
            for batch in batches:
                pair = objective.collate_pairs([examples[i] for i in batch]).to(reader.device)
                _, target = read_pair(reader, objective, pair, source=config.target, target=config.target)
                means.observe(target, rows[batch[0]].label(config.feature_classes or (), config.source), batch)
    contrasts = means.contrasts()
    assert contrasts is not None
    references, found = references_of(contrasts, member.direction, scope, config)
    report = member.report or Report(list(member.classes), config.base_model_name_or_path or "unknown")
    return replace(member, references=references, report=replace(report, references=found))
