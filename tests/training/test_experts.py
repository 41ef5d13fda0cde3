"""A direction over the fused experts of a mixture, learned by factors: trained, saved, loaded, applied, undone, exported."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.solvers.base import ByParameter
from gradiend_hub.training.decoders import constant
from tests.training.support import arguments, trainer_of


@pytest.fixture(scope="module")
def mixture(causal_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral with random weights, and the tokenizer of the bundled causal model."""
    folder = tmp_path_factory.mktemp("mixture")
    tokenizer = tf.AutoTokenizer.from_pretrained(causal_path)
    torch.manual_seed(0)
    config = tf.MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    tf.MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("decoder", ["solver", "natural"])
def test_from_training_to_export(
    mixture: Path, pronouns: Any, neutral: Any, tmp_path: Path, decoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments(tmp_path / "run", solver="closed_form", decoder=decoder, rank=4, max_steps=6, quality_tokens=100)
    spared = {"neutral_train_dataset": neutral.select(range(12, 72))} if decoder == "natural" else {}
    trainer = trainer_of(mixture, tmp_path / "run", pronouns, neutral, args=args, **spared)
    assert trainer.dry_run().steps == 6
    with caplog.at_level(logging.INFO, logger="gradiend_hub"):
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
    assert "gradients of their own" not in caplog.text
    assert "one at a time" not in caplog.text
    direction = trainer.direction
    stacks = {name: part for name, part in direction.parameters.items() if len(part.shape) == 3}
    assert len(stacks) == 4
    for part in stacks.values():
        assert isinstance(part.decoder, Factors) and part.decoder.b.ndim == 3
        assert part.spec()["stacked"] and part.rank == 4

    base = tf.AutoModelForCausalLM.from_pretrained(mixture)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    model = GradiendModel.from_pretrained(tmp_path / "saved", base_model=base, strength=0.1)
    c_w, c_b = model.active_peft_config.coefficients(0.1)
    changed = {name: model.get_base_model().get_parameter(name).detach().clone() for name in stacks}
    for name, part in stacks.items():
        delta = c_w * (part.decoder.b @ part.decoder.a)
        if isinstance(part.decoder_bias, Factors):
            delta = delta + c_b * (part.decoder_bias.b @ part.decoder_bias.a)
        assert bool(delta.any())
        torch.testing.assert_close(changed[name], before[name] + delta, rtol=1e-5, atol=1e-5)
    with model.strength_at(0.0):
        for name in stacks:
            assert torch.equal(model.get_base_model().get_parameter(name), before[name])
    written = model.to_lora(tmp_path / "lora")
    assert {written.left_out[name] for name in stacks} == {"a stack of 4 matrices of MixtralExperts"}
    assert 0 < written.energy < 1


def test_what_time_is_predicted_with_has_the_form_of_what_is_learned(
    mixture: Path, pronouns: Any, tmp_path: Path
) -> None:
    args = arguments(tmp_path, solver="closed_form", rank=4, max_steps=2)
    trainer = trainer_of(mixture, tmp_path, pronouns, args=args)
    run = trainer._run
    stand_in = constant(run.scope, 4, 1e-3, run.stacked)
    trainer.train()
    assert isinstance(stand_in, ByParameter)
    for name, part in trainer.direction.parameters.items():
        like, found = stand_in.parts[name], part.decoder
        if isinstance(found, Factors):
            assert isinstance(like, Factors) and (like.b.shape, like.a.shape) == (found.b.shape, found.a.shape)
        else:
            assert isinstance(like, torch.Tensor) and like.numel() == found.numel()
