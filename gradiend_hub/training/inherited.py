"""Classification of the fields and methods that `transformers` defines for training whole models.

A direction is learned from gradients of a frozen base model, so some of them have nothing to act on. None is ignored in
silence: each field is honoured, or refused by name, or, where it could change no result anyway, named in a log record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field
from typing import Any, NoReturn

from transformers import Trainer
from transformers.trainer_pt_utils import AcceleratorConfig

from gradiend_hub.errors import ConfigError

logger = logging.getLogger(__name__)

HONOURED = frozenset(
    """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
    warmup_steps warmup_ratio optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm tf32
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter logging_dir
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start
    save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_revision
    load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu ddp_backend ddp_timeout local_rank
    skip_memory_metrics do_train do_eval do_predict resume_from_checkpoint
    """.split()  # noqa: SIM905
)
"""Fields that do what transformers' documentation says."""

_PRECISION = (
    "the solver works in float32, and directions are measured in the type of the base model. Load that as you want it, e.g. "
    "AutoModelForMaskedLM.from_pretrained(…, dtype=torch.bfloat16), and give it to the trainer."
)
_FROZEN = "the base model is frozen, and gradients are those of its plain loss. Leave it out."
_COMPILED = (
    "the base model runs as it is given. To run it compiled, compile its layers in place (module.compile()) before you give "
    "it to the trainer, or leave it out."
)
_BATCHES = (
    "batches hold one class transition each, in turn, of about equal length. Shuffle or group the rows yourself, or choose "
    "another data_seed."
)
_PREDICTIONS = "an evaluation measures encodings and strengths, and there are no logits to collect. Leave it out."
_SHARDED = (
    "several processes share rows and coordinates, with nothing to wrap or shard. Start them with accelerate launch or "
    "torchrun, and spread a large base model with device_map."
)

REFUSED: dict[str, str] = {
    "gradient_accumulation_steps": "a direction needs none; raise per_device_train_batch_size.",
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), _PRECISION),
    **dict.fromkeys(
        ("label_smoothing_factor", "neftune_noise_alpha", "use_liger_kernel", "liger_kernel_config"), _FROZEN
    ),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILED),
    **dict.fromkeys(("train_sampling_strategy", "group_by_length", "length_column_name"), _BATCHES),
    "dataloader_drop_last": "no batch is smaller than the others; the rows of a class are cycled. Leave it out.",
    "label_names": "rows have fixed columns: masked, factual, alternative, and their classes. Rename yours.",
    "use_cache": "nothing is generated while a direction is learned. Leave it out.",
    "optim_target_modules": "the optimizer moves the solver's vectors, which are no modules. Leave it out.",
    "torch_empty_cache_steps": "memory stays the same from step to step. Leave it out.",
    "auto_find_batch_size": "lower per_device_train_batch_size instead; trainer.dry_run() says what it needs.",
    **dict.fromkeys(
        ("prediction_loss_only", "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"), _PREDICTIONS
    ),
    "hub_always_push": "a direction is published once, whole and measured, when the training has ended. Leave it out.",
    "accelerator_config": "the trainer makes its own batches, the same in every process. Leave it out.",
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), _SHARDED),
    "debug": "the trained module is the solver, whose numbers are checked in every step. Leave it out.",
}
"""Fields that have no meaning for a direction, and what to do instead; any value but the default is an error."""

WITHOUT_EFFECT = frozenset(
    """
    average_tokens_across_devices eval_do_concat_batches eval_use_gather_object remove_unused_columns
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    """.split()  # noqa: SIM905
)
"""Fields that say how to do what is not done here. They change no result, so scripts that set them go on working."""

OF_OPTIMIZERS = frozenset(
    """
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio optim optim_args weight_decay
    adam_beta1 adam_beta2 adam_epsilon max_grad_norm
    """.split()  # noqa: SIM905
)
"""Fields that are honoured by a solver that is trained, the autoencoder."""

_OPTIMIZERS = ("lomo", "adalomo", "galore", "apollo", "schedule_free")
"""Beginnings of the names of optimizers that need a trainer's own loop or a model's modules."""


def check_inherited(values: Mapping[str, Any], fields: Iterable[Field[Any]]) -> None:
    """Refuse what has no meaning, and name what has no effect.

    Args:
        values: of all fields, as they were given.
        fields: of `TrainingArguments`, with the defaults that hold here.

    Raises:
        ConfigError: naming the field and what to do instead.
    """
    changed = [f.name for f in fields if f.init and _is_changed(f, values[f.name])]
    for name in changed:
        if name in REFUSED:
            raise ConfigError(f"{name}={values[name]!r} has no meaning for a direction: {REFUSED[name]}")
    optimizer = str(getattr(values["optim"], "value", values["optim"]))
    if optimizer.startswith(_OPTIMIZERS):
        raise ConfigError(f"optim={optimizer!r} needs modules to train. Choose another, e.g. adamw_torch.")
    if void := sorted(WITHOUT_EFFECT.intersection(changed) - {"dataloader_pin_memory"}):
        logger.warning("Without effect on a direction: %s.", ", ".join(void))
    if values["solver"] != "autoencoder" and (void := sorted(OF_OPTIMIZERS.intersection(changed))):
        logger.warning(
            "Without effect with solver=%r, which has no optimizer: %s. They are those of solver='autoencoder'.",
            values["solver"],
            ", ".join(void),
        )
    if unknown := sorted(set(changed) - HONOURED - REFUSED.keys() - WITHOUT_EFFECT):
        logger.warning(
            "%s: new in this version of transformers, and perhaps without effect on a direction.", ", ".join(unknown)
        )


def _is_changed(f: Field[Any], value: Any) -> bool:
    """Return whether a field has another value than its default, be it as it is written or as transformers stores it."""
    default = f.default if f.default is not MISSING else f.default_factory() if callable(f.default_factory) else None
    if f.name == "accelerator_config" and isinstance(value, (dict, AcceleratorConfig)):
        given = value if isinstance(value, dict) else value.to_dict()
        return bool(AcceleratorConfig().to_dict() | given != AcceleratorConfig().to_dict())
    if not value and not default:  # None, "", [] and False: the field is not used
        return False
    return bool(getattr(value, "value", value) != getattr(default, "value", default))


def _refused(method: str, instead: str) -> Callable[..., NoReturn]:
    """A method that says what is used instead of it."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConfigError(f"GradiendTrainer has no {method}(): {instead}.")

    refuse.__name__ = refuse.__qualname__ = method
    return refuse


class DirectionTrainer(Trainer):  # type: ignore[misc]
    """`Trainer` with every method that would act on the base model's outputs replaced by an error that says what does."""

    get_eval_dataloader = _refused(
        "get_eval_dataloader", "evaluate() reads the rows itself, and predict(rows) encodes them"
    )
    get_test_dataloader = _refused("get_test_dataloader", "predict(rows) encodes rows")
    evaluation_loop = _refused("evaluation_loop", "evaluate() measures rows, and predict(rows) encodes them")
    prediction_step = _refused("prediction_step", "predict(rows) encodes rows")
    compute_loss = _refused("compute_loss", "training_step() hands gradients to the solver and returns its loss")
    hyperparameter_search = _refused(
        "hyperparameter_search",
        "num_runs and learning_rates train several seeds and rates on one stream of gradients and keep the best",
    )

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Nothing: the training step counts, as it knows the rows."""
