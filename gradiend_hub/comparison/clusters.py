"""Groups of directions that are alike: average linkage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform

from gradiend_hub import notebook
from gradiend_hub.errors import ConfigError

from .tables import Matrix, Written
from .vectors import Array


@dataclass(frozen=True, eq=False)
class Clusters(Written):
    """A hierarchy of directions by average linkage of the distance 1 − similarity.

    Attributes:
        names: the directions.
        measure: what their similarity is.
        tree: scipy's linkage matrix, [directions − 1, 4].
        order: numbers of the directions as the leaves of the tree stand, similar ones side by side.
    """

    names: tuple[str, ...]
    measure: str
    tree: Array
    order: tuple[int, ...]

    def groups(self, *, similarity: float | None = None, count: int | None = None) -> list[list[str]]:
        """Cut the tree: groups whose mean similarity is at least `similarity`, or `count` groups.

        Raises:
            ConfigError: Not exactly one of both is given, or it is no such number.
        """
        if (similarity is None) == (count is None):
            raise ConfigError("groups: give either `similarity` or `count`.")
        if count is not None and (type(count) is not int or count < 1):
            raise ConfigError(f"groups: count must be a whole number of at least 1, found {count!r}.")
        if similarity is not None and not math.isfinite(similarity):
            raise ConfigError(f"groups: similarity must be a finite number, found {similarity!r}.")
        if len(self.names) == 1:
            return [list(self.names)]
        if count is not None:
            labels = fcluster(self.tree, count, "maxclust")
        else:
            assert similarity is not None
            labels = fcluster(self.tree, 1 - similarity, "distance")
        found: dict[int, list[str]] = {}
        for number in self.order:
            found.setdefault(int(labels[number]), []).append(self.names[number])
        return list(found.values())

    def _repr_html_(self) -> str:
        joined = [f"{d:.2f}" for d in self.tree[:, 2]]
        found = ", ".join(self.names[number] for number in self.order)
        return notebook.lines([f"By {self.measure}: {found}", f"Distances at which groups join: {', '.join(joined)}"])

    def to_dict(self) -> dict[str, Any]:
        """Tree and order as JSON values."""
        ordered = [self.names[number] for number in self.order]
        return super().to_dict() | {"order": ordered}


def average_linkage(table: Matrix, *, absolute: bool = False) -> Clusters:
    """Cluster the directions of a symmetric table. A similarity that is not known counts as 0.

    Args:
        absolute: take opposite directions for alike.

    Raises:
        ConfigError: The table is not symmetric.
    """
    if not table.symmetric:
        raise ConfigError(
            f"Only a table of directions with themselves can be clustered, and {table.measure!r} is none."
        )
    values = np.nan_to_num(np.abs(table.values) if absolute else table.values)
    if len(table.rows) == 1:
        return Clusters(table.rows, table.measure, np.zeros((0, 4)), (0,))
    distances = 1 - (values + values.T) / 2
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(distances, checks=False), "average", optimal_ordering=True)
    return Clusters(table.rows, table.measure, tree, tuple(int(i) for i in leaves_list(tree)))
