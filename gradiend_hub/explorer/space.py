"""The explorer as a Space of the Hub: three small files that load published directions."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import CARD_FILE, CONFIG_FILE
from gradiend_hub.artifact.names import hub_id
from gradiend_hub.errors import ConfigError
from gradiend_hub.hub.publish import publish_folder
from gradiend_hub.hub.published import marked
from gradiend_hub.hub.resolve import resolve_folder

_APP = '''"""The explorer of gradiend_hub for some directions."""

from gradiend_hub.explorer import Explorer, build_page, launch_options

page = build_page(Explorer.load({directions!r}, {base!r}))
page.launch(**launch_options())
'''


def space_files(
    directions: Sequence[str], base_model: str | None = None, *, title: str = "Directions"
) -> dict[str, str]:
    """Return the files of a Space by name: its card, its program and what it installs.

    Args:
        directions: Repositories on the Hub.
        base_model: Repository of the base model, if not the one that the directions name.
        title: For people.

    Raises:
        ConfigError: A direction or the base model is not on the Hub.
    """
    for direction in directions:
        if Path(direction).exists() or hub_id(direction) is None:
            raise ConfigError(
                f"{direction} is a folder of this machine, which a Space cannot read. Publish it first: gradiend-hub push "
                f"{direction} USER/NAME. Then give USER/NAME."
            )
    bases = [base_model] if base_model else []
    for direction in () if base_model else directions:
        found = resolve_folder(direction, required=(CONFIG_FILE,), wanted=(CONFIG_FILE,))
        named = GradiendConfig.from_pretrained(str(found.folder)).base_model_name_or_path
        if named is None or hub_id(named) is None:
            raise ConfigError(
                f"{direction} names no base model on the Hub ({named!r}), so a Space cannot load it. Push the direction "
                "again with --base-id, or give --base USER/NAME."
            )
        bases.append(named)
    fields = {
        "title": title,
        "emoji": "🧭",
        "colorFrom": "blue",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": _gradio_version(),
        "app_file": "app.py",
        "pinned": False,
        "models": [*dict.fromkeys([*directions, *bases])],
        "tags": ["gradiend"],
    }
    listed = "\n".join(f"* [{name}](https://huggingface.co/{name})" for name in directions)
    head = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    card = (
        f"---\n{head}---\n<!-- gradiend-hub card  -->\n\n# {title}\n\n"
        f"Move a slider and see what the model says. Directions:\n\n{listed}\n"
    )
    return {
        CARD_FILE: marked(card),
        "app.py": _APP.format(directions=[*directions], base=base_model),
        "requirements.txt": f"gradiend_hub[explorer]=={version('gradiend_hub')}\ntorch\n",
    }


def push_space(
    repo_id: str,
    directions: Sequence[str],
    base_model: str | None = None,
    *,
    private: bool | None = None,
    overwrite: bool = False,
) -> Any:
    """Publish the explorer as a Space in one commit; to repeat a push is safe.

    Args:
        repo_id: The Space, which is made if it does not exist.
        directions: Repositories on the Hub.
        base_model: Repository of the base model, if not the one that the directions name.
        private: Visibility of a new Space.
        overwrite: Replace a Space of something else, or a card that was edited.

    Returns:
        The commit, as of huggingface_hub.

    Raises:
        ConfigError: A direction or the base model is not on the Hub.
        HubPushError: Nothing was committed.
    """
    files = space_files(directions, base_model, title=repo_id.rpartition("/")[2])
    with tempfile.TemporaryDirectory(prefix="gradiend-space-") as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        return publish_folder(
            folder,
            repo_id,
            repo_type="space",
            private=private,
            overwrite=overwrite,
            commit_message="Show directions in the explorer",
        )


def _gradio_version() -> str:
    """Version that the Space runs: the one that is installed here, or the oldest one that the explorer takes."""
    try:
        return version("gradio")
    except ModuleNotFoundError:
        return "6.0.0"
