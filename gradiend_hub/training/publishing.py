"""Everything that a trainer writes: checkpoints, the direction, its card, and the push to the Hub."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from safetensors import SafetensorError
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import ARTIFACT_FILES
from gradiend_hub.artifact.references import References
from gradiend_hub.errors import ConfigError, GradiendError, HubPushError, TrainingError, first_line
from gradiend_hub.evaluation import Report
from gradiend_hub.hub.publish import publish_folder

from .args import GradiendTrainingArguments
from .checkpoints import remove_checkpoints, write_state
from .inherited import DirectionTrainer
from .run import TrainingRun
from .saving import save_artifact, save_direction

logger = logging.getLogger(__name__)


class PublishingTrainer(DirectionTrainer):
    """The part of `GradiendTrainer` that saves and publishes.

    Attributes:
        report: everything measured so far.
    """

    args: GradiendTrainingArguments
    report: Report
    _run: TrainingRun
    _key: dict[str, str]
    _references: References | None
    _ended: bool

    @property
    def direction(self) -> Direction:
        """The learned direction."""
        raise NotImplementedError

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the artifact, the report and what is rendered from it; checkpoints of an ended training are removed then.

        Only checkpoints hold the solver's state: `keep_checkpoints` keeps them.

        Raises:
            TrainingError: the folder cannot be written; naming where the direction is kept instead.
        """
        folder = Path(output_dir or self.args.output_dir)
        if _internal_call and folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            super().save_model(str(folder), _internal_call=True)
            return
        direction = self.direction  # of all processes, whoever writes
        if self.args.should_save:
            with self._kept(f"The direction could not be saved in {folder}", into_output_dir=False):
                save_artifact(folder, self._run, direction, self.report, self._references)
            if self._ended and not self.args.keep_checkpoints:
                remove_checkpoints(self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write what a resumed training needs of the solver; it does not depend on the number of processes."""
        state: dict[str, Tensor] = self.model.whole_state() if state_dict is None else state_dict
        if self.args.should_save:  # of several processes, the others' folder may not be there yet
            write_state(Path(output_dir or self.args.output_dir), state, self._key)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.args.should_save:
            self.optimizer.state_dict()  # gathers
        super()._save_optimizer_and_scheduler(output_dir)

    def _keep_direction(self) -> None:
        """Write the direction as it is now into the output directory, unless nothing is to be saved while training."""
        if self.args.should_save and self.args.save_strategy != "no":
            save_direction(Path(self.args.output_dir), self._run, self.direction, self.report, self._references)

    @contextmanager
    def _kept(self, doing: str, *, into_output_dir: bool = True) -> Iterator[None]:
        """Whatever fails within the block, once the training has ended, leaves what was learned on disk and says where.

        Raises:
            TrainingError: in place of an error of the file system.
        """
        try:
            yield
        except Exception as error:
            if not self._ended:
                raise  # there are checkpoints for that
            kept = self._rescued(into_output_dir)
            if isinstance(error, (OSError, SafetensorError)):
                raise TrainingError(f"{doing} ({first_line(error)}). {kept}") from error
            if isinstance(error, GradiendError):
                raise type(error)(f"{error} {kept}") from error
            logger.error("%s (%s). %s", doing, type(error).__name__, kept)
            raise

    def _rescued(self, into_output_dir: bool) -> str:
        """Write what was learned, as it is, where it can be written. Returns where that is, in words."""
        output_dir = Path(self.args.output_dir)
        for folder in ([output_dir] if into_output_dir else []) + [Path(tempfile.mkdtemp(prefix="gradiend-"))]:
            try:
                save_direction(folder, self._run, self.direction, self.report, self._references)
            except Exception as error:  # the first error is the one to tell of
                logger.warning("%s cannot hold the direction: %s", folder, first_line(error))
            else:
                moved = f" When there is room: cp -r {folder}/. {shlex.quote(str(output_dir))}"
                return f"What was learned is kept in {folder}.{moved if folder != output_dir else ''}"
        return "What was learned is still in memory: make room, and call trainer.save_model(FOLDER)."

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        allow_unmeasured: bool = False,
        create_pr: bool = False,
        **card: Any,
    ) -> CommitInfo | None:
        """Save the artifact to `output_dir` and publish it in one commit. Of several processes, the first does, and the
        others get `None`.

        Args:
            blocking: must be true: a push is one commit or an error.
            allow_unmeasured: publish a direction that `evaluate` has not measured.
            create_pr: as in `publish_folder`.
            **card: arguments of `create_model_card`, as in `Trainer`.

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
        self.create_model_card(**card)
        repo_id = self.hub_model_id or self.args.hub_model_id
        if repo_id is None:
            raise HubPushError(
                f"No repository was named; the artifact is in {self.args.output_dir}. Set hub_model_id, or run: "
                f"gradiend-hub push {self.args.output_dir} USER/NAME"
            )
        if not self.is_world_process_zero():
            return None
        return publish_folder(
            self.args.output_dir,
            repo_id,
            token=token or self.args.hub_token,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message or "End of training",
            create_pr=create_pr,
            allow_patterns=ARTIFACT_FILES,
            allow_unmeasured=allow_unmeasured,
        )

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card into a saved artifact, and let it say what cannot be measured; later saves say it, too.

        Arguments are those of `Trainer.create_model_card`.

        Args:
            language: of the rows, as codes, e.g. "en".
            license: of the direction, as the Hub names it, e.g. "apache-2.0".
            tags: further tags of the repository.
            model_name: name of the direction.
            finetuned_from: Hub id to record for the base model, as `base_model_id`.
            tasks: tasks of the Hub that the base model serves; they become tags.
            dataset_tags: Hub ids of the data sets that the rows are from.
            dataset, dataset_args: names of these data sets, and of their configurations or splits.
        """
        if finetuned_from is not None:
            self._run.config.base_model_name_or_path = self.report.base_model = finetuned_from
        named = {
            "language": language,
            "license": license,
            "tags": [*_listed(tags), *_listed(tasks)] or None,
            "model_name": model_name,
            "datasets": dataset_tags,
            "dataset_names": dataset,
            "dataset_args": dataset_args,
        }
        self.report.data |= {name: value for name, value in named.items() if value is not None}
        self.save_model(_internal_call=True)


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
