"""Where a model lives and how it is run: device maps, offloading, compilation, copies in other processes."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from gradiend_hub.adapter import GradiendLayer
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.errors import BaseModelError, EditError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, edited, random_direction, same_bits, save
from tests.models import build, output

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:for .*copying from a non-meta parameter:UserWarning"
    ),  # of accelerate's offloading
]


@pytest.fixture
def stored(tmp_path: Path) -> tuple[nn.Module, Path, torch.Tensor]:
    """A BERT on disk, the folder of a direction of it, and the logits at strength 1."""
    base = build("bert")
    base.save_pretrained(tmp_path / "base")
    direction = random_direction(base)
    folder = save(tmp_path / "a", direction, base, base_model_name_or_path=str(tmp_path / "base"))
    return base, folder, output(edited(base, [(direction, 1.0, 1.0)]), "bert")


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "cpu", {"bert": "cpu", "cls": "cpu"}], ids=str)
def test_device_map(stored: tuple[nn.Module, Path, torch.Tensor], device_map: object) -> None:
    base, folder, expected = stored
    model = GradiendModel.from_pretrained(folder, device_map=device_map)
    assert torch.equal(output(model, "bert"), expected)
    model.set_strength(0.0)
    assert same_bits(bits(model), bits(base))


def through_peft(folder: Path, base: nn.Module) -> PeftModel:
    return PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize("load", [GradiendModel.from_pretrained, through_peft])
def test_offloaded_layers_are_refused(
    stored: tuple[nn.Module, Path, torch.Tensor],
    load: Callable[..., nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights on disk cannot be edited in place; the model stays as it was."""
    monkeypatch.chdir(tmp_path)  # the offloader writes a copy below the working directory
    base, folder, _ = stored
    places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "cls": "cpu"}
    offloaded = (
        type(base).from_pretrained(tmp_path / "base", device_map=places, offload_folder=tmp_path / "offload").eval()
    )
    with pytest.raises(BaseModelError, match="offloaded"):
        load(folder, offloaded)
    assert not any(isinstance(module, GradiendLayer) for module in offloaded.modules())
    if load is not through_peft:  # PEFT takes accelerate's hooks off before it asks the method anything
        assert torch.equal(output(offloaded, "bert"), output(base, "bert"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # inductor's own use
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("load", ["merged", pytest.param("unmerged", marks=pytest.mark.release)])
def test_inductor(tmp_path: Path, load: str) -> None:
    """Compiled to machine code in one graph; a change of strength shows without a new compilation if merged."""
    base = build("llama")
    direction = random_direction(base)
    save(tmp_path, direction)
    merged = load == "merged"
    model = (
        GradiendModel.from_pretrained(tmp_path, copy.deepcopy(base))
        if merged
        else PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    )
    compiled = torch.compile(model.get_base_model(), fullgraph=True)
    for strength in (1.0, -0.5):
        if merged:
            model.set_strength(strength)
        else:
            model.set_strength("default", strength)
        expected = output(edited(base, [(direction, strength, abs(strength))]), "llama")
        torch.testing.assert_close(output(compiled, "llama"), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_pickled_for_another_process(stored: tuple[nn.Module, Path, torch.Tensor], tmp_path: Path) -> None:
    """A merged model goes to a fresh process, which changes its strength and takes the direction off again."""
    base, folder, expected = stored
    model = GradiendModel.from_pretrained(folder, copy.deepcopy(base))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps((model, bits(base), expected)))
    program = (
        "import pickle, sys, torch\n"
        "from tests.adapter.support import bits, same_bits\n"
        "from tests.models import output\n"
        "model, before, expected = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert torch.equal(output(model, 'bert'), expected)\n"
        "model.set_strength(2.0)\n"
        "assert not torch.equal(output(model, 'bert'), expected)\n"
        "assert same_bits(bits(model.unload()), before)\n"
        "print('restored')\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "model.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "restored\n", done.stderr


def test_pickled_tensors_bring_no_others(stored: tuple[nn.Module, Path, torch.Tensor]) -> None:
    """Tensors that were read from one file have memory of their own; a pickle holds each value once."""
    _, folder, _ = stored
    direction = Direction.load(folder, GradiendConfig.from_pretrained(str(folder)))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert len(pickle.dumps(direction)) < 3 * size


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """One process, as a mesh."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(Version(torch.__version__) < Version("2.7"), reason="torch 2.6 shards on accelerators only")
def test_sharded_parameters_are_not_edited(stored: tuple[nn.Module, Path, torch.Tensor], mesh: DeviceMesh) -> None:
    """A merged model can be sharded, and stays as it is then; a sharded one cannot be edited."""
    base, folder, expected = stored
    sharded = fully_shard(copy.deepcopy(base), mesh=mesh)
    with pytest.raises(EditError, match="sharded"):
        GradiendModel.from_pretrained(folder, sharded)
    unmerged = PeftModel.from_pretrained(sharded, folder)
    with pytest.raises(EditError, match="sharded"):
        unmerged.merge_adapter()

    model = GradiendModel.from_pretrained(folder, copy.deepcopy(base))
    fully_shard(model.get_base_model().cls, mesh=mesh)
    for edit in (lambda: model.set_strength(0.5), lambda: model.unload()):  # after a forward, the root is in one piece
        with pytest.raises(EditError, match="sharded"):
            edit()
        assert torch.equal(output(model, "bert"), expected)


@pytest.mark.slow
def test_fully_sharded_over_two_processes(tmp_path: Path) -> None:
    """A merged model, sharded over two processes, computes what the unsharded one does."""
    program = tmp_path / "job.py"
    program.write_text(
        "import os, torch\n"
        "from torch.distributed.device_mesh import init_device_mesh\n"
        "from torch.distributed.fsdp import fully_shard\n"
        "from gradiend_hub.model import GradiendModel\n"
        "from tests.adapter.support import config_for, random_direction\n"
        "from tests.models import build, output\n"
        "torch.distributed.init_process_group('gloo')\n"
        "mesh = init_device_mesh('cpu', (2,))\n"
        "base = build('llama')\n"
        "direction = random_direction(base)\n"
        "model = GradiendModel.from_direction(base, direction, config_for(direction), strength=1.0).merge_and_unload()\n"
        "expected = output(model, 'llama')\n"
        "for layer in model.model.layers:\n"
        "    fully_shard(layer, mesh=mesh)\n"
        "fully_shard(model, mesh=mesh)\n"
        "assert model.lm_head.weight.to_local().numel() < model.lm_head.weight.numel()\n"
        "assert torch.equal(output(model, 'llama'), expected)\n"
        "torch.distributed.barrier()\n"
        "os._exit(0)\n"  # gloo's threads may outlive the interpreter, and its teardown then aborts the process
    )
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, str(program)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
