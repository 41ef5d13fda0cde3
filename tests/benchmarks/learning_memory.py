"""Peak memory of learning a decoder, over that of the base model: each in a process of its own.

    python -m tests.benchmarks.learning_memory [masked | causal | minilm | FOLDER OF A BASE] ...

Two batches of 16 rows; for `diagonal` and `natural`, what 16 neutral texts and the own texts of 16 rows need, too. Comparing
decoders on validation rows is not included: it is what any evaluation takes.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer

from gradiend_hub.base_model import load_base_model
from gradiend_hub.data import Row, read_rows
from gradiend_hub.gradients import (
    FactorReader,
    GradientReader,
    Scope,
    diagonal_fisher,
    kronecker_factors,
    read_factors,
    read_pair,
    select_parameters,
)
from gradiend_hub.objectives import Objective, PairBatch, examples_of, make_objective
from gradiend_hub.solvers import ClosedFormSolver, Sketching, SketchSolver, Solution, damage_aware, make_solver

from .bench_damage import DECODERS, RANK
from .measure import EXAMPLES, MODELS, peak_growth, read_jsonl

ROWS, BATCHES = 16, 2


def growth(folder: Path, decoder: str) -> float:
    """MiB that a process grew at most while it learned a decoder."""
    torch.set_num_threads(1)
    base = load_base_model(folder).float().eval()
    objective = make_objective(base, AutoTokenizer.from_pretrained(folder))
    given = random.Random(0).sample(read_jsonl(EXAMPLES / "data" / "pronouns" / "train.jsonl"), BATCHES * ROWS)
    rows = read_rows(given, ["3SG", "3PL"], read=objective.read, what="rows")
    texts = [row["text"] for row in read_jsonl(EXAMPLES / "data" / "pronouns" / "neutral.jsonl")[:ROWS]]
    examples = examples_of(objective, rows, what="rows")
    batches = [objective.collate_pairs(examples[i::BATCHES]) for i in range(BATCHES)]
    scope = Scope.dense(select_parameters(base))
    with torch.no_grad():  # what every pass needs besides is there before
        objective.losses(base, batches[0])
    by_vectors = partial(_by_vectors, decoder, scope, objective, batches, texts, rows[:ROWS])
    return peak_growth(
        partial(_by_factors, scope, objective, batches, texts, rows[:ROWS], base)
        if decoder == "natural"
        else partial(by_vectors, base)
    )


def _by_vectors(
    decoder: str, scope: Scope, objective: Objective, batches: list[PairBatch], texts: list[str], rows: list[Row],
    base: torch.nn.Module,
) -> Solution:  # fmt: skip
    solver = make_solver("autoencoder" if decoder == "autoencoder" else "closed_form", scope.size)
    optimizer = torch.optim.AdamW(solver.parameters(), lr=0.1) if solver.needs_optimizer else None
    with GradientReader(base, scope, reuse=True) as reader:
        for number, batch in enumerate(batches):
            solver.observe(*read_pair(reader, objective, batch), 1.0 - 2 * number)
            if optimizer is not None:
                optimizer.step()
        found = solver.solutions()[0]
        if decoder == "diagonal":
            assert isinstance(solver, ClosedFormSolver)
            found = damage_aware(found, diagonal_fisher(reader, objective, texts, rows), 1.0)
    return found


def _by_factors(
    scope: Scope,
    objective: Objective,
    batches: list[PairBatch],
    texts: list[str],
    rows: list[Row],
    base: torch.nn.Module,
) -> object:
    sketching = Sketching({name: tuple(p.shape) for name, p in scope.parameters.items()}, RANK)
    solver = SketchSolver(sketching, scope.size)
    sums = solver.room()
    with FactorReader(base, scope) as reader:
        for number, batch in enumerate(batches):
            sums.zero_()
            read_factors(
                reader,
                objective,
                batch,
                {"alternative": partial(sketching.add, sums[0]), "diff": partial(sketching.add, sums[1])},
            )
            solver.take(sums, 1.0 - 2 * number, ROWS)
        return solver.solutions(), kronecker_factors(reader, objective, texts, rows)


def main(bases: list[str]) -> None:
    """Print a table of all decoders on some base models."""
    print("| base | parameters, MiB | " + " | ".join(DECODERS) + " |")
    print("|---|---|" + "---|" * len(DECODERS))
    for name in bases:
        folder = MODELS.get(name, Path(name))
        size = sum(p.nbytes for p in load_base_model(folder).parameters()) / 2**20
        cells = []
        for decoder in DECODERS:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                cells.append(f"{pool.submit(growth, folder, decoder).result():,.0f} MiB")
        print(f"| {folder.name} | {size:,.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["masked", "causal"])
