"""The code that a card shows, and the run of it that its output comes from."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import SLOT
from gradiend_hub.evaluation import Report, SplitReport
from gradiend_hub.evaluation.measure import compared_strengths
from gradiend_hub.hub.names import hub_id
from gradiend_hub.plots.style import shown_split

__all__ = ["MOST_PARAMETERS", "plain_usage", "run_usage"]

logger = logging.getLogger(__name__)

MOST_PARAMETERS = 1_000_000_000
"""Largest base model that is loaded a second time to run the code of a card."""

_PLACE = "REPO_ID_OR_FOLDER"
_BASE = "PATH_OR_ID_OF_THE_BASE"

_CODE = """\
import torch
import gradiend_hub  # registers the adapter type; without it PEFT raises KeyError: 'GRADIEND'
from gradiend_hub import GradiendModel
from peft import PeftModel

model = GradiendModel.from_pretrained({place}, {base}strength=0.0)
tokens = model.tokenizer({text}, return_tensors="pt", return_token_type_ids=False)
with torch.inference_mode():
    before = model(**tokens).logits
    model.set_strength({strength})  # the recommended dose; always computed from the original weights
    edited, receipt = model(**tokens).logits, model.receipt
    model.set_strength(0.0)
    print("undone to the bit:", torch.equal(model(**tokens).logits, before))
print(f"changed at strength {dose}: {{receipt.entries}} weights in {{receipt.tensors}} tensors")

plain = PeftModel.from_pretrained(model.unload(), {place})  # plain PEFT works, too
merged = plain.merge_and_unload()  # a plain transformers model
with torch.inference_mode():
    print(type(merged).__name__, "equals strength {dose} to the bit:", torch.equal(merged(**tokens).logits, edited))
"""

_TEXT = "The players ran home because it was late."


def plain_usage(config: GradiendConfig, split: SplitReport | None) -> dict[str, str]:
    """Python ("code") and shell ("shell") lines with placeholders for where the direction (and a local base) is."""
    return _usage(config, _PLACE, None if hub_id(config.base_model_name_or_path) else _BASE, _sentence(split))


def run_usage(folder: str | Path, report: Report) -> dict[str, str] | None:
    """Run the lines of `plain_usage` on a saved direction, in this process, as a reader would: from the files alone.

    Returns:
        The lines as the card shows them, with what they printed as "output" and "shell_output"; `None`, with a warning
        in the log, if they failed.
    """
    config = GradiendConfig.from_pretrained(str(folder))
    split = shown_split(report)[1] if report.splits else None
    real = _usage(config, str(folder), config.base_model_name_or_path, _sentence(split))
    try:
        output = _printed(lambda: exec(compile(real["code"], "card", "exec"), {}))
        shell_output = _printed(lambda: _command(shlex.split(real["shell"].replace("\\\n", ""))))
    except Exception as error:  # whatever a model does: the card then says that nothing was run
        logger.warning(f"The code of the card did not run on {folder}: {error!r}")
        return None
    return {**plain_usage(config, split), "output": output, "shell_output": shell_output}


def _usage(config: GradiendConfig, place: str, base: str | None, sentence: str) -> dict[str, str]:
    code = _CODE.format(
        place=json.dumps(place), base="" if base is None else f"base_model={json.dumps(base)}, ",
        text=json.dumps(sentence.replace(SLOT, "it"), ensure_ascii=False),
        strength=float(config.strength), dose=f"{config.strength:g}",
    )  # fmt: skip
    named = "" if base is None else f" --base {shlex.quote(base)}"
    strengths = ",".join(f"{strength:g}" for strength in compared_strengths(config))
    shell = f"gradiend-hub apply {shlex.quote(place)} {shlex.quote(sentence)}{named} --strengths {strengths}"
    return {"code": code, "shell": shell}


def _sentence(split: SplitReport | None) -> str:
    """A text of one line that the direction has something to say about, if there is one."""
    texts = [completion.text for completion in split.completions] if split else []
    plain = [text for text in texts if text.isprintable() and re.fullmatch(r"[^'\"\\`$]{1,200}", text)]
    return min(plain, key=len) if plain else _TEXT.replace("it", SLOT)


def _printed(run: Callable[[], object]) -> str:
    """What it prints, without the colours that FORCE_COLOR asks for."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        run()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    return "\n".join(line.rstrip() for line in plain.strip("\n").splitlines())


def _command(line: list[str]) -> None:
    """Run an installed command in this process."""
    (command,) = entry_points(group="console_scripts", name=line[0])
    before, sys.argv = sys.argv, line
    try:
        command.load()()
    except SystemExit as done:
        if done.code:
            raise RuntimeError(f"{shlex.join(line)} ended with status {done.code}") from done
    finally:
        sys.argv = before
