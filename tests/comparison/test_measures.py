"""Measures against independent computations on full vectors, in every stored form."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.comparison.parts import parts_of
from gradiend_hub.comparison.similarity import Sides, similarity
from gradiend_hub.comparison.tables import Matrix, mean_and_spread
from gradiend_hub.comparison.vectors import Frame, Vectors, largest, products
from gradiend_hub.errors import ConfigError

SHAPES = {"a.weight": (5, 7), "b.weight": (4,), "c.weight": (3, 2)}


def direction(seed: int, kinds: str, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Direction:
    """Values with ties and zeros; `kinds` says for each parameter: d(ense), s(parse) or - (not there)."""
    generator, parts = torch.Generator().manual_seed(seed), {}
    for kind, (name, shape) in zip(kinds, shapes.items(), strict=True):
        count, places = math.prod(shape), None
        if kind == "-":
            continue
        if kind == "s":
            places = torch.randperm(count, generator=generator)[: max(2, count // 2)].sort().values.int()
            count = len(places)
        parts[name] = ParameterDirection(shape, torch.randn(count, generator=generator).mul(2).round(), indices=places)
    return Direction(parts)


def full(one: Direction) -> np.ndarray:
    parts = one.parameters
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    tensors = [parts[n].dense(parts[n].decoder) if n in parts else zero for n, zero in zeros.items()]
    return torch.cat([t.flatten() for t in tensors]).double().numpy()


def vectors(directions: list[Direction], factors: list[float] | None = None) -> Vectors:
    frame = Frame.of([SHAPES])
    return Vectors(frame, directions, factors or [1.0] * len(directions))


def top(values: np.ndarray, count: int) -> set[int]:
    """The papers' rule: the largest by absolute value, the first of equal ones, and no zeros."""
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count]
    return {i for i in order if values[i] != 0}


kinds = st.text("ds-", min_size=3, max_size=3).filter(lambda k: k != "---")


@settings(max_examples=60, deadline=None)
@given(st.lists(kinds, min_size=2, max_size=4), st.integers(0, 10**6), st.integers(1, 30))
def test_measures_are_those_of_full_vectors(forms: list[str], seed: int, count: int) -> None:
    ds = [direction(seed + i, form) for i, form in enumerate(forms)]
    whole = np.stack([full(d) for d in ds])
    sides = Sides(vectors(ds))
    norms = np.linalg.norm(whole, axis=1)
    sets = [top(v, count) for v in whole]
    for i in range(len(ds)):
        for j in range(len(ds)):
            if norms[i] and norms[j]:
                assert sides.cosine()[i, j] == pytest.approx(whole[i] @ whole[j] / norms[i] / norms[j], abs=1e-12)
                assert sides.spearman()[i, j] == pytest.approx(spearmanr(whole[i], whole[j]).statistic, abs=1e-12)
            if sets[i] and sets[j]:
                common = list(sets[i] & sets[j])
                assert sides.overlap(count)[i, j] == len(common) / min(len(sets[i]), len(sets[j]))
                mass = [np.linalg.norm(whole[k][common]) / np.linalg.norm(whole[k][list(sets[k])]) for k in (i, j)]
                assert sides.mass_overlap(count)[i, j] == pytest.approx(sum(mass) / 2, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(kinds, min_size=2, max_size=3), st.integers(0, 10**6))
def test_two_sides_are_compared_as_one_set(forms: list[str], seed: int) -> None:
    ds = [direction(seed + i, form) for i, form in enumerate(forms)]
    both, one = Sides(vectors(ds), vectors(ds)), Sides(vectors(ds))
    for measure in ("cosine", "spearman"):
        np.testing.assert_allclose(getattr(both, measure)(), getattr(one, measure)(), atol=1e-12)
    np.testing.assert_array_equal(both.overlap(5), one.overlap(5))


def test_a_factor_turns_a_vector() -> None:
    one = direction(3, "dsd")
    assert Sides(vectors([one, one], [1.0, -2.0])).cosine()[0, 1] == pytest.approx(-1)
    assert Sides(vectors([one, one], [1.0, -2.0])).spearman()[0, 1] == pytest.approx(-1)


def test_names_may_lack_the_backbone() -> None:
    short = dict(SHAPES)
    long = {f"bert.{name}": shape for name, shape in SHAPES.items()}
    frame = Frame.of([long, short])
    assert list(frame.shapes) == list(long) and frame.numel == 45
    one = direction(1, "ddd")
    pair = Vectors(frame, [one, one.renamed({n: f"bert.{n}" for n in SHAPES})], [1.0, 1.0])
    assert Sides(pair).cosine()[0, 1] == pytest.approx(1)


def test_frames_refuse_other_shapes_and_two_readings() -> None:
    with pytest.raises(ConfigError, match=r"a.weight is \[5, 7\] in one, \[7, 5\] in another"):
        Frame.of([{"a.weight": (5, 7)}, {"a.weight": (7, 5)}])
    with pytest.raises(ConfigError, match=r"may be x.a or y.a"):
        Frame.of([{"x.a": (2,), "y.a": (2,)}, {"a": (2,)}])


@pytest.mark.parametrize("count", [0, -1, 0.0, 1.0, 2.5, True, "many"])
def test_top_k_is_a_number_or_a_share(count: object) -> None:
    with pytest.raises(ConfigError, match="top_k must be a whole number of at least 1, or a share"):
        largest(vectors([direction(0, "ddd")]), 0, count)  # type: ignore[arg-type]


def test_a_share_of_many_parts_is_that_of_all_of_them_and_holds_few() -> None:
    shapes = {f"layer.{number}.weight": (100, 100) for number in range(30)}
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(-40, 40, (30, 10_000), generator=generator).float()  # with zeros, and many of equal size
    one = Direction({name: ParameterDirection(shapes[name], drawn[i]) for i, name in enumerate(shapes)})
    held = Vectors(Frame.of([shapes]), [one], [1.0])
    tracemalloc.start()
    found = largest(held, 0, 0.003)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(found.places.tolist()) == top(drawn.flatten().numpy(), 900)
    assert peak < 0.5 * drawn.nbytes


def test_a_share_is_rounded_up() -> None:
    one = Direction({"b.weight": ParameterDirection((4,), torch.tensor([4.0, 3.0, 2.0, 1.0]))})
    assert largest(vectors([one]), 0, 0.26).places.tolist() == [35, 36]  # ⌈0.26 · 4⌉ of those after a.weight


def test_sums_of_products_are_exact_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradiend_hub.comparison.vectors.BLOCK", 4)
    ds = [direction(i, form) for i, form in enumerate(("ddd", "sds", "d-s", "sss"))]
    whole = np.stack([full(d) for d in ds])
    np.testing.assert_allclose(products(vectors(ds)), whole @ whole.T, atol=1e-12)
    np.testing.assert_allclose(products(vectors(ds[:1]), vectors(ds[1:])), whole[:1] @ whole[1:].T, atol=1e-12)


def test_low_rank_vectors_are_compared_by_their_factors() -> None:
    ds = [direction(i, form) for i, form in enumerate(("ddd", "sss", "ddd"))]
    low = [ds[0].to_rank(2), ds[1], ds[2].to_rank(1)]
    assert not isinstance(low[0].parameters["a.weight"].decoder, torch.Tensor)
    whole = np.stack([full(d) for d in low])
    sides = Sides(vectors(low))
    np.testing.assert_allclose(products(vectors(low)), whole @ whole.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        products(vectors(low[:1]), vectors(low[1:])), whole[:1] @ whole[1:].T, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(sides.spearman(), spearmanr(whole.T).statistic, atol=1e-6)
    sets = [top(v, 6) for v in whole]
    assert sides.overlap(6)[0, 2] == len(sets[0] & sets[2]) / 6


def test_parts_by_layer_and_component() -> None:
    names = ["bert.encoder.layer.10.attention.self.query.weight", "bert.encoder.layer.2.output.dense.weight",
             "model.layers.2.mlp.up_proj.weight", "model.norm.weight", "h.0.attn.c_attn.weight"]  # fmt: skip
    assert list(parts_of(names, "layer")) == ["0", "2", "10", "other"]
    found = parts_of(names, "component")
    assert found["attention query"] == names[:1] and found["MLP down"] == names[1:2] and found["MLP up"] == names[2:3]
    assert found["norm"] == names[3:4] and found["attention query, key, value"] == names[4:]
    with pytest.raises(ConfigError, match="'layer', 'component' or None"):
        parts_of(names, "head")


def test_mean_and_spread_of_runs() -> None:
    tables = [Matrix("cosine", ("a",), ("a", "b"), np.array([[1.0, value]])) for value in (0.2, 0.4)]
    mean, spread = mean_and_spread(tables)
    assert mean["a", "b"].value == pytest.approx(0.3) and spread["a", "b"].value == pytest.approx(0.02**0.5)
    assert mean_and_spread(tables[:1])[1]["a", "b"].value is None  # one run has no spread, which is not 0
    with pytest.raises(ConfigError, match="at least one table"):
        mean_and_spread([])
    with pytest.raises(ConfigError, match="same rows and columns"):
        mean_and_spread([tables[0], Matrix("cosine", ("x",), ("a", "b"), np.zeros((1, 2)))])


def test_every_number_stands_beside_its_null_and_ceiling() -> None:
    values = np.array([[0.5, -0.25], [np.nan, 0.0]])
    null, ceiling = np.array([[0.1, 0.2], [np.nan, np.nan]]), np.full((2, 2), np.nan)
    ceiling[0, 0] = 0.9
    plain = str(Matrix("cosine", ("a", "b"), ("a", "b"), values)).splitlines()
    assert plain[0] == "cosine" and [line.split() for line in plain[1:]] == [
        ["a", "b"],
        ["a", "+0.50", "-0.25"],
        ["b", "+0.00"],
    ]
    shown = str(Matrix("cosine", ("a", "b"), ("a", "b"), values, null, ceiling, ("note",))).splitlines()
    assert "coin labels" in shown[1] and shown[-1] == "note"
    assert "+0.50 (0.10, 0.90)" in shown[3] and "-0.25 (0.20, –)" in shown[3] and "+0.00 (–, –)" in shown[4]
    assert len({line.index(")", line.rindex("(")) for line in shown[3:5]}) == 1  # columns are aligned


def test_half_precision_values_are_compared_as_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(12, generator=generator).bfloat16()
    places = torch.arange(0, 24, 2, dtype=torch.int32)
    forms = {
        "half": ParameterDirection((4, 6), values, indices=places),
        "single": ParameterDirection((4, 6), values.float(), indices=places),
        "dense": ParameterDirection((4, 6), torch.zeros(24).index_copy(0, places.long(), values.float()).bfloat16()),
    }
    directions = [Direction({"weight": part}) for part in forms.values()]
    sides = Sides(Vectors(Frame.of([{"weight": (4, 6)}]), directions, [1.0] * 3))
    for measure in ("cosine", "overlap", "mass_overlap", "spearman"):
        assert np.allclose(similarity(sides, measure, 5), 1, atol=1e-6), measure


def test_names_of_strangers_give_no_orders_to_a_terminal() -> None:
    table = Matrix("cosine\x1b[2J", ("a\x1b[31m",), ("\u202eb",), np.ones((1, 1)), notes=("note\x07",))
    assert str(table).replace("\n", "").isprintable() and "a\\x1b[31m" in str(table)


def test_tables_never_show_0_for_what_is_not_known() -> None:
    table = Matrix("cosine", ("<a>",), ("b",), np.array([[np.nan]]))
    assert table["<a>", "b"] == (None, None, None)
    assert '"values": [[null]]' in table.to_json() and "0.00" not in table._repr_html_()
    assert "&lt;a&gt;" in table._repr_html_()
    assert table.to_pandas().isna().to_numpy().all() and table.to_pandas("null").isna().to_numpy().all()
    with pytest.raises(ConfigError, match="has no 'c'"):
        table["<a>", "c"]
    with pytest.raises(ConfigError, match="'null' or 'ceiling'"):
        table.to_pandas("floor")
