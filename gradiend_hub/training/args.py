"""`GradiendTrainingArguments`: `transformers.TrainingArguments` with defaults that need no search."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from typing import Annotated

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from gradiend_hub.artifact.validation import POSITIVE, SHARE, Limit, at_least, check, one_of
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Goal
from gradiend_hub.evaluation.probe import SCORED_TOKENS
from gradiend_hub.gradients import MEASURES, STORE_DTYPES
from gradiend_hub.solvers import SOLVERS

from .decoders import AUTO, DECODERS, RANK
from .inherited import check_inherited

_BY_COORDINATE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers that move a coordinate whatever the others do, so that processes can share the coordinates."""

_LIMITS = {
    "controls": Annotated[int, at_least(0)],
    "decoder": Annotated[str, one_of(*DECODERS)],
    "final_density": Annotated[float, SHARE],
    "goal": Goal,
    "gradient_store_dtype": Annotated[str, one_of(*STORE_DTYPES)],
    "identity_rows": Annotated[int, at_least(0)],
    "importance": Annotated[str, one_of(*MEASURES)],
    "importance_rows": Annotated[int, at_least(2)],
    "learning_rate": Annotated[float, POSITIVE],
    "learning_rates": Annotated[list[Annotated[float, POSITIVE]], Limit("a list of positive numbers", bool)] | None,
    "max_length": Annotated[int, at_least(1)] | None,
    "num_runs": Annotated[int, at_least(1)],
    "per_device_eval_batch_size": Annotated[int, at_least(1)],
    "per_device_train_batch_size": Annotated[int, at_least(1)],
    "rank": Annotated[int, at_least(1)] | None,
    "quality_tokens": Annotated[int, at_least(2)],
    "quality_floor": Annotated[float, Limit("a number between 0 and 1", lambda share: 0 < share < 1)],
    "solver": Annotated[str, one_of(*SOLVERS)],
}
"""Values that are taken, of own fields and of inherited ones that a direction uses otherwise."""


@dataclass
class GradiendTrainingArguments(TrainingArguments):  # type: ignore[misc]
    """Everything `TrainingArguments` offers, plus what is particular to directions.

    Defaults that differ from transformers': `learning_rate` 0.1 (in the solver's normalised units, see
    `gradiend_hub.solvers.autoencoder`), `per_device_train_batch_size` 16 rows per gradient, one epoch, no clipping,
    evaluation batches of 64, `hub_strategy` "end", `report_to` "none", `save_total_limit` 1. With "codecarbon" in
    `report_to`, report and card say how much energy the training took.

    Early stopping and `load_best_model_at_end` go by `metric_for_best_model` "correlation", that of the validation rows.

    Fields of `TrainingArguments` that have no meaning for a direction are refused when they are changed; see
    `gradiend_hub.training.inherited`.

    Args:
        solver: "closed_form" (class means; one pass, no learning rate, no seed), "autoencoder" (the papers') or "ridge"
            (regression in the span of the gradients; no learning rate, no seed); see `gradiend_hub.solvers`.
        num_runs: runs of the autoencoder with the seeds `seed`, `seed + 1`, … on one stream of gradients. The best one by
            validation correlation is kept.
        learning_rates: train each of those runs at each of these rates, instead of at `learning_rate`.
        identity_rows: slots at other tokens of the training texts, filled with their own token, that are learned with
            label 0 and target 0. They teach ridge and the autoencoder to be silent on them; the closed form's encoder
            stays as it is. A third of all batches then.
        importance: how coordinates are chosen when `GradiendConfig.density` is below 1: "mean" keeps most of the edit's
            effect, "snr" separates the classes better; see `gradiend_hub.gradients.importance`.
        importance_rows: training rows that the choice is made from.
        gradient_store: folder in which the gradients of all batches are kept, so that later epochs, and later runs with
            another seed of the solver, learning rate or solver, need no base model. The batches are the same ones in every
            epoch then. It is refused for any other base, data, scope or batches. One process only.
        gradient_store_dtype: "float32", or "bfloat16" or "float16" at half the size.
        decoder: "solver" (its own), "mean" (least squares of the class means), "damage_aware" (formerly "fisher": the latter
            divided by the damped Fisher information of neutral text, of the rows' own and of a chat model's replies, for
            more effect at the same damage), or "natural" (divided by its Kronecker factors, which keeps a low rank). Both
            learn from `GradiendTrainer(neutral_train_dataset=…)`, or, without it, from every other sentence of
            `neutral_dataset`, which no evaluation reads then. Their dampings are chosen on the validation rows: those of
            "natural" for each sign by itself, with the plain decoder and the factors' diagonals among the candidates. So is
            whether they keep a bias; without one, the edit at −s is minus that at s, and one LoRA holds both. "auto", the
            default, is "natural" where it can be learned and chosen: with the closed form, all coordinates, 16 validation
            rows and 100 neutral sentences (or 50 in `neutral_train_dataset`). Elsewhere it is "solver".
        rank: largest rank of each matrix of the direction. It is stored by factors then, in about rank/width of the bytes.
            The closed form learns it by sketches, in one pass and in that much memory, and never forms a gradient; what
            other solvers have learned is cut to it in the end. Default: 8 for a natural decoder, none for others.
        final_density: share of the coordinates that the finished direction keeps, by their share in the decoder's effect.
        goal: "strengthen": strength 1 is the recommended dose. "debias": recommended is the strength at which both classes
            are equally likely.
        controls: random directions that each evaluation compares with.
        comparable: measure on the same stream how alike the direction is from two halves of the rows, and directions of coin
            labels, and keep what a comparison with other directions needs. It takes four vectors [n] of
            memory, or four sketches, which one process alone keeps.
        max_length: longest input in tokens; default: what model and tokenizer allow.
        quality_floor: lowest quality, relative to the base model's, that the recommended strength may leave on any text that
            damage is read on.
        quality_tokens: tokens of neutral text on which an evaluation reads damage, if there are so many; half as many of
            the rows' own texts. Its time goes with them. With fewer, intervals are wider, so the recommended dose is lower.
        overwrite_output_dir: train into an output directory that is not empty.
        keep_checkpoints: keep the checkpoints when the training has ended and `save_model` has written the direction. By
            default they are removed then: they hold the solver's state, three times the direction's size or more, which
            only a resumed training needs.
        base_model_id: Hub id to record for a base model that was loaded from a folder, under which others find it.
    """

    learning_rate: float = field(default=0.1, metadata={"help": "Step size in the solver's normalised units."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the larger class transition."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows per gradient."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows per forward pass of an evaluation."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradients are normalised, so nothing is clipped."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs."})
    # HfArgumentParser wants None first
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Logging integrations."})  # noqa: RUF036
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "When to push; only 'end' is supported."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints that are kept while training."})
    metric_for_best_model: str | None = field(default="correlation", metadata={"help": "What makes a model the best."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether that metric is to be high."})
    solver: str = field(default="closed_form", metadata={"help": "closed_form, autoencoder or ridge."})
    num_runs: int = field(default=1, metadata={"help": "Seeds that share one stream of gradients."})
    learning_rates: list[float] | None = field(default=None, metadata={"help": "Rates that share it, too."})
    identity_rows: int = field(default=0, metadata={"help": "Batch of other tokens, with label 0."})
    importance: str = field(default="mean", metadata={"help": "How a density below 1 chooses: mean or snr."})
    importance_rows: int = field(default=128, metadata={"help": "Training rows that the choice is made from."})
    gradient_store: str | None = field(default=None, metadata={"help": "Folder that keeps the gradients."})
    gradient_store_dtype: str = field(default="float32", metadata={"help": "Type in which they are kept."})
    decoder: str = field(default=AUTO, metadata={"help": "auto, solver, mean, damage_aware or natural."})
    rank: int | None = field(default=None, metadata={"help": "Largest rank of the direction's matrices."})
    final_density: float = field(default=1.0, metadata={"help": "Share of the coordinates that is kept in the end."})
    goal: Goal = field(default="strengthen", metadata={"help": "strengthen or debias."})
    controls: int = field(default=3, metadata={"help": "Random directions to compare with."})
    comparable: bool = field(default=True, metadata={"help": "Keep what comparisons with others are judged by."})
    max_length: int | None = field(default=None, metadata={"help": "Longest input in tokens."})
    quality_floor: float = field(default=0.99, metadata={"help": "Lowest relative quality at the recommended dose."})
    quality_tokens: int = field(default=SCORED_TOKENS, metadata={"help": "Tokens that damage is read on."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Use an output directory that is not empty."})
    keep_checkpoints: bool = field(default=False, metadata={"help": "Keep checkpoints when the direction is saved."})
    base_model_id: str | None = field(default=None, metadata={"help": "Hub id of a base model loaded from a folder."})

    decided = frozenset[str]()
    """Fields whose values follow from the data, of a trainer's own copy."""

    def __post_init__(self) -> None:
        inherited = {f.name for f in fields(TrainingArguments)}
        check_inherited(vars(self), [f for f in fields(self) if f.name in inherited])
        super().__post_init__()
        if self.hub_strategy != HubStrategy.END:
            raise ConfigError(
                f"hub_strategy={HubStrategy(self.hub_strategy).value!r}: a direction is published whole and measured, so "
                "only 'end' is supported. Checkpoints stay in output_dir."
            )
        if self.decoder == "fisher":
            self.decoder = "damage_aware"
        for name, kind in _LIMITS.items():
            check(kind, getattr(self, name), f"GradiendTrainingArguments.{name}")
        if self.decoder == "natural" and self.rank is None:
            if self.final_density < 1:
                raise ConfigError(
                    f'decoder="natural" has a rank, and final_density={self.final_density} keeps few coordinates: choose.'
                )
            self.rank, self.decided = RANK, frozenset({"rank"})
        self._check_rank()
        if self.world_size > 1:
            self._check_processes()

    def _check_rank(self) -> None:
        if self.decoder == "damage_aware" and self.rank is not None and self.solver == "closed_form":
            raise ConfigError(
                'decoder="damage_aware" divides each coordinate by itself, of which a rank is left nothing. Use '
                f'decoder="natural" with rank={self.rank}.'
            )
        if self.rank is not None and self.final_density < 1:
            raise ConfigError(f"rank={self.rank} and final_density={self.final_density}: choose one of both.")

    def _check_processes(self) -> None:
        if self.gradient_store:
            raise ConfigError(f"gradient_store works in one process, and this is one of {self.world_size}.")
        if self.max_grad_norm > 0 or self.optim not in _BY_COORDINATE:
            raise ConfigError(
                f"max_grad_norm={self.max_grad_norm} and optim={self.optim!s}: each of the {self.world_size} processes "
                f"holds some coordinates, so max_grad_norm must be 0 and optim one of {', '.join(_BY_COORDINATE)}."
            )

    def with_decoder(self, decoder: str) -> GradiendTrainingArguments:
        """Copy the arguments with another decoder, and with the rank that it needs."""
        found = copy.copy(self)
        found.decoder, found.decided = decoder, frozenset({"decoder"})
        if decoder == "natural" and self.rank is None:
            found.rank, found.decided = RANK, frozenset({"decoder", "rank"})
        return found

    @property
    def runs(self) -> list[tuple[int, float]]:
        """Seed and learning rate of each run."""
        rates = self.learning_rates or [self.learning_rate]
        return [(self.seed + i, rate) for rate in rates for i in range(self.num_runs)]

    @property
    def row_seed(self) -> int:
        """Seed of the order of rows: `data_seed`, or `seed` if there is none."""
        return int(self.seed if self.data_seed is None else self.data_seed)
