"""The way of a direction between people: two authors publish; a third finds, compares, loads, measures and merges, and the
author takes the measurement.

    python -m tests.hub_server exec -- python examples/journey.py      # offline, against a Hub of its own on this machine
    python examples/journey.py --tokens hf_… hf_… hf_…                 # on the Hub: three accounts, or one token thrice

Each step is the command that a person would type; `$ NAME:` says who. On the Hub, a base model, two directions and a
rewritten model are made under the names of their owners, all called `NAME-…` (`--name`); delete them afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

from gradiend_hub import GradiendModel
from gradiend_hub.hub import search_directions
from gradiend_hub_cli import app

EXAMPLES = Path(__file__).parent
OFFLINE_TOKENS = ["hf_alice_write", "hf_bob_write", "hf_carol_write"]
"""Those of `tests/hub_server`."""


class Person:
    """Somebody with an account on the Hub."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.api = HfApi(token=token)
        self.name = self.api.whoami()["name"]

    def runs(self, *words: object) -> None:
        """Run a command of `gradiend-hub` as this person, and show it."""
        arguments = [str(word) for word in words]
        shown = shlex.join(arguments).replace(f"{EXAMPLES.parent}/", "")
        print(f"\n$ {self.name}: gradiend-hub {shown}", flush=True)
        os.environ["HF_TOKEN"] = self.token
        if code := app(arguments, standalone_mode=False):
            raise SystemExit(f"gradiend-hub ended with exit status {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", nargs=3, metavar="TOKEN", default=OFFLINE_TOKENS, help="of the three people")
    parser.add_argument("--name", default="journey", help="what the repositories' names begin with")
    parser.add_argument("--rows", type=int, default=64, help="rows of each split that is learned from and measured on")
    options = parser.parse_args()
    alice, bob, carol = map(Person, options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        travel(Path(folder), alice, bob, carol, options.name, options.rows)


def travel(out: Path, alice: Person, bob: Person, carol: Person, name: str, rows: int) -> None:
    """All steps, one after the other.

    Args:
        out: folder for what is written.
        alice, bob: the authors, and `carol` who reads.
        name: what the repositories' names begin with.
        rows: of each split.
    """
    base = f"{alice.name}/{name}-base"
    alice.api.create_repo(base, exist_ok=True)
    alice.api.upload_folder(repo_id=base, folder_path=EXAMPLES / "base_models" / "masked")

    print("# Two authors learn the same feature, one of them from few rows, and publish with one command each.")
    authors = {
        f"{alice.name}/{name}-number": (alice, rows),
        f"{bob.name}/{name}-number-small": (bob, max(32, rows // 4)),
    }
    for repo_id, (author, count) in authors.items():
        place = out / repo_id.split("/")[1]
        learn(author, base, place, count, rows)
        author.runs("push", place, repo_id)

    print("\n# A third person finds them by base and feature; of each, one small file is read.")
    carol.runs("search", name, "--base", base, "--feature", "3pl", "--sort", "effect")
    found = [
        one.repo_id for one in search_directions(name, base_model=base, feature="3pl", sort="effect", token=carol.token)
    ]
    assert set(found) == set(authors), found
    best = found[0]

    print("\n# Claims side by side, and whether they fit the base model.")
    carol.runs("info", *found, "--base", base)

    print("\n# Loaded by its id, the base model comes along. Strength 0 is the base model.")
    carol.runs("apply", best, "The players ran home because [MASK] was late.", "--strengths", "-1,0,1", "--top", 3)
    model = GradiendModel.from_pretrained(best, strength=0.0, token=carol.token)
    print(f"GradiendModel.from_pretrained({best!r}): {model!r}")

    print("\n# Measured again, and proposed to its author as a pull request; others see it at once, as not yet taken.")
    data = EXAMPLES / "data" / "pronouns"
    neutral = ("--neutral", f"{data}:neutral", "--neutral-split", f"neutral[:{rows}]")
    measured = out / "carols-pronouns.json"
    carol.runs(
        "evaluate", best, "--data", data, "--split", f"validation[:{rows}]", *neutral, "--controls", 0,
        "--strengths", "-1,0,1", "--out", measured, "--create-pr", best,
    )  # fmt: skip
    carol.runs("info", best)

    print("\n# Merged at a strength, measured before and after, and published as a plain model with a card of its own.")
    rewritten = f"{carol.name}/{name}-rewritten"
    carol.runs(
        "merge", best, out / "rewritten", "--strength", -1, "--measure", f"{data}", "--neutral", f"{data}:neutral",
        "--push-to", rewritten,
    )  # fmt: skip
    card = ModelCard.load(rewritten, token=carol.token)
    print(f"\n{rewritten}: base_model {card.data.base_model}, tags {card.data.tags}")
    print(card.text[card.text.index("## Parents") : card.text.index("## How to get")].strip())

    print(
        "\n# It is no direction, so a search for directions does not show it; a collection holds what belongs together."
    )
    assert rewritten not in [one.repo_id for one in search_directions(name, token=carol.token)]
    carol.runs("collection", "add", f"{name}: number", *found, rewritten)

    print("\n# Its author takes the measurement, and one command shows it on the card.")
    author = authors[best][0]
    author.api.merge_pull_request(best, max(request.num for request in author.api.get_repo_discussions(best)))
    author.runs("refresh", best)
    text = ModelCard.load(best, token=carol.token).text
    print(text[text.index("## Measured by others") : text.index("## Base model and edit")].strip())


def learn(author: Person, base: str, place: Path, count: int, rows: int) -> None:
    """Learn a direction of the published base model from `count` rows, and measure it on as many as there are."""
    data = str(EXAMPLES / "data" / "pronouns")
    splits = {"train": f"train[:{count}]", "eval": f"validation[:{rows}]", "test": f"test[:{rows}]"}
    sources = {part: {"path": data, "split": split} for part, split in splits.items()}
    for part, start in (("neutral", 0), ("test_neutral", rows)):
        sources[part] = {"path": data, "name": "neutral", "split": f"neutral[{start}:{start + rows}]"}
    changed = [f"{part}_dataset={json.dumps(source)}" for part, source in sources.items()]
    changed += [
        f"model={base}",
        f"args.output_dir={place}",
        "args.solver=closed_form",
        "args.per_device_train_batch_size=8",
    ]
    author.runs(
        "train", EXAMPLES / "train.yaml", *(word for change in changed for word in ("--set", change)), "--quiet"
    )


if __name__ == "__main__":
    main()
