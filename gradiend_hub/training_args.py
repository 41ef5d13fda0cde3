"""`GradiendTrainingArguments`: `transformers.TrainingArguments` with defaults that need no search."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from .errors import ConfigError


@dataclass
class GradiendTrainingArguments(TrainingArguments):  # type: ignore[misc]
    """Everything `TrainingArguments` offers, plus what is particular to directions.

    Defaults that differ from transformers': `learning_rate` 0.1 (in the solver's normalised units, see
    `gradiend_hub.solvers.autoencoder`), `per_device_train_batch_size` 16 rows per gradient, one epoch, no clipping,
    evaluation batches of 64, `hub_strategy` "end", `report_to` "none".

    Args:
        max_length: longest input in tokens; default: what model and tokenizer allow.
        lm_score_floor: lowest language-modelling score, relative to the base model's, that the recommended strength may
            cost.
        overwrite_output_dir: train into an output directory that is not empty.
    """

    learning_rate: float = field(default=0.1, metadata={"help": "Step size in the solver's normalised units."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the larger class transition."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows per gradient."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows per forward pass of an evaluation."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradients are normalised, so nothing is clipped."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Logging integrations."})
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "When to push; only 'end' is supported."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})
    max_length: int | None = field(default=None, metadata={"help": "Longest input in tokens."})
    lm_score_floor: float = field(default=0.99, metadata={"help": "Lowest relative LM score of the recommended dose."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Use an output directory that is not empty."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hub_strategy != HubStrategy.END:
            raise ConfigError(
                f"hub_strategy={HubStrategy(self.hub_strategy).value!r}: a direction is published whole and measured, so "
                "only 'end' is supported. Checkpoints stay in output_dir."
            )
        if self.gradient_accumulation_steps != 1:
            raise ConfigError("gradient_accumulation_steps: a direction needs none; raise per_device_train_batch_size.")
        if not 0 < self.lm_score_floor < 1:
            raise ConfigError(f"lm_score_floor must lie between 0 and 1, found {self.lm_score_floor}.")
