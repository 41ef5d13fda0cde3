"""The damage-aware decoder: its Fisher information against the definition, and its formulas."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gradiend_hub.errors import ConfigError, DataError, TrainingError
from gradiend_hub.gradients import GradientReader, Scope, diagonal_fisher, select_parameters
from gradiend_hub.objectives import Objective, make_objective
from gradiend_hub.solvers import Solution, damage_aware, effect_shares
from tests.models import DECODER
from tests.objectives.tokenizers import causal_tokenizer

TEXTS = ["The dog barked.", "They ran home."]


@pytest.fixture(scope="module")
def reading() -> Iterator[tuple[GradientReader, Objective]]:
    tokenizer = causal_tokenizer("unigram_first")
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**{**DECODER, "vocab_size": len(tokenizer)}))
    with torch.no_grad():
        base.lm_head.weight.mul_(20)  # far from a uniform distribution, where every label would weigh the same
    scope = Scope.dense(select_parameters(base, layers="1"))
    with GradientReader(base, scope) as reader:
        yield reader, make_objective(base, tokenizer)


def by_definition(reader: GradientReader, objective: Objective) -> Tensor:
    """Σ_y p(y)·(∇log p(y))² over the whole vocabulary, mean over all tokens: one gradient by token and label."""
    total, tokens = torch.zeros(reader.scope.size), 0
    for text in TEXTS:
        ids = objective.tokenizer(text).input_ids
        log_probs = reader.model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        for row in log_probs:
            for log_p in row:
                total += float(log_p.detach().exp()) * reader.read(log_p, retain_graph=True).square()
            tokens += 1
    return total / tokens


def test_fisher_is_its_definition(reading: tuple[GradientReader, Objective]) -> None:
    """On average over draws: the sum to a few percent, and each coordinate as well as its noise allows."""
    reader, objective = reading
    expected = by_definition(reader, objective)
    for batch_size in (1, 2):
        found = diagonal_fisher(reader, objective, TEXTS, batch_size=batch_size, draws=120)
        assert float(found.sum() / expected.sum()) == pytest.approx(1, abs=0.1)
        assert float(np.corrcoef(found.numpy(), expected.numpy())[0, 1]) > 0.97


def test_fisher_depends_on_the_seed_alone(reading: tuple[GradientReader, Objective]) -> None:
    reader, objective = reading
    first, again, other = (diagonal_fisher(reader, objective, TEXTS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert bool((first >= 0).all())


def test_fisher_of_kept_coordinates_is_a_part_of_it(reading: tuple[GradientReader, Objective]) -> None:
    reader, objective = reading
    kept = {name: torch.tensor([1, 5]) for name, p in reader.scope.parameters.items() if p.numel() > 5}
    whole = reader.scope.split(diagonal_fisher(reader, objective, TEXTS))
    expected = torch.cat([whole[name][indices] for name, indices in kept.items()])
    reader.__exit__(None, None, None)
    try:
        with GradientReader(reader.model, reader.scope.keep(kept)) as part:
            found = diagonal_fisher(part, objective, TEXTS)
    finally:
        reader.__enter__()
    torch.testing.assert_close(found, expected)


def test_fisher_needs_a_token(reading: tuple[GradientReader, Objective]) -> None:
    with pytest.raises(DataError, match="None of the 1 neutral texts"):
        diagonal_fisher(*reading, [""])


SOLUTION = Solution(torch.ones(4), 0.3, torch.tensor([1.0, -2.0, 3.0, 0.5]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
FISHER = torch.tensor([0.0, 1.0, 4.0, 3.0])


def test_damage_aware_divides_by_the_damped_fisher() -> None:
    found = damage_aware(SOLUTION, FISHER, 0.5)
    weights = 1 / (FISHER + 0.5 * 2)
    torch.testing.assert_close(found.decoder / found.decoder[0], SOLUTION.decoder * weights / weights[0])
    torch.testing.assert_close(found.decoder_bias / found.decoder, SOLUTION.decoder_bias / SOLUTION.decoder)
    assert float(found.decoder.norm()) == pytest.approx(float(SOLUTION.decoder.norm()))
    assert found.encoder is SOLUTION.encoder and found.encoder_bias == SOLUTION.encoder_bias
    torch.testing.assert_close(damage_aware(SOLUTION, FISHER, 1e9).decoder, SOLUTION.decoder)
    with pytest.raises(ConfigError, match="positive"):
        damage_aware(SOLUTION, FISHER, 0.0)


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_no_other_edit_of_equal_cost_has_more_effect(damping: float) -> None:
    """⟨w_d, Δ⟩ at ½·Σ(F + δF̄)Δ² = 1; and of all sparse edits, those at the largest shares have the most."""
    cost = (FISHER + damping * FISHER.mean()).double()

    def effect(delta: Tensor) -> float:
        return float(SOLUTION.decoder.double() @ delta / (cost * delta.square()).sum().sqrt())

    best = damage_aware(SOLUTION, FISHER, damping).decoder.double()
    generator = torch.Generator().manual_seed(0)
    for other in torch.randn(200, 4, generator=generator).double():
        assert effect(other) <= effect(best) + 1e-9
    shares = effect_shares(SOLUTION, FISHER, damping)
    order = shares.argsort(descending=True).tolist()
    pairs = {(i, j): effect(best * torch.eye(4)[[i, j]].sum(0)) for i in range(4) for j in range(i)}
    assert set(max(pairs, key=lambda pair: pairs[pair])) == set(order[:2])


def test_a_text_without_finite_probabilities_is_left_out(
    reading: tuple[GradientReader, Objective], caplog: pytest.LogCaptureFixture
) -> None:
    reader, objective = reading
    odd = next(i for i in objective.tokenizer("cats", add_special_tokens=False).input_ids)
    texts = ["The dog barked.", "The cats ran."]
    assert odd not in objective.tokenizer(texts[0]).input_ids
    expected = diagonal_fisher(reader, objective, texts[:1], batch_size=1, draws=1)
    hook = reader.model.get_input_embeddings().register_forward_hook(
        lambda _module, args, out: out.masked_fill((args[0] == odd)[..., None], torch.nan)
    )
    try:
        assert torch.equal(diagonal_fisher(reader, objective, texts, batch_size=1, draws=1), expected)
        assert caplog.text.count("Text left out") == 1
        with pytest.raises(TrainingError, match="2 of 2 texts have no finite probabilities"):
            diagonal_fisher(reader, objective, [texts[1], "Two cats sat."], draws=1)
    finally:
        hook.remove()
