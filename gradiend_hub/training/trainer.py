"""`GradiendTrainer`: learn a direction with the habits of `transformers.Trainer`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.integrations import CodeCarbonCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.base_model import base_commit, base_name, load_base_model
from gradiend_hub.data import Row, class_fillers, read_neutral, read_rows, require_classes, require_distinct
from gradiend_hub.errors import ConfigError, HubPushError
from gradiend_hub.evaluation import (
    EvaluationSettings,
    encoder_report,
    evaluate_direction,
    flat_encoder,
)
from gradiend_hub.gradients import (
    Estimate,
    GradientReader,
    Scope,
    SkippedRows,
    prune,
    select_parameters,
)
from gradiend_hub.gradients.memory import state_advised
from gradiend_hub.gradients.pairs import silence
from gradiend_hub.hub.publish import publish_folder
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import (
    Example,
    examples_of,
    make_objective,
    objective_class,
    objective_name,
    other_examples,
    require_readable,
)
from gradiend_hub.progress import shown, tell
from gradiend_hub.solvers import (
    ClassMeans,
    Shard,
    Solution,
    Solver,
    make_solver,
)
from gradiend_hub.training.batches import TransitionDataset

from .args import GradiendTrainingArguments
from .checkpoints import find_checkpoint, require_same_training, write_key
from .cost import RowBatches, pair_stream, predicted, row_sampler, training_key
from .run import Learned, LearnedFrom, as_direction
from .saving import ARTIFACT_FILES, new_report, save_artifact

logger = logging.getLogger(__name__)

_FISHER_TEXTS = 256
"""Most sentences that the Fisher information is estimated from."""


class GradiendTrainer(Trainer):  # type: ignore[misc]
    """Learns the direction between two feature classes from the gradients of a frozen base model.

    What `Trainer` moves with its optimizer, saves in its checkpoints and resumes is the solver's state; the base model
    only delivers gradients. `save_model` writes the artifact.

    Args:
        model: the base model with its language-modelling head, or its path or Hub id.
        config: feature classes and scope; see `GradiendConfig`.
        args: see `GradiendTrainingArguments`.
        train_dataset: rows with the columns `masked`, `factual`, `alternative`, `factual_class`, `alternative_class`.
        eval_dataset: rows of the same kind, on which the strength unit is chosen.
        neutral_dataset: sentences (`text`) without the feature, on which damage and calibration are measured.
        neutral_train_dataset: further sentences (`text`), from which `decoder="fisher"` learns what to spare.
        processing_class: the base model's tokenizer, if it cannot be loaded from the base model's path.
        callbacks: as in `Trainer`.

    Raises:
        ConfigError, DataError, BaseModelError: before any training, when something cannot work.
    """

    control: Any
    optimizer: Any

    def __init__(
        self,
        model: nn.Module | str | Path,
        config: GradiendConfig,
        args: GradiendTrainingArguments,
        *,
        train_dataset: Iterable[dict[str, Any]],
        eval_dataset: Iterable[dict[str, Any]] | None = None,
        neutral_dataset: Iterable[dict[str, Any]] | None = None,
        neutral_train_dataset: Iterable[dict[str, Any]] | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self._classes = require_classes(config.feature_classes)
        self._shown = partial(shown, not args.disable_tqdm)
        base = model if isinstance(model, nn.Module) else load_base_model(model, objective=config.objective)
        self.base_model = base.to(args.device)
        if args.gradient_checkpointing:  # of the base model: `Trainer` would ask the solver for it
            layers: Any = base
            newer = getattr(layers, "activation_checkpointing_enable", None)  # the name since transformers 5.23
            (newer or layers.gradient_checkpointing_enable)(args.gradient_checkpointing_kwargs)
        config.objective = objective_name(base, config.objective)
        processor = processing_class or objective_class(config.objective).load_processor(str(base.name_or_path))
        self.objective = make_objective(base, processor, name=config.objective, max_length=args.max_length)
        config.base_model_name_or_path = config.base_model_name_or_path or base_name(base)
        config.revision = config.revision or base_commit(base)
        self.gradiend_config = config
        self.scope = Scope.dense(
            select_parameters(base, scope=config.scope, exclude=config.exclude, layers=config.layers)
        )
        rows = self._train_rows = read_rows(
            train_dataset, self._classes, read=self.objective.read, what="train_dataset"
        )
        config.fillers = config.fillers or class_fillers(rows, self._classes)
        require_distinct(config.fillers)
        examples = examples_of(self.objective, rows, what="train_dataset")
        dataset = TransitionDataset(rows, examples, self._classes, config.source, self._identity_examples(rows, args))
        self._skipped = SkippedRows(len(dataset))
        with self._shown():
            self.scope = self._pruned(dataset, args)
            tell(logger, "%s", self.scope.table(base))
        self._eval_rows = (
            []
            if eval_dataset is None
            else read_rows(eval_dataset, self._classes, read=self.objective.read, what="eval_dataset")
        )
        self._texts = [] if neutral_dataset is None else read_neutral(neutral_dataset, self.objective.read_neutral)
        self._fisher_texts = (
            []
            if neutral_train_dataset is None
            else read_neutral(neutral_train_dataset, self.objective.read_neutral)[:_FISHER_TEXTS]
        )
        if args.decoder == "fisher" and not self._fisher_texts:
            raise ConfigError('decoder="fisher" needs neutral_train_dataset: sentences that no evaluation reads.')
        for checked in (self._eval_rows, rows[:1]):
            require_readable(self.objective, checked, config.fillers)
        data = LearnedFrom(dataset, rows, self._eval_rows, self._texts, self._fisher_texts)
        self._learned = Learned(base, self.objective, config, args, self.scope, data)
        self._trained_words = {row.factual for row in rows} | {row.alternative for row in rows}
        self._observes_targets = False
        self.report = new_report(self._learned)
        self._direction: Direction | None = None
        super().__init__(
            model=self._new_solver(args),
            args=args,
            data_collator=lambda rows: {"rows": rows},  # `Trainer` looks for names in its batches
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )

    def _identity_examples(self, rows: Sequence[Row], args: GradiendTrainingArguments) -> list[Example]:
        count = min(args.identity_rows, len(rows))
        chosen = [rows[i * len(rows) // count] for i in range(count)]
        return other_examples(self.objective, chosen, self.gradiend_config.fillers, seed=args.row_seed)

    def _pruned(self, dataset: TransitionDataset, args: GradiendTrainingArguments) -> Scope:
        """The scope with the share of its coordinates that `density` asks for."""
        if self.gradiend_config.density == 1:
            return self.scope
        with GradientReader(self.base_model, self.scope) as reader:
            return prune(
                reader, self.objective, dataset.examples, dataset.labels, density=self.gradiend_config.density,
                measure=args.importance, samples=args.importance_rows, skipped=self._skipped,
            )  # fmt: skip

    def _new_solver(self, args: GradiendTrainingArguments) -> Solver:
        seeds, rates = zip(*args.runs, strict=True)
        relative = None if args.learning_rates is None else [rate / args.learning_rate for rate in rates]
        shard = Shard.of_process(self.scope.size)
        with state_advised(self.scope, state_vectors=(12 if args.solver == "autoencoder" else 5) * len(seeds)):
            solver = make_solver(args.solver, self.scope.size, seeds=seeds, rates=relative, shard=shard)
        if args.decoder != "solver" and args.solver == "autoencoder":  # the others keep these means for themselves
            solver.target_means = ClassMeans(shard)
            self._observes_targets = True
        return solver.requires_grad_(False)  # derivatives are closed forms; nothing is to be wrapped for autograd

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
        self._key = training_key(self._learned)
        if resume_from_checkpoint:
            found = find_checkpoint(self.args.output_dir, resume_from_checkpoint)
            require_same_training(found, self._key)
            resume_from_checkpoint = str(found)
        elif not self.args.overwrite_output_dir:
            _require_unused(Path(self.args.output_dir))
        self.accelerator.wait_for_everyone()  # before another process writes there
        self._direction = None
        start, vectors = time.perf_counter(), self._state_vectors()
        advised = state_advised(self.scope, state_vectors=vectors)
        with GradientReader(self.base_model, self.scope, reuse=True) as reader, self._shown(), advised:
            self._stream = pair_stream(reader, self._learned, vectors, self._skipped)
            output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
            if 0 < len(reader.silent) < len(self.scope.parameters):
                logger.warning(silence(reader))
        self.report.seconds["train"] = time.perf_counter() - start
        self.report.energy_kwh = self._energy()
        self.report.steps = self.state.global_step
        self.report.history = [record for record in self.state.log_history if "step" in record]
        self.report.splits.clear()
        if self.args.world_size > 1:  # while all are here: afterwards one process alone may read it
            _ = self.direction
        return output

    def _energy(self) -> float | None:
        """What CodeCarbon has metered, where `report_to` names "codecarbon"; `Trainer` starts and stops it."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, CodeCarbonCallback):  # a tracker that could not start, or a second one, has no data
                data = getattr(callback.tracker, "final_emissions_data", None)
                return None if data is None else float(data.energy_consumed)
        return None

    def dry_run(self) -> Estimate:
        """Predict time and memory of `train` from three batches. Nothing is learned, and nothing written."""
        solver, where = self._new_solver(self.args), self.model.shard.where
        with GradientReader(self.base_model, self.scope, reuse=True) as reader:
            return predicted(reader, self._learned, lambda s, t, label: solver.observe(s[where], t[where], label),
                             self._state_vectors())  # fmt: skip

    def _state_vectors(self) -> int:
        """Vectors [n] that solver and optimizer hold: of each parameter itself, its gradient and Adam's two moments."""
        moved: int = sum(p.numel() for p in self.model.parameters())
        kept: int = sum(b.numel() for b in self.model.buffers())
        return round((4 * moved + kept) / self.scope.size)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Row numbers in batches of one class transition each; see `TransitionBatchSampler`. The same in every process."""
        return RowBatches(self.train_dataset, batch_sampler=row_sampler(self._learned), collate_fn=self.data_collator)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As `Trainer.create_optimizer`, over the solver's parameters; for a solver that has none, one without effect."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            biases: list[nn.Parameter] = []
            weights: list[nn.Parameter] = []
            for name, parameter in self.model.named_parameters():
                (biases if name.endswith("bias") else weights).append(parameter)
            groups = [
                {"params": weights, "weight_decay": self.args.weight_decay},
                {"params": biases, "weight_decay": 0.0},
            ]
            if not self.model.needs_optimizer:
                kind, options, groups = torch.optim.SGD, {"lr": self.args.learning_rate}, [{"params": [torch.zeros(1)]}]
            self.optimizer = kind(groups, **options)
            vectors = [p for name, p in self.model.named_parameters() if name in self.model.vectors]
            self.model.shard.follow(self.optimizer, vectors)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One gradient pair of the base model, handed to the solver. Returns the solver's mean loss."""
        rows = inputs["rows"]
        pair = self._stream.pair(rows)
        if pair is None:  # the solver has no derivatives then, and the optimizer moves nothing
            return torch.zeros((), device=self.args.device)
        label, where = self.train_dataset.labels[rows[0]], self.model.shard.where
        source, target = (vector[where] for vector in pair)
        loss: Tensor = self.model.observe(source, target, label).mean()
        if self._observes_targets:
            self.model.target_means.observe(target, label)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """None, so that none is logged: `Trainer` would read and write 3n values for a norm in the solver's own units."""
        return grad_norm

    @property
    def direction(self) -> Direction:
        """What has been learned: the first class encodes to positive values, a typical row to ±0.9."""
        if not self.state.global_step:
            raise ConfigError("Nothing has been learned yet. Call trainer.train() first.")
        if self._direction is None:
            with self._shown(), state_advised(self.scope, state_vectors=self._state_vectors()):
                solution, scope, tried = self._learned.finished(
                    self._best_solution(), getattr(self.model, "target_means", None)
                )
            if tried:
                self.report.training["effect_by_damping"] = {str(damping): value for damping, value in tried.items()}
            self._direction = as_direction(solution, scope)
        return self._direction

    def _best_solution(self) -> Solution:
        solution, found = self._learned.best(self.accelerator.unwrap_model(self.model).solutions())
        if found is not None:
            self.report.seeds = [
                {"seed": run.seed, "learning_rate": run.rate, "correlation": run.correlation,
                 "class_means": dict(zip(self._classes, run.class_means, strict=True)),
                 "converged": run.converged, "chosen": run.chosen}
                for run in found.runs
            ]  # fmt: skip
            self.report.training["encoder_overlap"] = found.encoder_overlap
            self.report.training["decoder_overlap"] = found.decoder_overlap
        return solution

    # ---------------------------------------------------------------------------------------------------- evaluation

    def evaluate(
        self,
        eval_dataset: Iterable[dict[str, Any]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        neutral_dataset: Iterable[dict[str, Any]] | None = None,
    ) -> dict[str, float]:
        """Measure the direction; the whole record is in `trainer.report`.

        While training only the encoder is read. Afterwards the strength curve is measured, too. On the trainer's own
        `eval_dataset` the strength unit is chosen first; on any other data the unit is used as it is (give such data a
        prefix, e.g. "test", and neutral sentences of its own).

        Returns:
            Figures as `Trainer` logs them, with the prefix: `eval_correlation`, `eval_accuracy`, `eval_quality`, …
        """
        own = eval_dataset is None or eval_dataset is self.eval_dataset
        rows = (
            self._eval_rows
            if own
            else read_rows(eval_dataset or (), self._classes, read=self.objective.read, what=metric_key_prefix)
        )
        if not rows:
            raise ConfigError("evaluate() needs an eval_dataset, given to the trainer or to this call.")
        start = time.perf_counter()
        texts = self._texts if neutral_dataset is None else read_neutral(neutral_dataset, self.objective.read_neutral)
        with self._shown():
            figures = (
                self._read_encoder(rows) if self.is_in_train else self._measure(rows, texts, own, metric_key_prefix)
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - start
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _read_encoder(self, rows: Sequence[Row]) -> dict[str, float]:
        h, labels = self._learned.encode(self._best_solution(), rows)
        return flat_encoder(encoder_report(h, labels, self._classes))

    def _measure(self, rows: Sequence[Row], texts: Sequence[str], choose_unit: bool, name: str) -> dict[str, float]:
        start = time.perf_counter()
        config = self.gradiend_config
        model = GradiendModel.from_direction(
            self.base_model, self.direction, config, processing_class=self.objective.processor
        )
        try:
            settings = EvaluationSettings(
                floor=self.args.quality_floor, controls=self.args.controls, batch_size=self.args.eval_batch_size,
                seed=self.args.seed,
            )  # fmt: skip
            split = evaluate_direction(
                model, self.objective, rows, texts, settings, choose_unit_for=self.args.goal if choose_unit else None,
                trained_words=self._trained_words,
            )  # fmt: skip
            measured = model.active_peft_config
            config.strength_unit, config.strength = measured.strength_unit, measured.strength
            config.safe_band, config.break_point = measured.safe_band, measured.break_point
        finally:
            model.unload()
        if choose_unit:
            self.report.settings = {"quality_floor": settings.floor, "goal": self.args.goal}
        self.report.splits[name] = split
        self.report.seconds[f"evaluate {name}"] = time.perf_counter() - start
        return split.flat()

    # -------------------------------------------------------------------------------------------- saving and the Hub

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the artifact, the report and what is rendered from it. Only checkpoints hold the solver's state."""
        folder = Path(output_dir or self.args.output_dir)
        if _internal_call and folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            super().save_model(str(folder), _internal_call=True)
            return
        direction = self.direction  # of all processes, whoever writes
        if self.args.should_save:
            save_artifact(folder, self._learned, direction, self.report)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Checkpoints do not depend on the number of processes."""
        super()._save(output_dir, self.model.whole_state() if state_dict is None else state_dict)
        if self.args.should_save:  # of several processes, the others' folder may not be there yet
            write_key(Path(output_dir or self.args.output_dir), self._key)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.args.should_save:
            self.optimizer.state_dict()  # gathers
        super()._save_optimizer_and_scheduler(output_dir)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        allow_unmeasured: bool = False,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Save the artifact to `output_dir` and publish it in one commit. Of several processes, the first does, and the
        others get `None`.

        Args:
            blocking: must be true: a push is one commit or an error.
            allow_unmeasured: publish a direction that `evaluate` has not measured.
            **kwargs: `create_pr`, as in `publish_folder`.

        Raises:
            ConfigError: nothing was measured yet.
            HubPushError: the upload failed. The artifact stays in `output_dir`, and the message says how to push it.
        """
        if not blocking:
            raise ConfigError("push_to_hub(blocking=False): a push is one commit or an error, so it is waited for.")
        if not self.report.splits and not allow_unmeasured:
            raise ConfigError(
                "This direction is unmeasured: its strength has no unit yet. Call trainer.evaluate() first, or publish "
                "it as it is with allow_unmeasured=True."
            )
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        repo_id = self.hub_model_id or self.args.hub_model_id
        if repo_id is None:
            raise HubPushError(
                f"No repository was named; the artifact is in {self.args.output_dir}. Set hub_model_id, or run: "
                f"gradiend-hub push {self.args.output_dir} USER/NAME"
            )
        if not self.is_world_process_zero():
            return None
        return publish_folder(
            self.args.output_dir, repo_id, token=token or self.args.hub_token,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision, commit_message=commit_message or "End of training",
            allow_patterns=ARTIFACT_FILES, **kwargs,
        )  # fmt: skip

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        dataset_tags: str | list[str] | None = None,
    ) -> None:
        """Write the card into a saved artifact, and let it say what cannot be measured; later saves say it, too.

        Args:
            language: of the rows, as codes, e.g. "en".
            license: of the direction, as the Hub names it, e.g. "apache-2.0".
            dataset_tags: Hub ids of the data sets that the rows are from.
        """
        said = {"language": language, "license": license, "datasets": dataset_tags}
        self.report.data |= {name: value for name, value in said.items() if value is not None}
        self.save_model(_internal_call=True)


def _require_unused(folder: Path) -> None:
    """An output directory that holds something is either resumed or overwritten by choice, never by accident."""
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if not found:
        return
    checkpoint = any(name.startswith(PREFIX_CHECKPOINT_DIR) for name in found)
    hint = "train(resume_from_checkpoint=True) to go on with its last checkpoint, " if checkpoint else ""
    raise ConfigError(
        f"The output directory {folder} is not empty ({', '.join(found[:4])}). Use {hint}overwrite_output_dir=True to "
        "write into it, or another directory."
    )
