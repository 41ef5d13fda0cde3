"""`GradiendTrainer`: learn a direction with the habits of `transformers.Trainer`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.integrations import CodeCarbonCallback

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.references import References
from gradiend_hub.comparison.references import references_of
from gradiend_hub.data import require_classes
from gradiend_hub.errors import ConfigError
from gradiend_hub.folders import require_writable
from gradiend_hub.gradients import (
    Estimate,
    FactorReader,
    GradientReader,
    Scope,
    SkippedRows,
    prune,
    select_parameters,
    stacks,
)
from gradiend_hub.gradients.memory import resident_bytes, state_advised
from gradiend_hub.gradients.pairs import refuse_packed, silence
from gradiend_hub.objectives import make_objective, objective_name
from gradiend_hub.progress import shown, tell
from gradiend_hub.solvers import ClassMeans, Shard, Sketching, SketchSolver, Solver, SplitMeans, make_solver

from .args import GradiendTrainingArguments
from .base import config_for, name_the_base, opened_base, processor_of
from .checkpoints import (
    find_checkpoint,
    require_same_training,
    require_space,
    require_unused,
    training_key,
)
from .cost import predicted, seconds_of_the_rest
from .data import Datasets, Rows, TrainingData, columns_of, decided
from .measuring import MeasuringTrainer, require_metric
from .run import Reading, TrainingRun
from .saving import new_report, seed_records
from .solutions import as_direction
from .streams import FactorStream, Learn, RowBatches, pair_stream, row_sampler

logger = logging.getLogger(__name__)


class GradiendTrainer(MeasuringTrainer):
    """Learns the direction between two feature classes from the gradients of a frozen base model.

    What `Trainer` moves with its optimizer, saves in its checkpoints and resumes is the solver's state; the base model
    only delivers gradients. `train` leaves the direction in `output_dir` as it is (unless `save_strategy` is "no"), and
    `save_model` writes the whole artifact: report, self-test, card and figures, too.

    Args:
        model: the base model with its language-modelling head, or its path or Hub id (at the config's `revision`).
        config: feature classes and scope; see `GradiendConfig`. It is copied; the copy, `gradiend_config`, names this base.
        args: see `GradiendTrainingArguments`.
        train_dataset: rows with the columns `masked`, `factual`, `alternative`, `factual_class`, `alternative_class`. Of a
            stream without a length, as many are read as `max_steps` needs. Where a path, Hub id or data frame is given,
            here and below, it is opened.
        eval_dataset: rows of the same kind, on which the strength unit is chosen; or several sets by name, on the first of
            which it is chosen.
        neutral_dataset: sentences (`text`) without the feature, on which damage and calibration are measured.
        neutral_train_dataset: further sentences (`text`), from which a decoder learns what to spare; by default every other
            one of `neutral_dataset`, if these are at least 100, which is then measured on the rest.
        test_dataset: rows that only measure the result, by `evaluate_test`; they are checked before the training.
        test_neutral_dataset: sentences (`text`) beside them; by default those of `neutral_dataset`.
        damage_datasets: further data sets, by name, on which every evaluation reads damage: sentences (`text`), or, for a
            model that generates text, prompts (`prompt` or `messages`), whose replies by the base model an edit should leave
            likely. Prompts are put into the model's chat template if it has one; such a model gets a set "chat" of questions
            unless one of that name is given.
        processing_class: the base model's tokenizer, if it cannot be loaded from the base model's path.
        callbacks: as in `Trainer`.

    Raises:
        ConfigError, DataError, BaseModelError: before any training, when something cannot work.
    """

    optimizer: Any

    def __init__(
        self,
        model: nn.Module | str | Path,
        config: GradiendConfig,
        args: GradiendTrainingArguments,
        *,
        train_dataset: Rows,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        neutral_dataset: Rows | None = None,
        neutral_train_dataset: Rows | None = None,
        test_dataset: Rows | None = None,
        test_neutral_dataset: Rows | None = None,
        damage_datasets: Mapping[str, Rows] | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self._classes = require_classes(config.feature_classes)
        if args.should_save:
            require_writable(Path(args.output_dir))
        given = Datasets(
            train_dataset,
            eval_dataset,
            neutral_dataset,
            neutral_train_dataset,
            test_dataset,
            test_neutral_dataset,
            damage_datasets,
        ).opened()
        self.base_model = base = opened_base(model, config, args)
        config = self.gradiend_config = config_for(config, base, args)
        config.objective = objective_name(base, config.objective, columns_of(given.train_dataset))
        processor = processor_of(base, config.objective) if processing_class is None else processing_class
        self.objective = make_objective(
            base, processor, name=config.objective, options=config.objective_options, max_length=args.max_length
        )
        data = TrainingData.read(given, self.objective, config, args)
        config.fillers = data.fillers if any(data.fillers.values()) else None
        config.objective_options = self.objective.options or None  # some are found in the rows
        name_the_base(base, config, args)
        args, data = decided(args, config, data)
        require_metric(args, self._classes, list(data.eval_sets))
        self._skipped = SkippedRows(len(data.dataset))
        with shown(not args.disable_tqdm):
            self.scope = self._select(data, args)
            tell(logger, "%s", self.scope.table(base))
        self._run = TrainingRun(base, self.objective, config, args, self.scope, data)
        self._observes_targets = False
        self.report = new_report(self._run)
        self._direction: Direction | None = None
        self._references: References | None = None
        self._ended = False
        super().__init__(
            model=self._new_solver(args),
            args=args,
            data_collator=lambda rows: {"rows": rows},  # `Trainer` looks for names in its batches
            train_dataset=data.dataset,
            eval_dataset=given.eval_dataset,
            processing_class=processor,
            callbacks=callbacks,
        )
        if args.should_save:
            require_space(args.output_dir, self._disk_bytes(), "direction and checkpoints")

    def _select(self, data: TrainingData, args: GradiendTrainingArguments) -> Scope:
        """Select the parameters in scope, and the share of their coordinates that `density` asks for."""
        config, dataset = self.gradiend_config, data.dataset
        scope = Scope.dense(
            select_parameters(self.base_model, scope=config.scope, exclude=config.exclude, layers=config.layers)
        )
        if config.density == 1:
            return scope
        with GradientReader(self.base_model, scope) as reader:
            return prune(
                reader,
                self.objective,
                dataset.examples,
                dataset.labels,
                density=config.density,
                measure=args.importance,
                samples=args.importance_rows,
                skipped=self._skipped,
            )

    def _new_solver(self, args: GradiendTrainingArguments) -> Solver:
        seeds, rates = zip(*args.runs, strict=True)
        if args.rank is None or args.solver != "closed_form" or args.gradient_store:
            refuse_packed(self.scope)
        relative = None if args.learning_rates is None else [rate / args.learning_rate for rate in rates]
        shard = Shard.of_process(self.scope.size)
        vectors = (12 if args.solver == "autoencoder" else 5) * len(seeds) + 4 * args.comparable
        with state_advised(self.scope, state_vectors=vectors):
            solver = make_solver(
                args.solver, self.scope.size, seeds=seeds, rates=relative, shard=shard, sketching=self._sketching(args)
            )
        if args.decoder != "solver" and args.solver == "autoencoder":  # the others keep these means for themselves
            solver.target_means = ClassMeans(shard)
            self._observes_targets = True
        if isinstance(solver, SketchSolver):  # each process has rows of its own, so halves are one process's
            shard = Shard(solver.sketching.size)
        if args.comparable and not (isinstance(solver, SketchSolver) and args.world_size > 1):
            solver.split_means = SplitMeans(shard, len(self._run.data.dataset), args.row_seed)
        return solver.requires_grad_(False)  # derivatives are closed forms; nothing is to be wrapped for autograd

    def _sketching(self, args: GradiendTrainingArguments) -> Sketching | None:
        """Plan the sketches of a low-rank direction; the arguments are checked for the solvers that need none, too."""
        if args.rank is None:
            return None
        if self.scope.kept:
            of = 'the rank of decoder="natural"' if "rank" in args.decided else f"rank={args.rank}"
            raise ConfigError(f"{of} and density={self.gradiend_config.density}: choose one of both.")
        shapes = {name: tuple(parameter.shape) for name, parameter in self.scope.parameters.items()}
        if "rank" not in args.decided and all(len(shape) < 2 for shape in shapes.values()):
            raise ConfigError(
                f"rank={args.rank}: expected a matrix in scope, found vectors alone, which have no rank "
                f"({', '.join(sorted(shapes)[:3])}). Leave it out, or take matrices into the scope."
            )
        return Sketching(shapes, args.rank, seed=args.seed, stacked=stacks(self.base_model, self.scope))

    def create_accelerator_and_postprocess(self) -> None:
        """As `Trainer`'s, but nothing is wrapped for several processes: they share rows, not derivatives of a loss."""
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    # ------------------------------------------------------------------------------------------------------ training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`. A run that was stopped and resumed ends in the same direction, bit for bit.

        `resume_from_checkpoint=True` goes on with the last checkpoint that is complete.

        Raises:
            ConfigError: there is none, the one that is named is not complete, or the output directory is in use.
            TrainingError: the checkpoint is of another training; naming what differs.
        """
        self._key = training_key(self._run)
        if resume_from_checkpoint:
            found = find_checkpoint(self.args.output_dir, resume_from_checkpoint)
            require_same_training(found, self._key)
            resume_from_checkpoint = str(found)
        elif not self.args.overwrite_output_dir:
            require_unused(Path(self.args.output_dir))
        self.accelerator.wait_for_everyone()  # before another process writes there
        self._direction, self._ended = None, False
        self.report.splits.clear()
        self.report.converged, self.report.verdict = None, ""
        start, vectors = time.perf_counter(), self._state_vectors()
        advised = state_advised(self.scope, state_vectors=vectors)
        with self._kept("What was learned could not be finished"):
            with self._reader() as reader, self._shown(), advised:
                self._learn = self._learner(reader, self.model, vectors)
                output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
                if 0 < len(reader.silent) < len(self.scope.parameters):
                    logger.warning(silence(reader))
            self._ended = True
            self.report.seconds["train"] = time.perf_counter() - start
            self.report.energy_kwh = self._energy()
            self.report.steps = self.state.global_step
            self.report.history = [record for record in self.state.log_history if "step" in record]
            _ = self.direction  # of all processes: afterwards one alone may read it
            self._keep_direction()
        return output

    def _reader(self) -> GradientReader | FactorReader:
        """Make what reads the base model's gradients: by their factors, unless they are kept in a store."""
        if isinstance(self.model, SketchSolver) and not self.args.gradient_store:
            return FactorReader(self.base_model, self.scope)
        return GradientReader(self.base_model, self.scope, reuse=True)

    def _learner(self, reader: GradientReader | FactorReader, solver: Solver, vectors: float) -> Learn:
        if isinstance(reader, FactorReader):
            assert isinstance(solver, SketchSolver)
            return FactorStream(reader, self._run, solver, self._skipped).learn
        stream = pair_stream(reader, self._run, vectors, self._skipped)

        def learn(rows: Sequence[int]) -> Tensor | None:
            pair = stream.pair(rows)
            return None if pair is None else self.take(*pair, self.train_dataset.labels[rows[0]], rows)

        return learn

    def _energy(self) -> float | None:
        """Energy that CodeCarbon has metered, where `report_to` names "codecarbon"; `Trainer` starts and stops it."""
        meters = [callback for callback in self.callback_handler.callbacks if isinstance(callback, CodeCarbonCallback)]
        # a tracker that could not start, or a second one, has no data
        data = getattr(meters[0].tracker, "final_emissions_data", None) if meters else None
        return None if data is None else float(data.energy_consumed)

    def dry_run(self) -> Estimate:
        """Predict time, memory and disk of the whole job from three batches. Nothing is learned, and nothing written."""
        tensors = (t for module in (self.base_model, self.model) for t in (*module.parameters(), *module.buffers()))
        held = sum(tensor.nbytes for tensor in tensors if tensor.device.type == "cpu")
        process = max(0, resident_bytes() - held)
        solver, where = self._new_solver(self.args), self.model.shard.where
        with self._reader() as reader, self._shown():
            by_factors = isinstance(reader, FactorReader)
            learning = predicted(
                reader,
                self._run,
                lambda s, t, label: solver.observe(s[where], t[where], label),
                learn=self._learner(reader, solver, 0) if by_factors else None,
                state_vectors=self._state_vectors(),
                process_bytes=process,
                saved_bytes=self._disk_bytes() if self.args.should_save else 0,
            )
        with self._shown():
            return replace(learning, later_seconds=seconds_of_the_rest(self._run, learning.steps))

    def _disk_bytes(self) -> int:
        """Count the bytes of the direction and of the checkpoints that are on disk at the same time."""
        tensors = [*self.model.buffers(), *(p for p in self.model.parameters() for _ in range(3))]
        checkpoint: int = sum(tensor.nbytes for tensor in tensors)
        kept = 0 if self.args.save_strategy == "no" else 1 + (self.args.save_total_limit or 1)
        return 12 * self._run.numbers + kept * checkpoint

    def _state_vectors(self) -> float:
        """Count the vectors [n] that solver and optimizer hold: each parameter, its gradient and Adam's two moments."""
        moved: int = sum(p.nbytes for p in self.model.parameters())
        kept: int = sum(b.nbytes for b in self.model.buffers())
        return (4 * moved + kept) / (4 * int(self.scope.size))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Row numbers in batches of one class transition each; see `TransitionBatchSampler`. The same in every process."""
        return RowBatches(self.train_dataset, batch_sampler=row_sampler(self._run), collate_fn=self.data_collator)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As `Trainer.create_optimizer`, over the solver's parameters; for a solver that has none, one without effect."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            named = dict(self.model.named_parameters())
            biases = [p for name, p in named.items() if name.endswith("bias")]
            weights = [p for name, p in named.items() if not name.endswith("bias")]
            groups = [
                {"params": weights, "weight_decay": self.args.weight_decay},
                {"params": biases, "weight_decay": 0.0},
            ]
            if not self.model.needs_optimizer:
                kind, options, groups = torch.optim.SGD, {"lr": self.args.learning_rate}, [{"params": [torch.zeros(1)]}]
            self.optimizer = kind(groups, **options)
            self.model.shard.follow(self.optimizer, [p for name, p in named.items() if name in self.model.vectors])
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Hand one gradient pair of the base model to the solver. Returns the solver's mean loss."""
        rows = inputs["rows"]
        if self.args.include_num_input_tokens_seen != "no":
            lengths = [self.train_dataset.examples[row].cost for row in rows]
            padded = self.args.include_num_input_tokens_seen == "all"
            self.state.num_input_tokens_seen += len(rows) * max(lengths) if padded else sum(lengths)
        losses = self._learn(rows)
        if losses is None:  # the solver has no derivatives then, and the optimizer moves nothing
            return torch.zeros((), device=self.args.device)
        return losses.mean()

    def take(self, source: Tensor, target: Tensor, label: float, rows: Sequence[int]) -> Tensor:
        """Let the solver observe the gradient pair of some training rows, [n] each. Returns its mean loss."""
        where = self.model.shard.where
        source, target = source[where], target[where]
        loss: Tensor = self.model.observe(source, target, label).mean()
        if self._observes_targets:
            self.model.target_means.observe(target, label)
        self.model.halve(target, label, rows)
        return loss

    def adopt(self, steps: int, seconds: float) -> None:
        """Count what the solver was given by `take` outside of `train`, as a suite does, for a training that has ended."""
        self.state.global_step = self.report.steps = steps
        self.report.seconds["train"], self._direction, self._ended = seconds, None, True

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """None, so that none is logged: `Trainer` would read and write 3n values for a norm in the solver's own units."""
        return grad_norm

    @property
    def direction(self) -> Direction:
        """The learned direction: the first class encodes to positive values, a typical row to ±0.9."""
        if not self.state.global_step:
            raise ConfigError("Nothing has been learned yet. Call trainer.train() first.")
        if self._direction is None:
            with self._shown(), state_advised(self.scope, state_vectors=self._state_vectors()):
                found = self._run.finished(self._best(), getattr(self.model, "target_means", None))
            if found.effects:
                self.report.training["effect_by_damping"] = {str(damping): e for damping, e in found.effects.items()}
            self._judge(found.judged)
            direction = self._direction = as_direction(found.solution, found.scope)
            self._h = found.h
            contrasts = self.accelerator.unwrap_model(self.model).contrasts()
            self._references = self.report.references = None
            if contrasts is not None:  # rows enough for two halves
                made = references_of(contrasts, direction, self.scope, self.gradiend_config, found.weights)
                self._references, self.report.references = made
        return self._direction

    def _best(self) -> Reading:
        read = self._run.best(self.accelerator.unwrap_model(self.model).solutions())
        if read.seeds is not None:
            self.report.seeds = seed_records(read.seeds, self._classes)
            overlaps = {"encoder_overlap": read.seeds.encoder_overlap, "decoder_overlap": read.seeds.decoder_overlap}
            self.report.training |= overlaps
        return read
