"""Facts about models that are found by running them, on tiny models of many kinds."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn

from gradiend_hub.errors import BaseModelError
from gradiend_hub.gradients import GradientReader, Scope, directional_derivatives, read_pair, select_parameters
from gradiend_hub.objectives import Example, make_objective, objective_name
from gradiend_hub.objectives.checks import behaviour_of, longest_input
from tests.models import ARCHITECTURES, DECODER, TEXT, VOCABULARY, build
from tests.objectives.support import sample_of
from tests.objectives.tokenizers import causal_tokenizer, masked_tokenizer

LANGUAGE = [a for a in ARCHITECTURES if a not in ("bert_classifier", "t5", "bart", "vit", "clip_text", "convnet")]
MASKED = ("bert", "roberta", "distilbert", "deberta", "electra", "modernbert")


@pytest.mark.parametrize("architecture", LANGUAGE)
def test_what_a_model_reads_is_found_by_running_it(architecture: str) -> None:
    behaviour = behaviour_of(build(architecture))
    assert behaviour is not None
    assert behaviour.looks_ahead == (architecture in MASKED)
    assert not behaviour.reads_left_only or architecture not in MASKED
    assert not behaviour.padding_matters
    assert objective_name(build(architecture)) == ("masked_lm" if architecture in MASKED else "causal_lm")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["bert", "llama", "mixtral"])
def test_rounding_is_not_taken_for_it(architecture: str, dtype: torch.dtype) -> None:
    behaviour = behaviour_of(build(architecture, dtype))
    assert behaviour is not None
    assert not behaviour.padding_matters
    assert behaviour.reads_left_only == (architecture != "bert")


def flaubert() -> nn.Module:
    return tf.FlaubertWithLMHeadModel(
        tf.FlaubertConfig(vocab_size=VOCABULARY, emb_dim=16, n_layers=2, n_heads=2)
    ).eval()


def xlm(causal: bool) -> nn.Module:
    config = tf.XLMConfig(vocab_size=VOCABULARY, emb_dim=16, n_layers=2, n_heads=2, causal=causal)
    return tf.XLMWithLMHeadModel(config).eval()


def test_models_of_xlms_generation_have_one_name_for_both_heads() -> None:
    assert objective_name(flaubert()) == "masked_lm"
    assert objective_name(xlm(causal=False)) == "masked_lm"
    assert objective_name(xlm(causal=True)) == "causal_lm"
    make_objective(flaubert(), masked_tokenizer("word_piece"))


def test_a_discriminator_is_no_masked_language_model() -> None:
    model = tf.ElectraForPreTraining(tf.ElectraConfig(**TEXT, embedding_size=8)).eval()
    with pytest.raises(
        BaseModelError, match=r"ElectraForPreTraining predicts no words: expected logits .* found \[1, 9\]"
    ):
        make_objective(model, masked_tokenizer("word_piece"))


ENCODERS_WITH_A_CAUSAL_HEAD = {
    tf.BertLMHeadModel: tf.BertConfig,
    tf.RobertaForCausalLM: tf.RobertaConfig,
    tf.CamembertForCausalLM: tf.CamembertConfig,
    tf.XLMRobertaForCausalLM: tf.XLMRobertaConfig,
    tf.ElectraForCausalLM: tf.ElectraConfig,
    tf.ErnieForCausalLM: tf.ErnieConfig,
    tf.MegatronBertForCausalLM: tf.MegatronBertConfig,
    tf.RemBertForCausalLM: tf.RemBertConfig,
    tf.RoFormerForCausalLM: tf.RoFormerConfig,
}


@pytest.mark.parametrize("kind", ENCODERS_WITH_A_CAUSAL_HEAD, ids=lambda kind: kind.__name__)
def test_an_encoder_that_looks_ahead_is_refused_as_causal(kind: type[tf.PreTrainedModel]) -> None:
    config = ENCODERS_WITH_A_CAUSAL_HEAD[kind]
    encoder = kind(config(**TEXT)).eval()
    with pytest.raises(BaseModelError, match=rf"{kind.__name__} reads the text behind a token, too.*is_decoder=True"):
        make_objective(encoder, causal_tokenizer("byte_bpe"))
    decoder = kind(config(**TEXT, is_decoder=True)).eval()
    assert make_objective(decoder, causal_tokenizer("byte_bpe")).name == "causal_lm"


def test_a_causal_model_fills_no_masks() -> None:
    with pytest.raises(BaseModelError, match="predicts each token from the text before it"):
        make_objective(build("llama"), masked_tokenizer("word_piece"), name="masked_lm")


def fnet() -> nn.Module:
    torch.manual_seed(0)
    return tf.FNetForMaskedLM(tf.FNetConfig(**{k: v for k, v in TEXT.items() if k != "num_attention_heads"})).eval()


def test_rows_of_a_model_that_reads_its_padding_are_run_by_length() -> None:
    """FNet mixes all positions: a row beside a longer one would be another row."""
    model = fnet()
    objective = make_objective(model, masked_tokenizer("word_piece"))
    assert objective.padding_matters  # type: ignore[attr-defined]
    rows = [sample_of(range(5, 5 + n), (1, 2)[: 1 + n % 2], (7, 9)[: 1 + n % 2]) for n in (5, 9, 5, 12, 9)]
    together = objective.log_probs(model, objective.collate(rows))
    for i, row in enumerate(rows):
        alone = model(torch.tensor([row.inputs["input_ids"]])).logits[0, list(row.positions)].log_softmax(-1)
        torch.testing.assert_close(together[i, : len(row.positions)], alone, rtol=1e-5, atol=1e-5)
    tangents = {name: torch.ones_like(p) / p.numel() for name, p in select_parameters(model).items()}
    batch = directional_derivatives(model, objective, rows, tangents, batch_size=5)
    single = torch.cat([directional_derivatives(model, objective, [row], tangents) for row in rows])
    torch.testing.assert_close(batch, single, rtol=1e-4, atol=1e-6)


def test_its_gradients_are_those_of_single_rows() -> None:
    model = fnet()
    objective = make_objective(model, masked_tokenizer("word_piece"))
    examples = [Example(sample_of(range(5, 5 + n), (1,), (7,)), sample_of(range(5, 5 + n), (1,), (9,))) for n in (5, 9)]
    scope = Scope.dense(select_parameters(model))
    with GradientReader(model, scope) as reader:
        both = read_pair(reader, objective, objective.collate_pairs(examples), source="factual")[0].clone()
        apart = [
            read_pair(reader, objective, objective.collate_pairs([e]), source="factual")[0].clone() for e in examples
        ]
    torch.testing.assert_close(both, (apart[0] + apart[1]) / 2, rtol=1e-4, atol=1e-6)


LIMITED = {
    "MPT": lambda: tf.MptForCausalLM(tf.MptConfig(vocab_size=VOCABULARY, d_model=16, n_layers=1, n_heads=2, max_seq_len=24)),
    "GPT-2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=24)
    ),
    "CTRL": lambda: tf.CTRLLMHeadModel(
        tf.CTRLConfig(vocab_size=VOCABULARY, n_positions=24, n_embd=16, dff=16, n_layer=1, n_head=2)
    ),
    "OPT": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
            max_position_embeddings=24, word_embed_proj_dim=16, pad_token_id=0,
        )
    ),
    "GPT-J": lambda: tf.GPTJForCausalLM(
        tf.GPTJConfig(vocab_size=VOCABULARY, n_positions=24, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIMITED)
def test_the_longest_row_that_is_allowed_can_be_read(kind: str) -> None:
    model = LIMITED[kind]().eval()
    limit = longest_input(model)
    assert limit == 24
    ids = torch.full((1, limit), 5)
    with torch.no_grad():
        assert model(ids).logits.shape == (1, 24, VOCABULARY)
    objective = make_objective(model, causal_tokenizer("byte_bpe"))
    assert objective.max_length == 24  # type: ignore[attr-defined]
    encoded = objective.cut(objective.encode("the dog barked because it was hungry and they left " * 9))  # type: ignore[attr-defined]
    assert len(encoded.ids) == 24


def gemma3() -> nn.Module:
    text = {**DECODER, "head_dim": 8, "sliding_window": 8}
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16,
              "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    return tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=text, vision_config=vision)).eval()


def test_a_model_of_text_and_images_is_read_and_edited_in_its_text_part() -> None:
    model = gemma3()
    assert objective_name(model) == "causal_lm"
    chosen = select_parameters(model)
    assert chosen
    assert not any("vision" in name for name in chosen)
    assert all(".layers." in name for name in chosen)
    objective = make_objective(model, causal_tokenizer("byte_bpe"))
    with GradientReader(model, Scope.dense(chosen)) as reader:
        example = Example(*(sample_of(range(5, 12), (6,), (label,)) for label in (20, 30)))
        read_pair(reader, objective, objective.collate_pairs([example]))
        assert not reader.silent
