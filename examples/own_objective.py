"""An objective of one's own: which of two words comes *last* in a sentence, read by a causal model from the whole beginning.

python examples/own_objective.py

An objective says what a record is, what the model reads and where, and which outputs there are; learning, measuring,
cards and the Hub then work as for the built-in ones. Import the module that registers it before loading a direction.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.utils import logging

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.data import Row
from gradiend_hub.errors import DataError
from gradiend_hub.objectives import IGNORED, Batch, Example, Objective, Sample, position_logits, register_objective


# objective
@register_objective
class LastWord(Objective):
    """The last word of a sentence: one position, as many outputs as the vocabulary has tokens."""

    name, task, auto_class = "last_word", "text-generation", AutoModelForCausalLM
    columns = ("beginning", "last", "other", "factual_class", "alternative_class")

    @classmethod
    def fits(cls, architecture: str, config: Any) -> bool:
        return architecture.endswith("ForCausalLM")

    @classmethod
    def load_processor(cls, name_or_path: str, **hub: Any) -> Any:
        return AutoTokenizer.from_pretrained(name_or_path, **hub)

    @property
    def width(self) -> int:
        return len(self.processor)

    def read(self, record: Mapping[str, Any]) -> Row:
        if missing := [name for name in self.columns if not isinstance(record.get(name), str)]:
            raise DataError(f"column {missing} must be a text.")
        return Row(*(record[name] for name in self.columns))

    def record(self, row: Row) -> dict[str, Any]:
        return dict(zip(self.columns, vars(row).values(), strict=True))

    def _sample(self, ids: Sequence[int], start: int) -> Sample:  # reads the tokens from `start` on
        return Sample({"ids": tuple(ids[:-1])}, tuple(range(start - 1, len(ids) - 1)), tuple(ids[start:]), len(ids))

    def sample(self, row: Row, output: str) -> Sample:
        return self._sample(self.processor(f"{row.input} {output}").input_ids, len(self.processor(row.input).input_ids))

    def quality_samples(self, item: str, rng: random.Random, draws: int = 1) -> list[Sample]:
        return [self._sample(self.processor(item).input_ids[:64], 1)]

    def neutral_example(self, item: str, rng: random.Random) -> Example | None:
        return Example(*self.quality_samples(item, rng) * 2)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
            return torch.tensor([[*row, *[fill] * (max(map(len, rows)) - len(row))] for row in rows])

        inputs = {"input_ids": padded([sample.inputs["ids"] for sample in samples], 0)}
        places, labels = [sample.positions for sample in samples], [sample.labels for sample in samples]
        return Batch(inputs, padded(places, 0), padded(labels, IGNORED), tuple(samples))

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        return position_logits(model, batch).log_softmax(-1)

    def describe(self, sample: Sample) -> tuple[str, str]:
        return f"{self.processor.decode(sample.inputs['ids'])} [MASK]", self.processor.decode(sample.labels)

    def show(self, row: Row) -> str:
        return f"{row.input} [{row.factual}]"


# end of the objective


def main() -> None:
    """Learn whether a sentence ends by day or by night, publish it into a folder, and load it from there."""
    logging.disable_progress_bar()
    base = Path(__file__).parent / "base_models" / "causal"
    people = ("king", "man", "woman", "child", "prince", "priest", "servant", "widow", "captain", "girl", "boy", "lord")
    rows = [
        {
            "beginning": f"The {person} {deed} by",
            "last": last,
            "other": other,
            "factual_class": last,
            "alternative_class": other,
        }
        for person in people
        for deed in ("walked home", "came back", "left the city")
        for last, other in (("day", "night"), ("night", "day"))
    ]
    neutral = [{"text": f"And the {person} said that it was good."} for person in people]
    with tempfile.TemporaryDirectory() as folder:
        arguments = GradiendTrainingArguments(
            folder,
            solver="closed_form",
            controls=1,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        config = GradiendConfig(feature_classes=["day", "night"])
        trainer = GradiendTrainer(
            base, config, arguments, train_dataset=rows[:48], eval_dataset=rows[48:], neutral_dataset=neutral
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.evaluate()
        trainer.save_model()
        print("objective:", trainer.objective.name)
        for point in trainer.report.splits["eval"].curve:
            if point.strength in (-1, 0, 1):
                print(
                    f"strength {point.strength:+g}: P(day) {point.probability['night']['day']:.3f} where it was night, ",
                    end="",
                )
                print(f"P(night) {point.probability['day']['night']:.3f} where it was day")
        model = GradiendModel.from_pretrained(folder, strength=0.0)
        values = model.encode(rows[48:])
        print(f"encodings: day {values[::2].mean():+.2f}, night {values[1::2].mean():+.2f}")
        print("self-test passed:", model.verify().passed)


if __name__ == "__main__":
    main()
