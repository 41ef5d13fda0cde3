"""The bundled T5: made of the bundled masked model, from which it then learns what that reads at every position.

T5 normalises before each part instead of behind it, has no biases and knows relative positions alone. All but the last can
be said in its own terms. A BERT's state x is x = D s + b throughout, with T5's running sum s, a diagonal D of the scales so
far and a constant b. So D, b and s's typical size go into the weights that read s, D⁻¹ into those that write to it. Biases
are read from one direction of s, that of (1, …, 1), in which every token has the same value and to which no layer writes.
BERT's scales per token become typical ones, and its positions are lost: that is what the model has to learn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from seq2seq import left_out, padded
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForMaskedLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

DECODER_LAYERS = 2
SENTINELS = 16
READ, WRITTEN = 3.0, 10.0  # sizes of what the decoder reads from the encoder, and of what it makes of that
RIDGE, SHARP = 0.01, 10.0  # of the fit by which the decoder finds its sentinel, and how sure it is at first
REST_WEIGHT = 0.1  # of the sentinels and the end, among what the decoder writes
STATE_WEIGHT = 1.0  # of the distance to the masked model's states


def with_sentinels(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Give the masked model's tokenizer T5's sentinels, and its last token the name of an end."""
    names = [f"<extra_id_{number}>" for number in range(SENTINELS)]
    tokenizer.add_special_tokens({"additional_special_tokens": names, "eos_token": tokenizer.sep_token})
    return tokenizer


@dataclass
class State:
    """How a BERT's state x follows from T5's running sum s at some place: x = scale * s + shift, [width] each."""

    scale: Tensor
    shift: Tensor

    def read(self, linear: nn.Linear, size: float, factor: float = 1.0) -> Tensor:
        """Weights that compute factor * linear(x) from s / size."""
        weight = without_ones(linear.weight * self.scale * size)
        bias = linear(self.shift) * size
        return factor * (weight + bias[:, None] / len(self.scale))  # the mean of s / size is 1 / size

    def write(self, weight: Tensor) -> Tensor:
        """Weights that add to s what a layer of BERT adds to x."""
        return without_ones((weight / self.scale[:, None]).T).T

    def add(self, constant: Tensor, norm: nn.LayerNorm, size: float) -> None:
        """Go on behind a layer, which has added a constant, and BERT's norm, whose inputs have that typical size."""
        both = self.shift + constant
        self.scale = norm.weight * self.scale / size
        self.shift = norm.weight * (both - both.mean()) / size + norm.bias


def without_ones(weight: Tensor) -> Tensor:
    """Weights (…, width) that read nothing of the direction (1, …, 1)."""
    return weight - weight.mean(-1, keepdim=True)


def size_at(model: nn.Module, place: nn.Module, *, centred: bool = False, **inputs: Tensor) -> float:
    """The median root mean square of what a norm of a model reads; `centred`: of its distance from the mean."""
    found: list[Tensor] = []
    handle = place.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    model(**inputs)
    handle.remove()
    states = found[0][inputs["attention_mask"].bool()]
    return float((without_ones(states) if centred else states).square().mean(-1).sqrt().median())


@torch.no_grad()
def from_masked(
    masked: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, gaps: Gaps
) -> tuple[T5ForConditionalGeneration, nn.Linear]:
    """A T5 that begins with what a masked model computes, and the map from its encoder's states to that model's.

    Args:
        tokenizer: with sentinels.
        gaps: some texts, on which typical sizes are read.
    """
    of, bert = masked.config, masked.bert
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=of.hidden_size,
            d_kv=of.hidden_size // of.num_attention_heads,
            d_ff=of.intermediate_size,
            num_layers=of.num_hidden_layers,
            num_decoder_layers=DECODER_LAYERS,
            num_heads=of.num_attention_heads,
            dropout_rate=0.0,
            feed_forward_proj=of.hidden_act,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )
    given, whole = (
        {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long()}
        for ids in (gaps.source, gaps.masked)
    )
    model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
    state, unit = embed(model, masked, tokenizer, whole)
    for block, layer in zip(model.encoder.block, bert.encoder.layer, strict=True):
        own, attention = block.layer[0].SelfAttention, layer.attention
        size = size_at(model.encoder, block.layer[0].layer_norm, **given)
        own.q.weight.copy_(state.read(attention.self.query, size, own.key_value_proj_dim**-0.5))
        own.k.weight.copy_(state.read(attention.self.key, size))
        own.v.weight.copy_(without_ones(attention.self.value.weight * state.scale * size))
        own.o.weight.copy_(state.write(attention.output.dense.weight))
        constant, norm = attention.output.dense(attention.self.value(state.shift)), attention.output.LayerNorm
        state.add(constant, norm, size_at(bert, norm, centred=True, **whole))  # as attention's weights sum to 1
        size, own = size_at(model.encoder, block.layer[1].layer_norm, **given), block.layer[1].DenseReluDense
        own.wi.weight.copy_(state.read(layer.intermediate.dense, size))
        own.wo.weight.copy_(state.write(layer.output.dense.weight))
        norm = layer.output.LayerNorm
        state.add(layer.output.dense.bias, norm, size_at(bert, norm, centred=True, **whole))
    size = size_at(model.encoder, model.encoder.final_layer_norm, **given)
    to_masked = nn.Linear(of.hidden_size, of.hidden_size)
    to_masked.weight.copy_(without_ones(torch.diag(state.scale * size)))
    to_masked.bias.copy_(state.shift)
    inner = size_at(masked, masked.cls.predictions.transform.LayerNorm, centred=True, **whole)
    decode(model, masked, State(state.scale * size / READ, state.shift), unit, inner)
    look_at_sentinels(model, given)
    return model, to_masked


def embed(
    model: T5ForConditionalGeneration,
    masked: BertForMaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    given: dict[str, Tensor],
) -> tuple[State, float]:
    """Copy the embeddings. Returns the state behind them, and the size that they were divided by."""
    own, parts = model.shared.weight, masked.bert.embeddings
    words = without_ones(parts.word_embeddings.weight)
    unit = size_at(masked.bert, parts.LayerNorm, centred=True, **given)
    same = without_ones(parts.token_type_embeddings.weight[0] + parts.position_embeddings.weight[:64].mean(0)) / unit
    own[: len(words)] = words / unit
    mask, size = words[tokenizer.mask_token_id] / unit, words.square().mean().sqrt() / unit
    own[len(words) :] = without_ones(mask + size * torch.randn(SENTINELS, len(mask)))
    own += 1.0
    return State(parts.LayerNorm.weight.clone(), parts.LayerNorm.weight * same + parts.LayerNorm.bias), unit


def decode(model: T5ForConditionalGeneration, masked: BertForMaskedLM, state: State, unit: float, inner: float) -> None:
    """Let the decoder do with what it reads from the encoder what the masked model's head does, and nothing else at first.

    Args:
        state: how the masked model's last states follow from what the decoder reads.
        inner: the typical size of what the head's norm reads.
    """
    for block in model.decoder.block:
        for silent in (
            block.layer[0].SelfAttention.o,
            block.layer[1].EncDecAttention.o,
            block.layer[2].DenseReluDense.wo,
        ):
            silent.weight.zero_()
    attention, forward = model.decoder.block[0].layer[1].EncDecAttention, model.decoder.block[0].layer[2].DenseReluDense
    head, width, size = masked.cls.predictions.transform, len(state.scale), (READ**2 + 2.0) ** 0.5
    attention.v.weight.copy_(torch.eye(width))
    attention.o.weight.copy_(READ * without_ones(torch.eye(width)))
    forward.wi.weight[:width] = state.read(head.dense, size)
    forward.wo.weight[:, :width] = without_ones(torch.diag(WRITTEN * head.LayerNorm.weight / inner).T).T
    written = float(head.LayerNorm.weight.square().mean().sqrt()) * WRITTEN
    model.decoder.final_layer_norm.weight.fill_(width**0.5 * unit * (written**2 + size**2) ** 0.5 / WRITTEN)


def look_at_sentinels(model: T5ForConditionalGeneration, given: dict[str, Tensor]) -> None:
    """Let the decoder's first attention look where the encoder read the sentinel that the decoder reads: a linear fit."""
    attention, first = model.decoder.block[0].layer[1].EncDecAttention, model.config.vocab_size - SENTINELS
    real = given["attention_mask"].bool()
    states, ids = model.encoder(**given).last_hidden_state[real], given["input_ids"][real]
    wanted = F.one_hot((ids - first).clamp(min=-1) + 1, SENTINELS + 1)[:, 1:].float()
    ridge = states.T @ states + RIDGE * len(states) * torch.eye(states.shape[1])
    keys = torch.linalg.solve(ridge, states.T @ wanted).T
    sentinels = model.shared.weight[first:]
    queries = torch.linalg.pinv(sentinels / sentinels.square().mean().sqrt()).T
    for start in range(0, attention.inner_dim, attention.key_value_proj_dim):
        attention.k.weight[start : start + SENTINELS] = SHARP**0.5 * keys
        attention.q.weight[start : start + SENTINELS] = SHARP**0.5 * queries


@dataclass(frozen=True)
class Gaps:
    """Texts with spans left out, in T5's form and as the masked model reads them; all ids padded, (rows, length).

    Attributes:
        source, written, labels: what the encoder reads, and what the decoder reads and is to write.
        masked: the whole texts, with a mask in place of every token that is left out.
        same: where the encoder's tokens stand in `masked`.
        firsts: where `labels` has the first token of a span, and `places` where that stands in `masked`.
    """

    source: Tensor
    written: Tensor
    labels: Tensor
    masked: Tensor
    same: Tensor
    firsts: Tensor
    places: Tensor


def with_gaps(
    rows: list[list[int]],
    tokenizer: PreTrainedTokenizerFast,
    pronouns: set[int],
    rng: random.Random,
    pronoun_rate: float,
) -> Gaps:
    """Leave spans out of some texts."""
    sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{number}>" for number in range(SENTINELS)])
    sources, labels, masked, same, firsts, places = [], [], [], [], [], []
    for row in rows:
        source, wanted, hidden, at, first, place = list[int](), list[int](), [*row], list[int](), list[int](), 0
        spans = left_out(row, pronouns, rng, pronoun_rate)[:SENTINELS]
        for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
            source += [*row[place:start], sentinel]
            at += [*range(place, start), start]
            first += [0, 1, *[0] * (stop - start - 1)]
            wanted += [sentinel, *row[start:stop]]
            hidden[start:stop] = [tokenizer.mask_token_id] * (stop - start)
            place = stop
        sources.append(source + row[place:])
        same.append([*at, *range(place, len(row))])
        labels.append([*wanted, tokenizer.eos_token_id])
        masked.append(hidden)
        firsts.append([*first, 0])
        places.append([start for start, _ in spans])
    written = [[tokenizer.pad_token_id, *row[:-1]] for row in labels]
    padding = tokenizer.pad_token_id
    return Gaps(
        padded(sources, padding), padded(written, padding), padded(labels, -100), padded(masked, padding),
        padded(same, 0), padded(firsts, 0).bool(), padded([row or [-1] for row in places], -1),
    )  # fmt: skip


def t5_loss(
    model: T5ForConditionalGeneration, to_masked: nn.Linear, masked: BertForMaskedLM, gaps: Gaps
) -> tuple[Tensor, dict[str, float]]:
    """The loss of what the decoder writes, with distances to what the masked model computes from the same texts.

    These are of the encoder's states at every position, and of the probabilities at the beginning of each span: the
    decoder's, and those of the masked model's head on the encoder's states.
    """
    real, sentinel = gaps.source != model.config.pad_token_id, model.config.vocab_size - SENTINELS
    with torch.no_grad():
        attended = (gaps.masked != model.config.pad_token_id).long()
        known = masked.bert(input_ids=gaps.masked, attention_mask=attended).last_hidden_state
        rows, which = (gaps.places >= 0).nonzero(as_tuple=True)
        expected = masked.cls(known[rows, gaps.places[rows, which]]).log_softmax(-1)
        known = torch.gather(known, 1, gaps.same[..., None].expand(-1, -1, known.shape[-1]))[real]
    states = model.encoder(input_ids=gaps.source, attention_mask=real.long()).last_hidden_state
    made = to_masked(states)
    distance = F.mse_loss(made[real], known) / known.var()
    guessed = F.kl_div(
        masked.cls(made[gaps.source >= sentinel]).log_softmax(-1), expected, reduction="batchmean", log_target=True
    )
    read = model.decoder(
        input_ids=gaps.written, encoder_hidden_states=states, encoder_attention_mask=real.long(), use_cache=False
    ).last_hidden_state
    scored = gaps.labels >= 0
    logits = model.lm_head(read[scored] * model.model_dim**-0.5)
    losses = F.cross_entropy(logits, gaps.labels[scored], reduction="none")
    word, first = gaps.labels[scored] < sentinel, gaps.firsts[scored]
    word &= gaps.labels[scored] != model.config.eos_token_id
    found = logits[first].log_softmax(-1)[:, : expected.shape[-1]]
    divergence = F.kl_div(found, expected, reduction="batchmean", log_target=True)
    own = losses[word].mean()
    total = own + divergence + guessed + STATE_WEIGHT * distance + REST_WEIGHT * losses[~word].mean()
    parts = {"words": own, "divergence": divergence, "encoder": guessed, "states": distance}
    return total, {name: part.item() for name, part in parts.items()}
