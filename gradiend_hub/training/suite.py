"""`DirectionSuite`: many directions between many classes, learned from one stream of gradients."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import PROBES_FILE
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.base_model import load_base_model, original_parameters
from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.gradients import GradientReader
from gradiend_hub.objectives import Batch, Objective
from gradiend_hub.progress import progress

from .args import GradiendTrainingArguments
from .suite_rows import Pair, Record, SharedBatch, SharedRows, pairs_of
from .trainer import GradiendTrainer

logger = logging.getLogger(__name__)

SUITE_FILE, STATE_FILE = "gradiend_suite.json", "suite_state.safetensors"


class DirectionSuite:
    """Learns a direction for each of many pairs of classes of one base model. A row's forward pass serves all of them.

    A suite that was stopped at any point goes on: directions that are saved are not learned again, and what was learned of
    the others is kept from the end of the stream on. A direction does not depend on which others are still to be learned.

    Args:
        model: the base model, or where it is.
        args: of every direction; `output_dir` gets a folder for each. Only solvers that need no optimizer share a stream:
            "closed_form" (use it unless you know why not) and "ridge".
        train_dataset: rows of all classes; a text with several alternatives has a row for each.
        config: fields of `GradiendConfig` for every direction, e.g. `scope`; its classes are the suite's to set.
        pairs: which directions, as of `pairs_of`.
        merged: classes that are several of the rows', as of `pairs_of`.
        identities: let each direction read texts of the other classes as rows of no feature (ridge learns to be silent).
        eval_dataset: rows of all classes that the unit is chosen on.
        test_dataset: rows of all classes that are measured on in the end.
        neutral_dataset: sentences that damage is measured on, as of `GradiendTrainer`.
        neutral_train_dataset: sentences that are learned from, as of `GradiendTrainer`.

    Raises:
        ConfigError: another solver, a density below 1, or pairs that cannot be meant.
        DataError: a row is unusable, or a direction has no rows of a class.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        args: GradiendTrainingArguments,
        *,
        train_dataset: Iterable[Record],
        config: Mapping[str, Any] | None = None,
        pairs: str | Sequence[Sequence[str]] = "all",
        merged: Mapping[str, Sequence[str]] | None = None,
        identities: bool = False,
        eval_dataset: Iterable[Record] | None = None,
        test_dataset: Iterable[Record] | None = None,
        neutral_dataset: Iterable[dict[str, Any]] | None = None,
        neutral_train_dataset: Iterable[dict[str, Any]] | None = None,
        processing_class: Any = None,
    ) -> None:
        self.args, self.fields, self.identities = args, dict(config or {}), identities
        _check(args, self.fields)
        self.base_model = model if isinstance(model, nn.Module) else load_base_model(model)
        self.rows = SharedRows(list(train_dataset))
        if len(self.rows.classes) < 2:
            raise ConfigError(f"A suite needs rows of at least two classes, found {self.rows.classes}.")
        self.pairs = pairs_of(self.rows.classes, pairs, merged)
        self.processing_class = processing_class
        self._eval = None if eval_dataset is None else list(eval_dataset)
        self._test = None if test_dataset is None else list(test_dataset)
        self._neutral = None if neutral_dataset is None else list(neutral_dataset)
        self._neutral_train = None if neutral_train_dataset is None else list(neutral_train_dataset)
        self.seconds: dict[str, float] = {}

    @property
    def folders(self) -> dict[str, Path]:
        """Folder of each direction."""
        return {pair.name: Path(self.args.output_dir, pair.name) for pair in self.pairs}

    @property
    def pending(self) -> list[Pair]:
        """Directions that are not saved whole: what was learned of one is removed when its last file is written."""

        def saved(folder: Path) -> bool:
            return (folder / PROBES_FILE).is_file() and not (folder / STATE_FILE).is_file()

        return [pair for pair in self.pairs if not saved(self.folders[pair.name])]

    def train(self) -> dict[str, Path]:
        """Learn, measure and save every direction that is not saved yet.

        Returns:
            Folder of each direction.

        Raises:
            ConfigError: The output directory belongs to another suite.
        """
        self._claim()
        trainers = {pair.name: self._trainer(pair) for pair in self.pending}
        to_learn = {n: t for n, t in trainers.items() if not (self.folders[n] / STATE_FILE).is_file()}
        start = time.perf_counter()
        if to_learn:
            self._stream(to_learn)
        self.seconds["stream"] = time.perf_counter() - start
        steps = len(self.rows.batches(self.args.train_batch_size, self.args.row_seed))
        for name, trainer in trainers.items():
            state = self.folders[name] / STATE_FILE
            trainer.model.load_state_dict(load_file(state))
            trainer.adopt(steps, self.seconds["stream"] / max(len(to_learn), 1))
            self._finish(trainer)
            state.unlink()
            logger.info("%s is saved in %s", name, self.folders[name])
        return self.folders

    def _finish(self, trainer: GradiendTrainer) -> None:
        """Measure a direction and save it."""
        if self._eval is not None:
            trainer.evaluate()
        if self._test is not None:
            trainer.evaluate_test()
        trainer.save_model(_internal_call=True)

    def _trainer(self, pair: Pair) -> GradiendTrainer:
        """The trainer of one direction, whose solver the stream feeds."""

        def own(records: Sequence[Record] | None) -> list[dict[str, Any]] | None:
            return None if records is None else [found for r in records if (found := pair.of(r)) is not None]

        args = copy.copy(self.args)
        args.output_dir, args.overwrite_output_dir = str(self.folders[pair.name]), True
        trainer = _OfWholeVectors(
            self.base_model,
            GradiendConfig(**{**self.fields, "feature_classes": [pair.first, pair.second]}),
            args,
            train_dataset=own(self.rows.records) or [],
            eval_dataset=own(self._eval),
            test_dataset=own(self._test),
            neutral_dataset=self._neutral,
            neutral_train_dataset=self._neutral_train,
            processing_class=self.processing_class,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _claim(self) -> None:
        """Write down what this suite is, or refuse a folder of another one."""
        folder = Path(self.args.output_dir)
        said = {
            "pairs": [[p.first, p.second, dict(p.members)] for p in self.pairs],
            "fields": self.fields,
            "solver": self.args.solver,
            "decoder": self.args.decoder,
            "batch": self.args.train_batch_size,
            "seed": self.args.row_seed,
            "identities": self.identities,
            "rows": _digest(self.rows.records),
            "measured": _digest([*(self._eval or ()), *(self._neutral or ()), *(self._neutral_train or ())]),
            "base": _identity(self.base_model),
        }
        path, said = folder / SUITE_FILE, json.loads(json.dumps(said, default=str))
        if path.is_file():
            before = None
            with suppress(OSError, ValueError):
                before = json.loads(path.read_text(encoding="utf-8"))
            if before and isinstance(before, dict) and all(said.get(n) == value for n, value in before.items()):
                return
            if not self.args.overwrite_output_dir:
                raise ConfigError(
                    f"{folder} holds a suite of another base model, of other directions, rows or arguments. Use another "
                    "output_dir, remove it, or set overwrite_output_dir."
                )
            for place in self.folders.values():  # so that nothing of the other suite is taken for this one's
                for file in (STATE_FILE, PROBES_FILE):
                    (place / file).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(said, indent=1, ensure_ascii=False, sort_keys=True)
        (folder / f".{SUITE_FILE}").write_text(text, encoding="utf-8")
        (folder / f".{SUITE_FILE}").replace(path)

    def _stream(self, trainers: Mapping[str, GradiendTrainer]) -> None:
        """Feed the solvers of some directions, and keep their state."""
        children = [_Child(pair, trainers[pair.name], self.rows) for pair in self.pairs if pair.name in trainers]
        first = next(iter(trainers.values()))
        batches = self.rows.batches(self.args.train_batch_size, self.args.row_seed)
        source, target = first.gradiend_config.source, first.gradiend_config.target
        with GradientReader(self.base_model, first.scope) as reader:
            for batch in progress(batches, "learning", len(batches)):
                wanted = {c for child in children for c in batch.rows if child.label(batch.factual_class, c)}
                silent = [c for c in children if self.identities and batch.factual_class not in c.pair.members]
                if not wanted and not silent:
                    continue
                factual, others = self._gradients(reader, first.objective, batch, sorted(wanted))
                for other, alternative in others.items():
                    named = {"factual": factual, "alternative": alternative, "diff": factual - alternative}
                    for child in children:
                        child.observe(batch, other, named[source], named[target])
                for child in silent:
                    child.trainer.model.observe(factual, torch.zeros_like(factual), 0.0)
        for child in children:
            folder = self.folders[child.pair.name]
            folder.mkdir(parents=True, exist_ok=True)
            state = {name: value.contiguous() for name, value in child.trainer.model.state_dict().items()}
            save_file(state, folder / f".{STATE_FILE}")
            (folder / f".{STATE_FILE}").replace(folder / STATE_FILE)

    def _gradients(
        self, reader: GradientReader, objective: Objective, batch: SharedBatch, wanted: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """g_f of a batch, and g_a for each wanted class of alternatives: one forward pass where the inputs are the same."""
        pairs = {}
        for c in wanted or list(batch.rows)[:1]:
            examples = [objective.example(objective.read(self.rows.records[i])) for i in batch.rows[c]]
            pairs[c] = objective.collate_pairs(examples).to(reader.device)
        one = next(iter(pairs.values()))
        log_probs = objective.log_probs(reader.model, one.factual)
        shared = {c: pair for c, pair in pairs.items() if pair.shared and c in wanted}
        factual = reader.read(self._loss(objective, log_probs, one.factual, batch), retain_graph=bool(shared))
        found = {}
        for number, (c, pair) in enumerate(shared.items()):
            loss = self._loss(objective, log_probs, pair.alternative, batch)
            found[c] = reader.read(loss, retain_graph=number < len(shared) - 1)
        for c, pair in pairs.items():
            if c in wanted and c not in shared:
                alternative = objective.log_probs(reader.model, pair.alternative)
                found[c] = reader.read(self._loss(objective, alternative, pair.alternative, batch))
        return factual, found

    def _loss(self, objective: Objective, log_probs: Tensor, slots: Batch, batch: SharedBatch) -> Tensor:
        """Mean loss of a batch's slots; raises `TrainingError` where the base model computes NaN."""
        loss = objective.nll(log_probs, slots.labels).mean()
        if not bool(loss.isfinite()):
            row = self.rows.records[next(iter(batch.rows.values()))[0]]
            raise TrainingError(
                f"The base model's loss is not finite for one of {len(slots)} texts of {batch.factual_class}, the first of "
                f"which is {str(row['masked'])[:60]!r}. Leave that text out, or load the base model in float32."
            )
        return loss


class _OfWholeVectors(GradiendTrainer):
    """A trainer whose solver takes whole gradients, as the stream has them: a rank is cut in the end, not sketched."""

    def _sketching(self, args: GradiendTrainingArguments) -> None:
        super()._sketching(args)


class _Child:
    """A direction of a suite while the stream feeds it."""

    def __init__(self, pair: Pair, trainer: GradiendTrainer, rows: SharedRows) -> None:
        self.pair, self.trainer = pair, trainer
        own = [number for number, record in enumerate(rows.records) if pair.of(record) is not None]
        self._numbers = {number: place for place, number in enumerate(own)}

    def label(self, factual: str, alternative: str) -> float:
        """The label of a transition between two classes of rows; 0 if it is none of this direction's."""
        of, to = self.pair.members.get(factual), self.pair.members.get(alternative)
        if of is None or to is None or of == to:
            return 0.0
        read = to if self.trainer.gradiend_config.source == "alternative" else of
        return 1.0 if read == self.pair.first else -1.0

    def observe(self, batch: SharedBatch, alternative: str, source: Tensor, target: Tensor) -> None:
        """Take in a gradient pair, if it is one of this direction's."""
        label = self.label(batch.factual_class, alternative)
        if label:
            rows = [self._numbers[i] for i in batch.rows[alternative]]
            self.trainer.take(source, target, label, rows)


def _check(args: GradiendTrainingArguments, fields: Mapping[str, Any]) -> None:
    if args.solver not in ("closed_form", "ridge"):
        raise ConfigError(
            f"A suite shares one stream among solvers without an optimizer: closed_form or ridge, not {args.solver!r}."
        )
    if fields.get("density", 1.0) != 1.0:
        raise ConfigError(
            "A suite's directions share their coordinates: leave density at 1, and use scope or final_density."
        )
    if args.gradient_store or args.world_size > 1 or args.push_to_hub:
        raise ConfigError("A suite learns in one process, without a gradient_store, and is pushed when it is whole.")
    if "feature_classes" in fields:
        raise ConfigError("config.feature_classes: the classes of a suite are those of its rows; name them in pairs.")


def _identity(base: nn.Module) -> str:
    """Digest some weights of a base model, which tell it from others."""
    digest = hashlib.sha256()
    for name, values in sorted(Fingerprint.of(original_parameters(base)).samples.items()):
        digest.update(name.encode() + values.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _digest(records: Sequence[Record]) -> str:
    text = json.dumps([dict(record) for record in records], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
