"""`DirectionSet`: several directions of one base model, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gradiend_hub import notebook
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import WEIGHTS_FILE
from gradiend_hub.base_model import check_base_model, load_base_model, load_recorded_base, original_parameters
from gradiend_hub.errors import ConfigError
from gradiend_hub.printable import printable

from .artifact_tables import ArtifactTables, edits
from .checkpoints import Drift, Mixture, changed, decompose
from .clusters import Clusters, average_linkage
from .combining import Combination, check_weights, combined, conflicts, described_sum, projected
from .effects import measure_effects
from .encodings import CrossEncodings, Encoder, encode_all
from .judging import controls_of
from .members import Member, named_sources, read_member, require_one_base
from .rows import Records, SetRows, measured_references
from .similarity import MEASURES, Sides
from .tables import Matrix, Profile
from .vectors import Array, Frame, Of, Vectors, largest, products

HELD_BYTES = 3 * 2**28
"""Bytes of decoders that are kept in memory; those of larger sets are read anew whenever they are compared."""


class DirectionSet:
    """Directions of one base model, by name. Nothing is loaded but what a comparison needs.

    Args:
        members: the directions.
        base_model: their base model, or where it is; by default the one that the first direction names, loaded when it is
            needed.
        allow_related: accept directions of a fine-tuned relative.
        processing_class: the base model's tokenizer (or image processor); default: the one beside the base model.

    Raises:
        ConfigError: No directions, or two of one name.
        BaseModelMismatchError: Two are of different base models, or nothing says that they are of one.
    """

    def __init__(
        self,
        members: Sequence[Member],
        base_model: nn.Module | str | Path | None = None,
        *,
        allow_related: bool = False,
        processing_class: Any = None,
    ) -> None:
        names = [member.name for member in members]
        if not names:
            raise ConfigError("There are no directions to compare; name at least one folder or repository.")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"Two directions are called {twice[0]!r}; give each a name of its own.")
        self.members, self._base, self.allow_related = tuple(members), base_model, allow_related
        self.processing_class = processing_class
        self.notes: tuple[str, ...] = ()
        if isinstance(base_model, nn.Module):
            for member in members:
                check_base_model(base_model, member.direction, allow_related=allow_related)
        else:
            self.notes = tuple(require_one_base(members, allow_related=allow_related))
        self.frame = Frame.of([member.shapes for member in members])
        self._tables = ArtifactTables(self.members, self.frame, self.notes)

    @classmethod
    def from_pretrained(
        cls,
        directions: Sequence[str | Path] | Mapping[str, str | Path],
        base_model: nn.Module | str | Path | None = None,
        *,
        allow_related: bool = False,
        processing_class: Any = None,
        **hub: Any,
    ) -> DirectionSet:
        """Read directions from folders or the Hub.

        Args:
            directions: folders, repositories `USER/NAME`, or folders in one, `USER/NAME/FOLDER`; a mapping gives them names
                of your own. Otherwise each is called by the last part of its path that tells it from the others.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            ArtifactError: A direction is missing, or a file of it is unusable.
        """
        members = [read_member(name, source, **hub) for name, source in named_sources(directions).items()]
        files = [member.folder / WEIGHTS_FILE for member in members if member.folder is not None]
        if sum(file.stat().st_size for file in files) <= HELD_BYTES:
            members = [replace(member, direction=_loaded(member.direction)) for member in members]
        return cls(members, base_model, allow_related=allow_related, processing_class=processing_class)

    @classmethod
    def from_directions(
        cls, directions: Mapping[str, tuple[Direction, GradiendConfig]], base_model: Any = None, **options: Any
    ) -> DirectionSet:
        """Compare directions that are in memory; options as of the class."""
        for name, given in directions.items():
            if not (isinstance(given, tuple) and [type(part) for part in given] == [Direction, GradiendConfig]):
                raise ConfigError(
                    f"{name!r}: expected a direction with its configuration, (Direction, GradiendConfig), found "
                    f"{type(given).__name__}. Directions in files are read by from_pretrained."
                )
        return cls([_in_memory(name, *given) for name, given in directions.items()], base_model, **options)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the directions."""
        return tuple(member.name for member in self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, name: str) -> Member:
        found = next((member for member in self.members if member.name == name), None)
        if found is None:
            raise ConfigError(f"There is no direction {name!r} in this set; it has {', '.join(self.names)}.")
        return found

    def __repr__(self) -> str:
        return f"DirectionSet({', '.join(printable(name, 80) for name in self.names)})"

    def _repr_html_(self) -> str:
        head = ["direction", "strength > 0", "strength < 0", "read from"]
        rows = [(m.name, [*(m.config.feature_classes or ["", ""]), str(m.source or "memory")]) for m in self.members]
        return notebook.table(f"{len(self.members)} directions", head, rows) + notebook.lines(self.notes)

    # ------------------------------------------------------------------------------------------- from the artifacts alone

    def similarity(
        self,
        measure: str = "cosine",
        *,
        of: Of = "decoder",
        top_k: int | float = 1000,
        by: str | None = None,
    ) -> Matrix | Profile:
        """Measure how alike the directions are, oriented so that each raises its first class.

        Args:
            measure: "cosine" (signed), "overlap" or "mass_overlap" of the largest entries, "spearman", or "fisher_cosine":
                the cosine in the metric of the Fisher information that damage-aware directions carry.
            of: decoder or encoder weights.
            top_k: number of largest entries, or their share.
            by: a table for each "layer" or "component".

        Returns:
            The table, with the null of coin directions and the ceiling of split halves; with `by`, one for each part.

        Raises:
            ConfigError: An unknown measure, or one that these directions do not allow; the message says which they do.
        """
        if measure not in MEASURES or of not in ("decoder", "encoder"):
            known = ", ".join(MEASURES)
            raise ConfigError(
                f"similarity: expected one of {known}, of 'decoder' or 'encoder'; found {measure!r}, {of!r}."
            )
        return self._tables.similarity(measure, of, top_k, by)

    def predicted_effects(self) -> Matrix:
        """Predict from the artifacts alone what each direction at strength 1 does to each feature.

        [i, j] is the change of the mean log-odds of j's first class over its second, to first order, when i is applied.
        """
        return self._tables.predicted(range(len(self)))

    def largest(self, name: str, top_k: int | float = 1000, *, of: Of = "decoder") -> Array:
        """Places of a direction's largest entries in the vector of all parameters, e.g. for `plot_venn`."""
        vectors = self._tables.oriented(of)
        return np.asarray(largest(vectors, self.names.index(self[name].name), top_k).places)

    def clusters(self, measure: str = "cosine", *, absolute: bool = False, **options: Any) -> Clusters:
        """Group the directions by average linkage; options as of `similarity`."""
        table = self.similarity(measure, **options)
        if isinstance(table, Profile):
            raise ConfigError("clusters: leave out `by`, which gives several tables.")
        return average_linkage(table, absolute=absolute)

    def decompose(self, direction: str | Path | tuple[Direction, GradiendConfig], **hub: Any) -> Mixture:
        """Take another direction apart into those of the set (least squares of the edits at strength 1).

        Args:
            direction: folder, repository, or direction and configuration.
            hub: as of `from_pretrained`.
        """
        given = direction if isinstance(direction, tuple) else None
        other = _in_memory("it", *given) if given else read_member("it", str(direction), **hub)
        require_one_base([*self.members, replace(other, name=str(direction)[:60])], allow_related=self.allow_related)
        frame = Frame.of([self.frame.shapes, other.shapes])
        controls, _ = controls_of(self.members)
        return decompose(
            self.names,
            edits(frame, self.members),
            edits(frame, [other]),
            Vectors(frame, controls) if controls else None,
        )

    def combine(
        self,
        weights: Mapping[str, float],
        *,
        orthogonal: bool = False,
        density: float | None = None,
        rank: int | None = None,
    ) -> Combination:
        """Add directions, each at a strength, as `GradiendModel.add_weighted_adapter` does, bit for bit.

        Args:
            weights: strength of each part.
            orthogonal: take from each part what moves the features of the others.
            density: share of the entries to keep of the sum.
            rank: largest rank of the matrices of the sum.

        Returns:
            Direction and conflict report; its `save_pretrained` writes the sum as an artifact.

        Raises:
            ConfigError: An unknown name, no weight but 0, or `orthogonal` for a direction whose gradient is not known.
        """
        check_weights(weights, self.names)
        chosen = [self.names.index(name) for name in weights]
        members = [self.members[i] for i in chosen]
        effects = self._tables.predicted(chosen)
        coefficients: Array = np.eye(len(members))
        if orthogonal:
            if missing := [member.name for member in members if member.name not in effects.columns]:
                raise ConfigError(
                    f"combine: orthogonal=True needs the gradient of each part, and that of {missing[0]} is not known. "
                    "Combine without it, or call measure_references first."
                )
            own = [effects.columns.index(member.name) for member in members]
            coefficients = projected(members, effects.values[:, own])
        direction = combined(members, list(weights.values()), coefficients.tolist())
        report = conflicts(members, weights, coefficients, effects, edits(self.frame, members), orthogonal=orthogonal)
        if density is not None:
            direction = direction.to_sparse(density)
        if rank is not None:
            direction = direction.to_rank(rank)
        return Combination(direction, report, *described_sum(members, weights, direction))

    # ------------------------------------------------------------------------------------------------ with the base model

    @cached_property
    def base_model(self) -> nn.Module:
        """The base model, loaded at the first use."""
        if isinstance(self._base, nn.Module):
            return self._base
        model = load_recorded_base(self.members[0].config, self._base)
        for member in self.members:
            check_base_model(model, member.direction, allow_related=self.allow_related)
        return model

    @cached_property
    def _rows(self) -> SetRows:
        return SetRows(self.members, self.base_model, self.processing_class)

    def cross_encodings(self, rows: Records | None = None) -> CrossEncodings:
        """Read every feature's rows by every direction's encoder.

        Args:
            rows: records by the name of the direction whose feature they are of; default: the probes that travel along.

        Raises:
            ConfigError: No direction has an encoder, or no rows are at hand.
        """
        found = self._rows.read(rows)
        readers = {member.name: member.reader for member in self.members if member.reader is not None}
        if not readers:
            raise ConfigError(
                "cross_encodings: none of these directions has an encoder. Similarities of decoders, predicted and measured "
                "effects need none."
            )
        encoders = []
        for name, reader in readers.items():
            on_base = check_base_model(self.base_model, reader, allow_related=self.allow_related)
            encoders.append(Encoder(reader.renamed(on_base), self[name].config.source))
        examples = [example for _, some in found.values() for example in some]
        h = encode_all(self.base_model, self._rows.objective, encoders, examples)
        without = [name for name in self.names if name not in readers]
        pairs = [(name, row) for name, (some, _) in found.items() for row in some]
        return CrossEncodings(
            tuple(readers),
            tuple(name for name, _ in pairs),
            tuple(row for _, row in pairs),
            np.array([1.0 if row.factual_class == self[name].classes[0] else -1.0 for name, row in pairs]),
            h,
            {name: self[name].classes for name in readers},
            ((f"Without an encoder: {', '.join(without)}.",) if without else ()) + self._rows.notes,
        )

    def measured_effects(self, rows: Records | None = None, *, strength: float = 1.0) -> Matrix:
        """Apply each direction, and read the change of each feature's log-odds; [i, j] as in `predicted_effects`.

        Args:
            rows: as of `cross_encodings`.
        """
        found = self._rows.read(rows)
        members = [replace(member, direction=_loaded(member.direction)) for member in self.members]
        values, errors = measure_effects(self.base_model, self._rows.objective, members, found, strength)
        counts = {len(examples) for _, examples in found.values()}
        note = f"Means over {min(counts)}…{max(counts)} rows; standard errors up to {np.nanmax(errors, initial=0):.2f}."
        name = f"measured change of log-odds at strength {strength:+g}"
        return Matrix(
            name, self.names, tuple(found), values, notes=(note, *self._tables.unmeasured(), *self._rows.notes)
        )

    def measure_references(self, rows: Records, *, batch_size: int = 16) -> DirectionSet:
        """Measure null and ceiling of directions that do not carry them, as a training does, from rows of each feature.

        Args:
            rows: records by the name of the direction whose feature they are of.

        Returns:
            The set with these references.
        """
        found = self._rows.read(rows)
        members = [
            measured_references(member, self.base_model, self._rows.objective, *found[member.name], batch_size)
            if member.name in found
            else member
            for member in self.members
        ]
        return DirectionSet(
            members, self.base_model, allow_related=self.allow_related, processing_class=self.processing_class
        )

    def compare_checkpoint(self, checkpoint: str | Path | nn.Module) -> Drift:
        """Measure how a fine-tune of the base model has moved along the directions.

        Args:
            checkpoint: folder or id of a checkpoint of the same architecture, or the model.

        Raises:
            BaseModelMismatchError: It lacks a parameter, or has it in another shape.
            ConfigError: It has the base model's own weights.
        """
        called = str(checkpoint) if isinstance(checkpoint, (str, Path)) else type(checkpoint).__name__
        model = checkpoint if isinstance(checkpoint, nn.Module) else load_base_model(checkpoint)
        change, base_norm = changed(original_parameters(self.base_model), model, self.frame, called)
        own, one = edits(self.frame, self.members), Vectors(self.frame, [change])
        mixture = decompose(self.names, own, one, None)
        controls, _ = controls_of(self.members)
        null = None
        if controls:
            reached = Sides(one, Vectors(self.frame, controls)).cosine()[0]
            null = float(np.quantile(np.abs(reached), 0.95, method="higher"))
        known, gradients = self._tables.gradients()
        effects = products(one, gradients)[0].tolist() if known else []
        norm = change.norm()
        return Drift(
            mixture.cosine,
            null,
            mixture.coefficients,
            {self.names[i]: effect for i, effect in zip(known, effects, strict=True)},
            mixture.explained,
            norm,
            norm / base_norm if base_norm else float("nan"),
            len(change.parameters),
        )


def _loaded(direction: Direction) -> Direction:
    return replace(direction, parameters=dict(direction.parameters))


def _in_memory(name: str, direction: Direction, config: GradiendConfig) -> Member:
    return Member(name, direction, config, direction if direction.has_encoder else None)
