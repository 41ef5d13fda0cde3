"""Compares the vectors of a file by the reference package (gradiend 0.2.3), and prints seconds and matrices as JSON.

Started by `bench_comparison` with the interpreter of an environment that holds the reference; nothing of this project is
imported here. Arguments: a safetensors file with `I.places` (int64, sorted) and `I.values` (float32) for I = 0, 1, …; the
number of elements of the one parameter that they lie in; k of the measures of the k largest; measures.
"""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
from gradiend.comparison import compute_similarity_matrix  # type: ignore[import-not-found]
from gradiend.model import ParamMappedGradiendModel  # type: ignore[import-not-found]
from safetensors.torch import load_file


def model(places: torch.Tensor, values: torch.Tensor, elements: int) -> Any:
    """A pruned model of the package with these decoder weights."""
    spec = {"weight": {"shape": (elements,), "repr": "indices", "indices": places}}
    made = ParamMappedGradiendModel(len(values), 1, spec)
    with torch.no_grad():
        made.decoder[0].linear.weight.copy_(values[:, None])
    return made


def main() -> None:
    """Print `{measure: {"seconds": CPU seconds, "matrix": [[...]]}}`."""
    file, elements, top, measures = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    stored = load_file(file)
    bare = {str(i): model(stored[f"{i}.places"], stored[f"{i}.values"], elements) for i in range(len(stored) // 2)}
    wrapped = {name: SimpleNamespace(gradiend=one) for name, one in bare.items()}
    found = {}
    for measure in measures:
        given = bare if measure == "topk_overlap" else wrapped
        start = time.process_time()
        table = compute_similarity_matrix(
            given, measure=measure, part="decoder-weight", topk=top if measure.endswith("overlap") else None
        )
        found[measure] = {"seconds": time.process_time() - start, "matrix": table["matrix"]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
