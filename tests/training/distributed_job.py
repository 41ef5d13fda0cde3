"""What each process of a distributed run does: trains in FOLDER, with the options of each job that is given as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tests.training.support import arguments, trainer_of

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT: dict[str, Any] = {
    "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4, "keep_checkpoints": True,
    "save_total_limit": 2,
}  # fmt: skip


def bundled(name: str) -> Dataset:
    lines = (EXAMPLES / "data" / "pronouns" / f"{name}.jsonl").read_text().splitlines()
    return Dataset.from_list([json.loads(line) for line in lines])


def job(
    folder: Path, *, solver: str, max_steps: int, resume: str | None = None, measure: bool = False, **more: Any
) -> None:
    """Train and save. Each process leaves a note of what it held and read."""
    data: dict[str, Any] = {name: bundled(name) for name in ("train", "validation")}
    args = arguments(folder / solver, solver=solver, max_steps=max_steps, **(SHORT | more))
    base = EXAMPLES / "base_models" / "masked"
    texts: dict[str, Any] = {}
    if args.decoder == "natural":
        texts = {"neutral": bundled("neutral"), "neutral_train_dataset": bundled("neutral").select(range(20, 28))}
        texts["eval_dataset"] = data["validation"].select(range(12))
    # no softmax depends on a key bias: its gradient is rounding error, which Adam takes for as good as any other
    trainer = trainer_of(base, folder / solver, data, args=args, layers="3", exclude=["*key.bias"], **texts)
    if measure:
        trainer.dry_run()
    trainer.train(resume_from_checkpoint=resume)
    figures = {}
    if measure:
        texts = bundled("neutral").select(range(4))
        figures = trainer.evaluate(data["validation"].select(range(8)), neutral_dataset=texts, metric_key_prefix="few")
    trainer.save_model()
    state = sum(x.numel() for x in trainer.model.state_dict().values())
    found = {"processes": args.world_size, "state": state, "correlation": figures.get("few_correlation")}
    (folder / f"{solver}-{args.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for options in json.loads(sys.argv[2]):
        job(Path(sys.argv[1]), **options)
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may outlive the interpreter, and its teardown then aborts the process
