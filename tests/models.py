"""Tiny models of many architectures, built from configurations with fixed random weights. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import nn

VOCABULARY = 97

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
DECODER = {**TEXT, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}


class ConvNet(nn.Module):
    """Convolutions, batch norm, attention, a recurrent layer, a tied head and a scalar parameter in a plain module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.image = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.sequence = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, tokens, vocabulary]`."""
        hidden = self.encoder(self.embedding(input_ids))
        hidden = hidden + self.attention(hidden, hidden, hidden)[0] + self.recurrent(hidden)[0]
        hidden = hidden + self.norm(self.image(hidden.unsqueeze(1))).mean(1) + self.sequence(hidden.mT).mT
        logits: torch.Tensor = self.head(hidden) * self.scale
        return logits


def _vit(**_: Any) -> nn.Module:
    return tf.ViTForImageClassification(
        tf.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_labels=3,
        )
    )


BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**TEXT)),
    "bert_classifier": lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT, num_labels=3)),
    "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**TEXT)),
    "distilbert": lambda: tf.DistilBertForMaskedLM(
        tf.DistilBertConfig(
            vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40
        )
    ),
    "deberta": lambda: tf.DebertaV2ForMaskedLM(
        tf.DebertaV2Config(**TEXT, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"])
    ),
    "electra": lambda: tf.ElectraForMaskedLM(tf.ElectraConfig(**TEXT, embedding_size=8)),
    "modernbert": lambda: tf.ModernBertForMaskedLM(
        tf.ModernBertConfig(**{**TEXT, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2})
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT, n_embd=16, n_layer=2, n_head=2, n_positions=40)),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**{**TEXT, "bos_token_id": 1, "eos_token_id": 2})),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32,
            max_position_embeddings=40, word_embed_proj_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER)),
    "llama_tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER, tie_word_embeddings=True)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**DECODER, head_dim=8)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**DECODER, head_dim=8, sliding_window=8)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**DECODER, head_dim=8, sliding_window=8)),
    # four levels of its blocks read parameters of their children's children, through methods of these
    "gemma3n": lambda: tf.Gemma3nForCausalLM(
        tf.Gemma3nTextConfig(
            **DECODER, head_dim=8, vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8,
            layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0, laurel_rank=4,
            sliding_window=8, altup_num_inputs=2, altup_active_idx=0, activation_sparsity_pattern=[0.0, 0.0],
        )
    ),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**DECODER, sliding_window=8)),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)),
    "qwen2_moe": lambda: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(
            **DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=8
        )
    ),
    "qwen3_moe": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(**DECODER, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    ),
    "olmoe": lambda: tf.OlmoeForCausalLM(tf.OlmoeConfig(**DECODER, num_experts=4, num_experts_per_tok=2)),
    "gpt_oss": lambda: tf.GptOssForCausalLM(
        tf.GptOssConfig(
            **DECODER, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "deepseek_v3": lambda: tf.DeepseekV3ForCausalLM(
        tf.DeepseekV3Config(
            **{**DECODER, "num_key_value_heads": 2}, moe_intermediate_size=8, n_routed_experts=4, n_shared_experts=1,
            num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8,
            qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        )
    ),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=2)
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    ),
    "bart": lambda: tf.BartForConditionalGeneration(
        tf.BartConfig(
            vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=40,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
        )
    ),
    "vit": _vit,
    "clip_text": lambda: tf.CLIPTextModel(
        tf.CLIPTextConfig(**{**TEXT, "projection_dim": 8, "bos_token_id": 1, "eos_token_id": 2})
    ),
    "convnet": ConvNet,
}  # fmt: skip

EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3")
"""Models with stacks of experts."""
ARCHITECTURES = tuple(name for name in BUILDERS if name not in EXPERTS[2:])
"""One of a kind, which most tests go through."""
SEQ2SEQ = ("t5", "bart")


def build(architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A model of an architecture with random weights, in evaluation mode. Biases and norms are random, too."""
    torch.manual_seed(seed)
    model = BUILDERS[architecture]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn(parameter.shape))
        for tensor in model.state_dict(keep_vars=True).values():  # as from_pretrained: computed buffers stay fp32
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return model.eval()


def inputs(architecture: str, dtype: torch.dtype = torch.float32, rows: int = 3) -> dict[str, torch.Tensor]:
    """A batch that the model takes."""
    generator = torch.Generator().manual_seed(1)
    if architecture == "vit":
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator).to(dtype)}
    ids = torch.randint(3, VOCABULARY, (rows, 7), generator=generator)
    if architecture in SEQ2SEQ:
        return {"input_ids": ids, "decoder_input_ids": ids[:, :4]}
    if architecture in ("convnet", "mamba"):
        return {"input_ids": ids}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def output(
    model: Callable[..., Any], architecture: str, dtype: torch.dtype = torch.float32, **extra: Any
) -> torch.Tensor:
    """Logits (or last hidden states) of the batch, without gradients."""
    with torch.no_grad():
        result = model(**inputs(architecture, dtype), **extra)
    if isinstance(result, torch.Tensor):
        return result
    logits: torch.Tensor = result["logits"] if "logits" in result else result["last_hidden_state"]
    return logits


@dataclass(frozen=True)
class Case:
    """An architecture in a type, with sparse or dense storage of the direction."""

    architecture: str
    dtype: torch.dtype
    sparse: bool

    def __str__(self) -> str:
        kind = "sparse" if self.sparse else "dense"
        return f"{self.architecture}-{str(self.dtype).removeprefix('torch.')}-{kind}"
