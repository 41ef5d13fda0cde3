"""`train`: what a recipe says is learned, measured, saved and published."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers.trainer_utils import get_last_checkpoint

from gradiend_hub import GradiendConfig, GradiendTrainer
from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.data.builder.spec import FeatureDataConfig
from gradiend_hub.errors import ConfigError, GradiendError, HubPushError, TrainingError, first_line
from gradiend_hub.evaluation.shown import LEARNED
from gradiend_hub.folders import require_writable
from gradiend_hub.hub.retry import summary
from gradiend_hub.printable import printable
from gradiend_hub.training.data import USUAL_SPLITS

from .console import Interrupted, Story, on_interrupt, program
from .follower import follow
from .quiet import quiet
from .recipes import Recipe, read_recipe, training_arguments
from .tables import curve_table, encoder_line


def _predict(recipe: Recipe, story: Story) -> dict[str, Any]:
    """Print what a recipe would train and what that would cost. Nothing is learned, written or published."""
    with quiet(story), tempfile.TemporaryDirectory() as unused:
        recipe.args.update(output_dir=unused, push_to_hub=False)
        with story.step("Load") as step:
            recipe = _with_rows(recipe)
            trainer = _loaded(recipe)
            step.outcome = f"{len(trainer.train_dataset):,} training rows"
        with story.step("Predict") as step:
            estimate = trainer.dry_run()
            step.outcome = "from three gradients; nothing was learned or written"
    scope = trainer.scope
    story.show(f"\n{scope.table(trainer.base_model)}\n\n{estimate}")
    return {
        "train_rows": len(trainer.train_dataset),
        "scope": {"tensors": len(scope.parameters), "weights": scope.size},
        "estimate": asdict(estimate) | {"seconds": estimate.seconds, "peak_bytes": estimate.peak_bytes},
    }


def run_recipe(
    recipe: Path, overrides: Sequence[str] | None, resume: bool, dry_run: bool, story: Story
) -> dict[str, Any]:
    """Train, measure, save and, if the recipe says so, push; or only foresee what that would cost.

    Raises:
        GradiendError: something in the recipe cannot work; most of it is found before the training starts.
        Interrupted: Ctrl-C, with what is kept and the command that goes on.
    """
    read = read_recipe(recipe, overrides)
    if dry_run:
        return _predict(read, story)
    folder = Path(read.args.setdefault("output_dir", f"out/{recipe.stem}"))
    command = shlex.join([*program(), "train", str(recipe), *(part for o in overrides or () for part in ("--set", o))])
    _check_output(folder, resume, bool(read.args.get("overwrite_output_dir")), command)
    with quiet(story):
        with story.step("Load") as step:
            read = _with_rows(read)
            trainer = _loaded(read)
            step.outcome = f"{len(trainer.train_dataset):,} training rows; {trainer.report.scope}"
        with _resumable(folder, command), story.step("Learn") as step:
            follow(trainer, story, keep_log=True)
            trainer.train(resume_from_checkpoint=resume)
            step.outcome = f"{trainer.state.global_step} steps"
        with _kept(trainer):
            _measure(trainer, read.test_dataset is not None, story)
    with quiet(story):  # again, because with push_to_hub the training ends with progress bars switched on
        url = _publish(trainer, story)
    return _show(trainer, url, story)


def _check_output(folder: Path, resume: bool, overwrite: bool, command: str) -> None:
    """Refuse an output folder in use, or one without the checkpoint to resume from, before anything is loaded."""
    require_writable(folder)
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    if resume and checkpoint is None:
        raise ConfigError(f"There is no checkpoint in {folder} to resume from. Start without --resume.")
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not found or resume or overwrite:
        return
    ways = [f"{command} --resume   (go on from {Path(checkpoint).name})"] if checkpoint else []
    ways += [
        f"{command} --set args.output_dir=OTHER_FOLDER",
        f"{command} --set args.overwrite_output_dir=true   (write into it)",
    ]
    raise ConfigError(
        f"The output folder {folder} is not empty ({', '.join(found[:4])}). Use one of\n  " + "\n  ".join(ways)
    )


def _loaded(recipe: Recipe) -> GradiendTrainer:
    """Read all data, and make the trainer of it; what cannot work is found here, before anything is learned."""
    data = {name: getattr(recipe, name) for name in USUAL_SPLITS if getattr(recipe, name) is not None}
    data["damage_datasets"] = recipe.damage_datasets
    args = training_arguments({**recipe.args, "disable_tqdm": True})
    try:
        return GradiendTrainer(recipe.model, GradiendConfig(**recipe.direction), args, **data)
    except HfHubHTTPError as error:  # with push_to_hub, the repository is made before the training
        raise HubPushError(
            f"The repository {args.hub_model_id or args.output_dir} cannot be used ({summary(error)}). Nothing was "
            "trained. Log in with `hf auth login`, name another args.hub_model_id, or set args.push_to_hub to false."
        ) from error


def _with_rows(recipe: Recipe) -> Recipe:
    """Return a recipe whose data sets are there, where it describes them by text."""
    if recipe.data is None:
        return recipe
    from gradiend_hub.data import FeatureDatasetBuilder  # of the extra [data], which other recipes do without

    built = FeatureDatasetBuilder(FeatureDataConfig.from_dict(recipe.data)).build()
    if "train" not in built.rows:
        raise ConfigError(f"data.splits: a split `train` is needed to learn from, found {[*built.rows]}.")
    parts = {"train": ("train_dataset", "neutral_train_dataset"), "validation": ("eval_dataset", "neutral_dataset")}
    parts |= {"test": ("test_dataset", "test_neutral_dataset")}
    found: dict[str, Any] = {}
    for split, names in parts.items():
        for name, of in zip(names, (built.rows, built.neutral or {}), strict=True):
            if split in of and getattr(recipe, name) is None:
                found[name] = of[split]
    return replace(recipe, **found)


def _measure(trainer: GradiendTrainer, test: bool, story: Story) -> None:
    """Measure the direction on both splits. It is saved before the test and after it."""
    if trainer.eval_dataset is not None:
        with story.step("Evaluate") as step:
            trainer.evaluate()
            step.outcome = encoder_line(trainer.report.splits["eval"])
    _save(trainer, story, told=not test)
    if test:
        with story.step("Test") as step:
            trainer.evaluate_test()
            step.outcome = encoder_line(trainer.report.splits["test"])
        _save(trainer, story)


def _save(trainer: GradiendTrainer, story: Story, *, told: bool = True) -> None:
    with story.step("Save", told=told) as step:
        trainer.save_model(_internal_call=True)  # without its push, which is a step of its own
        step.outcome = str(trainer.args.output_dir)


@contextmanager
def _resumable(folder: Path, command: str) -> Iterator[None]:
    """Inside, whatever ends a training says how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Interrupted(_how_to_resume(folder, command)) from interrupt
    except GradiendError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # of a full disk, torch says RuntimeError
        raise TrainingError(
            f"The training stopped ({type(error).__name__}: {first_line(error)}). {_how_to_resume(folder, command)}"
        ) from error


@contextmanager
def _kept(trainer: GradiendTrainer) -> Iterator[None]:
    """Inside, whatever fails leaves the direction that was learned in the output folder."""
    try:
        yield
    except BaseException as error:
        where = trainer.args.output_dir
        if not isinstance(error, TrainingError):
            trainer.save_model(_internal_call=True)
        kept = f"The direction as far as it was measured is in {where}"
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"{kept}.") from error
        if isinstance(error, GradiendError):
            raise
        raise TrainingError(f"{type(error).__name__}: {first_line(error)}. {kept}.") from error


def _publish(trainer: GradiendTrainer, story: Story) -> str | None:
    """Push the direction if the recipe says so; its address."""
    if not trainer.args.push_to_hub:
        return None
    folder = trainer.args.output_dir
    later = f"The direction is in {folder}. To publish it later: gradiend-hub push {folder} USER/NAME"
    with on_interrupt(later), story.step("Push") as step:
        commit = trainer.push_to_hub()
        url = str(commit.commit_url) if commit else None
        step.outcome = f"published: {url or 'by the first process'}"
    return url


def _how_to_resume(folder: Path, command: str) -> str:
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    if checkpoint is None:
        return "No checkpoint was written yet (args.save_steps says how often one is), so the run has to start over."
    return f"Everything up to {checkpoint} is kept. To go on from there: {command} --resume"


def _show(trainer: GradiendTrainer, url: str | None, story: Story) -> dict[str, Any]:
    """Print the figures of the direction; return them."""
    splits, folder = trainer.report.splits, Path(trainer.args.output_dir)
    verdict = f" ({trainer.report.verdict})" if trainer.report.verdict else ""
    story.show(f"\n{LEARNED[trainer.report.converged].capitalize()}{printable(verdict)}")
    name = next((n for n in ("test", "eval") if n in splits), None)
    if name is None:
        story.show("Nothing was measured, so strength 1 is no recommendation; name an eval_dataset.")
    else:
        story.show(f"\nWhat each strength changes ({name} split):")
        story.show(curve_table(splits[name], trainer.report.feature_classes))
    attempt = shlex.join([*program(), "apply", str(folder), trainer.objective.asks])
    story.show(f"\ncard    {folder / CARD_FILE}\ntry it  {attempt}", soft_wrap=True)
    return {
        "folder": folder,
        "published": url,
        "steps": trainer.state.global_step,
        "measured": name,
        "learned": trainer.report.converged,
        "verdict": trainer.report.verdict,
        "report": asdict(splits[name]) if name else None,
        "seconds": story.seconds,
        "try": attempt,
    }
