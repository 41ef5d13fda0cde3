"""Tiny causal language models as GGUF files, and what llama.cpp computes with them and LoRAs, in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GEMMA = {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}

MODELS: Mapping[str, tuple[type[nn.Module], Any]] = {
    "gemma2": (tf.Gemma2ForCausalLM, lambda: tf.Gemma2Config(**GEMMA)),
    "gemma3": (tf.Gemma3ForCausalLM, lambda: tf.Gemma3TextConfig(**GEMMA)),
    "gpt2": (
        tf.GPT2LMHeadModel,
        lambda: tf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
        ),
    ),
    "llama": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**SIZES)),
    "mistral": (tf.MistralForCausalLM, lambda: tf.MistralConfig(**SIZES)),
    "qwen2": (tf.Qwen2ForCausalLM, lambda: tf.Qwen2Config(**SIZES)),
    "qwen3": (tf.Qwen3ForCausalLM, lambda: tf.Qwen3Config(**SIZES, head_dim=8)),
}
ARCHITECTURE = {"mistral": "llama"}

XLLAMACPP = """
import json, sys
import xllamacpp as x
model, loras, scales, prompts, vocabulary, out = json.loads(sys.argv[1])
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.warmup, p.fit_params, p.verbosity = model, 256, 1, False, False, -1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
p.cache_prompt = False
p.lora_adapters = [x.CommonAdapterLoraInfo(path, 1.0) for path in loras]
server, found = x.Server(p), []
for by_lora in scales:  # a scale for each LoRA, with every request
    found.append([])
    for prompt in prompts:
        lora = [{"id": number, "scale": scale} for number, scale in enumerate(by_lora)]
        answer = server.handle_completions(
            {"prompt": prompt, "max_tokens": 1, "temperature": 1.0, "n_probs": vocabulary, "lora": lora}
        )
        answer = json.loads(answer) if isinstance(answer, str) else answer
        row = [0.0] * vocabulary
        for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[token["id"]] = 2.718281828459045 ** token["logprob"]
        found[-1].append(row)
json.dump(found, open(out, "w"))
"""

LLAMA_CPP_PYTHON = """
import json, sys
import numpy as np
from llama_cpp import Llama
model, loras, scales, prompts, vocabulary, out = json.loads(sys.argv[1])
found = []
for by_lora in scales:
    used = [(path, scale) for path, scale in zip(loras, by_lora) if scale]
    path, scale = used[0] if used else (None, 1.0)
    llama = Llama(model, lora_path=path, lora_scale=scale, n_ctx=256, n_threads=1, n_threads_batch=1, type_k=0,
                  type_v=0, logits_all=True, verbose=False)
    found.append([])
    for prompt in prompts:
        llama.reset()
        llama.eval(prompt)
        logits = np.array(llama.scores[len(prompt) - 1], dtype=np.float64)
        exp = np.exp(logits - logits.max())
        found[-1].append((exp / exp.sum()).tolist())
    llama.close()
json.dump(found, open(out, "w"))
"""
LIBRARIES = {"xllamacpp": "xllamacpp", "llama_cpp": "llama-cpp-python"}
"""Module that runs llama.cpp → the package that brings it."""
SCRIPTS = {"xllamacpp": XLLAMACPP, "llama_cpp": LLAMA_CPP_PYTHON}


def build_causal(kind: str) -> nn.Module:
    """A tiny model of random weights that are large enough for it to prefer some tokens."""
    model_class, config = MODELS[kind]
    torch.manual_seed(3)
    return model_class(config()).eval()


def next_token(model: nn.Module, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Probabilities of the next token `[prompts, vocabulary]`."""
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([list(p)])).logits[0, -1].softmax(-1) for p in prompts])


def write_gguf(model: Any, kind: str, path: Path) -> None:
    """Write a model as llama.cpp's own converter does, in fp32, with a vocabulary that only counts."""
    import gguf

    architecture = ARCHITECTURE.get(kind, kind)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    kv_heads = getattr(config, "num_key_value_heads", heads)
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    vocabulary = config.vocab_size
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if kind == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
        writer.add_rope_dimension_count(head)
    if kind.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{token}" for token in range(vocabulary)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    known = gguf.get_tensor_name_map(number, layers)
    for name, parameter in model.named_parameters():
        values = parameter.detach().clone()
        if kind == "gpt2" and values.ndim == 2 and "c_" in name:  # Conv1D
            values = values.T
        if kind.startswith("gemma") and values.ndim == 1:
            values = values + 1
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            # rows (head, half, pair) → (head, pair, half): there, neighbours turn together
            n = heads if ".q_proj." in name else kv_heads
            values = values.reshape(n, 2, head // 2, -1).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(known.get_name(name, try_suffixes=(".weight", ".bias")), values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_llama_cpp(
    library: str,
    model: Path,
    loras: Sequence[Path],
    scales: Sequence[Sequence[float]],
    prompts: Sequence[Sequence[int]],
    folder: Path,
    vocabulary: int = VOCABULARY,
) -> torch.Tensor:
    """Probabilities of the next token `[scales, prompts, vocabulary]`, with a scale for each LoRA."""
    out = folder / "found.json"
    given = json.dumps([str(model), [str(lora) for lora in loras], scales, prompts, vocabulary, str(out)])
    done = subprocess.run([sys.executable, "-c", SCRIPTS[library], given], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.tensor(json.loads(out.read_text()))


def run_llama_server(
    model: Path,
    loras: Sequence[Path],
    scales: Sequence[Sequence[float]],
    prompts: Sequence[Sequence[int]],
    vocabulary: int = VOCABULARY,
) -> torch.Tensor:
    """As `run_llama_cpp` by the program `llama-server` on the PATH: every request brings a scale for each LoRA."""
    held = ["--lora", ",".join(map(str, loras)), "--lora-init-without-apply", "-ctk", "f32", "-ctv", "f32"]
    plain = ["-fa", "off", "-c", "256", "-np", "1", "-t", "1", "--no-warmup", "--host", "127.0.0.1", "--port", "0"]
    command = ["llama-server", "-m", str(model), *held, *plain]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        said = []
        while line := server.stdout.readline():
            said.append(line)
            if found := re.search(r"listening on (http://[\w.:]+)", line):
                break
        else:
            raise AssertionError("".join(said[-30:]))
        drain = threading.Thread(target=server.stdout.read)  # a full pipe would stop it
        drain.start()
        try:
            return torch.tensor([[_asked(found[1], by_lora, p, vocabulary) for p in prompts] for by_lora in scales])
        finally:
            server.kill()
            drain.join()


def _asked(address: str, scales: Sequence[float], prompt: Sequence[int], vocabulary: int) -> list[float]:
    lora = [{"id": number, "scale": scale} for number, scale in enumerate(scales)]
    fields = {"prompt": list(prompt), "n_predict": 1, "n_probs": vocabulary, "cache_prompt": False, "lora": lora}
    with urllib.request.urlopen(f"{address}/completion", json.dumps(fields).encode()) as answer:
        (place,) = json.load(answer)["completion_probabilities"]
    row = torch.zeros(vocabulary, dtype=torch.float64)
    for token in place["top_logprobs"]:
        row[token["id"]] = token["logprob"]
    return [float(value) for value in row.exp()]
