"""What is in scope, where it stands in the flat vector, and which coordinates are kept."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from gradiend_hub.errors import ConfigError
from gradiend_hub.gradients import Scope, select_parameters
from gradiend_hub.scope import names_of
from tests.models import ConvNet, build


def test_default_is_the_layers_of_the_backbone() -> None:
    for architecture, inside in (
        ("bert", "bert.encoder.layer."),
        ("roberta", "roberta.encoder.layer."),
        ("distilbert", "distilbert.transformer.layer."),
        ("gpt2", "transformer.h."),
        ("llama", "model.layers."),
        ("gpt_neox", "gpt_neox.layers."),
        ("opt", "model.decoder.layers."),
        ("modernbert", "model.layers."),
    ):
        model = build(architecture)
        names = list(select_parameters(model))
        expected = [n for n, _ in model.named_parameters() if n.startswith(inside)]
        assert names == expected
        assert not any("embed" in n or "lm_head" in n or "cls." in n for n in names)
        assert {n.removeprefix(inside).partition(".")[0] for n in names} == {"0", "1"}


def test_default_of_a_plain_module_with_and_without_blocks() -> None:
    names = list(select_parameters(ConvNet()))
    assert names == [n for n, _ in ConvNet().named_parameters() if ".0." in n]
    linear = torch.nn.Linear(2, 2)
    assert list(select_parameters(linear)) == ["weight", "bias"]


def test_patterns_types_layers_and_exceptions() -> None:
    model = build("bert")
    every = dict(model.named_parameters())
    some = select_parameters(model, scope="*.attention.self.query.*")
    assert list(some) == [n for n in every if ".attention.self.query." in n]
    assert all(some[n] is every[n] for n in some)
    norms = select_parameters(model, scope="type:LayerNorm")
    assert list(norms) == [n for n in every if "LayerNorm" in n]
    both = select_parameters(model, scope=["type:LayerNorm", "*.pooler.*", "*query.bias"][::2])
    assert list(both) == [n for n in every if "LayerNorm" in n or n.endswith("query.bias")]
    assert list(select_parameters(model, layers="1")) == [n for n in every if ".layer.1." in n]
    assert list(select_parameters(model, layers="0, 1")) == list(select_parameters(model, layers="0-1"))
    assert list(select_parameters(model, layers=" 0 - 1 ")) == list(select_parameters(model))
    without = select_parameters(model, exclude=["*.bias", "type:LayerNorm"])
    assert list(without) == [n for n in select_parameters(model) if "bias" not in n and "LayerNorm" not in n]
    assert "cls.predictions.bias" in select_parameters(model, scope="*")
    assert list(select_parameters(model, scope="*.layer.*", layers="0", exclude="*weight")) == [
        n for n in every if ".layer.0." in n and n.endswith("bias")
    ]


def test_tied_parameters_count_once() -> None:
    tied, untied = build("llama_tied"), build("llama")
    names = list(select_parameters(tied, scope="*"))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert len(select_parameters(untied, scope="*")) == len(names) + 1


def test_adapters_on_the_model_are_not_in_scope() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    inject_adapter_in_model(LoraConfig(target_modules=["0"], r=1), model)
    assert list(select_parameters(model)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scope": "*.query.*", "exclude": "*.nothing"},
            r"exclude: '\*.nothing' matches no parameter. Names look like",
        ),
        ({"scope": ["*.query.*", "nope"]}, r"scope: 'nope' matches no parameter"),
        ({"scope": "type:Conv2d"}, r"scope: 'type:Conv2d' matches no parameter"),
        ({"layers": "1-4"}, r"layers='1-4': no block \[2, 3, 4\] in scope; found blocks \[0, 1\]"),
        ({"layers": "3-1"}, r"layers='3-1': expected numbers and ranges such as '8-11' or '0,2,5-7'"),
        ({"layers": "first"}, r"expected numbers and ranges"),
        ({"layers": ""}, r"expected numbers and ranges"),
        ({"scope": "*embeddings*", "layers": "0"}, r"no block \[0\] in scope; found blocks \[\]"),
        ({"scope": "*.bias", "exclude": "*"}, r"No parameter is left in scope \(scope='\*.bias', exclude='\*'"),
    ],
)
def test_mistakes(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_parameters(build("bert"), **options)


def test_flat_vector_and_tensors() -> None:
    model = build("bert")
    scope = Scope.dense(select_parameters(model, scope="*.output.dense.*"))
    flat = torch.arange(scope.size, dtype=torch.float32)
    assert scope.size == sum(p.numel() for p in scope.parameters.values())
    assert torch.equal(torch.cat(list(scope.split(flat).values())), flat)
    tensors = scope.dense_tensors(flat)
    assert {n: t.shape for n, t in tensors.items()} == {n: p.shape for n, p in scope.parameters.items()}
    assert torch.equal(torch.cat([t.flatten() for t in tensors.values()]), flat)
    name = list(scope.parameters)[2]
    assert torch.equal(flat[scope.slices()[name]], tensors[name].flatten())


def test_kept_coordinates() -> None:
    model = build("bert", torch.bfloat16)
    dense = Scope.dense(select_parameters(model, scope="*.output.dense.*"))
    first, second, third = list(dense.parameters)[:3]
    scope = dense.keep(
        {third: torch.tensor([0, 7]), first: torch.tensor([3]), second: torch.tensor([], dtype=torch.long)}
    )
    assert list(scope.parameters) == [first, third]  # in the model's order, without empty ones
    assert scope.sizes == {first: 1, third: 2}
    tensors = scope.dense_tensors(torch.tensor([1.0, 2.0, 3.0]))
    assert tensors[first].dtype == torch.bfloat16
    assert tensors[first].count_nonzero() == 1
    assert tensors[first].flatten()[3] == 1
    assert tensors[third].flatten()[[0, 7]].tolist() == [2, 3]
    numel = dense.parameters[first].numel() + dense.parameters[third].numel()
    assert scope.summary() == f"2 tensors, 3 of {numel:,} weights ({3 / numel:.2%})"


def test_table() -> None:
    model = nn.Module()
    model.embedding = nn.Linear(10, 10, bias=False)
    model.layers = nn.ModuleList(nn.Linear(n, 10) for n in (9, 9, 9, 19, 9))
    dense = Scope.dense(dict(model.named_parameters()))
    model.head = nn.Linear(10, 10, bias=False)
    assert dense.table(model).splitlines() == [
        "scope       tensors  entries  of model",
        "blocks 0-2        6      300    37.50%",
        "block 3           2      200    25.00%",
        "block 4           2      100    12.50%",
        "other             1      100    12.50%",
        "total            11      700    87.50%",
    ]
    kept = dense.keep({"layers.1.weight": torch.tensor([3, 5]), "layers.2.bias": torch.tensor([0])})
    assert kept.table(model).splitlines() == [
        "scope    tensors  entries  of model",
        "block 1        1        2     0.25%",
        "block 2        1        1     0.12%",
        "total          2        3     0.38%",
    ]


def test_names_in_messages() -> None:
    assert names_of(["a", "b"]) == "a, b"
    assert names_of("abcde") == "a, b, c and 2 more"
