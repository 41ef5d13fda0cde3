"""The bundled encoder-decoder model: a BART that is made of the bundled masked model and learns to fill in what is left out.

BART's encoder layers compute what BERT's do, so the encoder, both embeddings and the decoder's layers begin as the masked
model's (Rothe et al., 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks"); the decoder's attention to
the encoder begins at random. From scratch, a model of this size reads nothing of the context within an hour.
"""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration, BertForMaskedLM, PreTrainedTokenizerFast

DECODER_LAYERS = 2
SPAN_RATE, SPANS = 0.1, (1, 1, 1, 2, 3)  # spans of these lengths begin at the rate
KEPT_WEIGHT = 0.3  # of the tokens that the decoder only has to copy


def from_masked(masked: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast) -> BartForConditionalGeneration:
    """A BART with the weights of a masked model wherever it has the same layers."""
    of, bert = masked.config, masked.bert
    size = {"attention_heads": of.num_attention_heads, "ffn_dim": of.intermediate_size}
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=of.vocab_size,
            d_model=of.hidden_size,
            encoder_layers=of.num_hidden_layers,
            decoder_layers=DECODER_LAYERS,
            max_position_embeddings=of.max_position_embeddings,
            activation_function=of.hidden_act,
            dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
            decoder_start_token_id=tokenizer.sep_token_id,
            forced_eos_token_id=None,
            **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in size.items()},
        )
    )
    words, positions = bert.embeddings.word_embeddings.weight, bert.embeddings.position_embeddings.weight
    with torch.no_grad():
        model.model.shared.weight.copy_(words)
        model.final_logits_bias.copy_(masked.cls.predictions.bias)
        for side in (model.model.encoder, model.model.decoder):
            side.embed_positions.weight[side.embed_positions.offset :] = (
                positions + bert.embeddings.token_type_embeddings.weight[0]
            )
            side.layernorm_embedding.load_state_dict(bert.embeddings.LayerNorm.state_dict())
    for own, layer in zip(model.model.encoder.layers, bert.encoder.layer, strict=True):
        copy_layer(own, layer)
    for own, layer in zip(model.model.decoder.layers, bert.encoder.layer[-DECODER_LAYERS:], strict=True):
        copy_layer(own, layer)
    return model


def copy_layer(own: nn.Module, layer: nn.Module) -> None:
    """Give a layer of BART the weights of one of BERT; its attention to the encoder stays as it is."""
    attention = layer.attention
    for to, of in (
        (own.self_attn.q_proj, attention.self.query),
        (own.self_attn.k_proj, attention.self.key),
        (own.self_attn.v_proj, attention.self.value),
        (own.self_attn.out_proj, attention.output.dense),
        (own.self_attn_layer_norm, attention.output.LayerNorm),
        (own.fc1, layer.intermediate.dense),
        (own.fc2, layer.output.dense),
        (own.final_layer_norm, layer.output.LayerNorm),
    ):
        to.load_state_dict(of.state_dict())


def left_out(row: list[int], pronouns: set[int], rng: random.Random, pronoun_rate: float) -> list[tuple[int, int]]:
    """Draw the spans of a text that are left out, as (start, stop).

    The first token and the last one stay. Pronouns are left out by themselves, at a rate of their own.
    """
    spans, place = [], 1
    while place < len(row):
        count = 0
        if row[place] in pronouns:
            count = int(rng.random() < pronoun_rate)
        elif rng.random() < SPAN_RATE:
            count = rng.choice(SPANS)
        count = min(count, len(row) - 1 - place)
        if count:
            spans.append((place, place + count))
        place += max(count, 1)
    return spans


def corrupt(
    row: list[int], pronouns: set[int], mask: int, rng: random.Random, pronoun_rate: float
) -> tuple[list[int], list[bool]]:
    """The tokens of a text with one mask in place of each span that is left out, and which of its tokens these are."""
    source, hidden, place = list[int](), [False] * len(row), 0
    for start, stop in left_out(row, pronouns, rng, pronoun_rate):
        source += [*row[place:start], mask]
        hidden[start:stop] = [True] * (stop - start)
        place = stop
    return source + row[place:], hidden


def seq2seq_loss(
    model: BartForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[list[int]],
    pronouns: set[int],
    rng: random.Random,
    pronoun_rate: float,
) -> torch.Tensor:
    """The mean cross entropy of what is left out of some rows, and a share of that of what the decoder copies."""
    pairs = [corrupt(row, pronouns, tokenizer.mask_token_id, rng, pronoun_rate) for row in rows]
    source = padded([source for source, _ in pairs], tokenizer.pad_token_id)
    written = padded([[model.config.decoder_start_token_id, *row[:-1]] for row in rows], tokenizer.pad_token_id)
    labels, hidden = padded(rows, -100), padded([[*map(int, hidden)] for _, hidden in pairs], 0).bool()
    real_source = (source != tokenizer.pad_token_id).long()
    states = model.model(
        input_ids=source, attention_mask=real_source, decoder_input_ids=written, use_cache=False
    ).last_hidden_state
    real = labels != -100
    losses = F.cross_entropy(model.lm_head(states[real]) + model.final_logits_bias, labels[real], reduction="none")
    hidden = hidden[real]
    left_out = losses[hidden].mean() if hidden.any() else losses.new_zeros(())
    return left_out + KEPT_WEIGHT * losses[~hidden].mean()


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """Token lists as one tensor (rows, longest), padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
