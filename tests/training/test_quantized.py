"""Directions that are learned on quantised base models."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from gradiend_hub import GradiendModel
from gradiend_hub.adapter.quantized import quantized_layers
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Report
from tests.adapter.test_quantized import GemmLinear, quantize
from tests.training.support import arguments, trainer_of
from tests.training.test_low_rank import cosine, whole


def test_what_is_learned_is_that_of_the_dequantised_model(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    base = AutoModelForMaskedLM.from_pretrained(masked_path, dtype=torch.float32)
    found = []
    for model in quantize(base, GemmLinear):
        args = arguments(tmp_path, max_steps=4, solver="closed_form", rank=8)
        options = {"layers": "3", "train_dataset": pronouns["train"].select(range(64))}
        trainer = trainer_of(model, tmp_path, pronouns, args=args, **options)
        trainer.train()
        found.append(trainer.direction)
    packed, dense = found
    assert packed.parameters.keys() == dense.parameters.keys()
    assert cosine(whole(packed), whole(dense)) > 0.9999
    assert cosine(whole(packed, "encoder"), whole(dense, "encoder")) > 0.9999
    assert packed.fingerprint is not None and dense.fingerprint is not None
    assert packed.fingerprint.samples.keys() < dense.fingerprint.samples.keys()


@pytest.mark.slow
def test_a_natural_decoder_on_a_quantised_base(masked_path: Path, pronouns: Any, neutral: Any, tmp_path: Path) -> None:
    """It is chosen by measuring edits beside packed weights, and is nearly that of the dequantised ones."""
    base = AutoModelForMaskedLM.from_pretrained(masked_path, dtype=torch.float32)
    found = []
    for model in quantize(base, GemmLinear):
        args = arguments(tmp_path, max_steps=4, solver="closed_form", decoder="natural", controls=0, quality_tokens=60)
        options = {"layers": "3", "train_dataset": pronouns["train"].select(range(64))}
        options |= {"eval_dataset": pronouns["validation"].select(range(8))}
        trainer = trainer_of(
            model,
            tmp_path,
            pronouns,
            neutral,
            args=args,
            neutral_train_dataset=neutral.select(range(20, 28)),
            **options,
        )
        trainer.train()
        effects = trainer.report.training["effect_by_damping"]
        found.append(
            (trainer.direction, {kind: effects[kind] for kind in ("plain +", "plain -", "10/10 +", "10/10 -")})
        )
    (packed, by_packed), (dense, by_dense) = found
    assert by_packed == pytest.approx(by_dense, rel=0.1)  # both kinds of layers round in their own way
    assert cosine(whole(packed, "encoder"), whole(dense, "encoder")) > 0.999


def test_solvers_of_whole_gradients_are_refused(masked_path: Path, pronouns: Any, tmp_path: Path) -> None:
    base = AutoModelForMaskedLM.from_pretrained(masked_path, dtype=torch.float32)
    packed, _ = quantize(base, GemmLinear)
    for options in ({}, {"solver": "closed_form"}, {"rank": 8}):
        with pytest.raises(ConfigError, match=r"are quantised.*rank=8"):
            trainer_of(packed, tmp_path, pronouns, args=arguments(tmp_path, **options))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install bitsandbytes")
@pytest.mark.filterwarnings("ignore:.*MatMul8bitLt.*:UserWarning")
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(bits: int, causal_path: Path, pronouns: Any, neutral: Any, tmp_path: Path) -> None:
    """As transformers loads it: learned, measured, saved, loaded again, and nearly what the weights in fp32 teach."""
    tokenizer = AutoTokenizer.from_pretrained(causal_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **sizes))
    for parameter in plain.parameters():
        if parameter.ndim == 1:  # norms tell base models apart; packed weights have no values that could
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    plain.save_pretrained(tmp_path / "base")  # its widths are whole blocks of 64, which 4 bits need on CPUs
    tokenizer.save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4")

    def load(**options: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32, **options)

    def run(model: Any) -> Any:
        """In inference, some CPUs' 4-bit weights are put in another order, and their scales are rounded to bf16."""
        with torch.no_grad():
            model(input_ids=torch.tensor([tokenizer("the boy was tired because")["input_ids"]]))
        return model

    trainers = []
    for base in (run(load(quantization_config=quantization)), load()):
        args = arguments(tmp_path / "out", max_steps=12, solver="closed_form", rank=8, overwrite_output_dir=True)
        trainer = trainer_of(base, tmp_path, pronouns, neutral=neutral, args=args)
        trainer.train()
        trainers.append(trainer)
    packed, plain = (trainer.direction for trainer in trainers)
    assert packed.parameters.keys() == plain.parameters.keys()
    assert cosine(whole(packed), whole(plain)) > (0.9 if bits == 8 else 0.6)
    trainers[0].evaluate()
    trainers[0].save_model(str(tmp_path / "saved"))
    report = Report.load(tmp_path / "saved")
    assert sum(layer.share for layer in report.layers) == pytest.approx(1)
    assert all(0 <= loss <= 1 for loss in report.dtype_loss.values())
    again = load(quantization_config=quantization)  # before any inference
    model = GradiendModel.from_pretrained(tmp_path / "saved", again, strength=1.0)
    assert len(quantized_layers(model)) == 14
    rows = list(pronouns["validation"].select(range(20)))
    mine = trainers[0]._run.encode(trainers[0]._best().solution, trainers[0]._run.data.eval_rows[:20])[0]
    encoded = torch.as_tensor(model.encode(rows))  # by another gain, where the training made the encoder quieter
    assert float(torch.corrcoef(torch.stack([encoded, mine]))[0, 1]) > 0.95
    assert model.verify().passed
    dense = GradiendModel.from_pretrained(tmp_path / "saved", load(), strength=1.0).verify()
    form = next(check for check in dense.checks if check.name == "form of the weights")
    assert (form.claimed, form.found, form.passed) == (f"bitsandbytes, {bits} bits", "not quantised", False)
