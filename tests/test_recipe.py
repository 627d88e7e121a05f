"""Recipes: same steps same id, a round trip through YAML, order, and one sentence for anything that is no recipe."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.catalog import CATALOG, check_value, option_fields
from core.errors import RecipeError
from core.recipe import Recipe, Step


def values_of(key: str, name: str) -> st.SearchStrategy[object]:
    """Any accepted value of one option."""
    spec = option_fields(CATALOG[key])[name]
    limits = spec.metadata
    if limits["choices"]:
        return st.sampled_from(limits["choices"])
    if isinstance(spec.default, bool):
        return st.booleans()
    if isinstance(spec.default, int):
        return st.integers(limits["low"], limits["high"])
    return st.floats(limits["low"], limits["high"])


@st.composite
def steps(draw: st.DrawFn) -> Step:
    key = draw(st.sampled_from(sorted(CATALOG)))
    options = draw(st.fixed_dictionaries({}, optional={n: values_of(key, n) for n in option_fields(CATALOG[key])}))
    dial = CATALOG[key].dial
    layers = draw(st.dictionaries(st.text(min_size=1), values_of(key, dial), max_size=3)) if dial else {}
    return Step(key, options, layers, draw(st.booleans()))


@given(st.lists(steps(), max_size=4), st.integers(0, 2**31))
def test_yaml_round_trip(rows: list[Step], seed: int) -> None:
    rows.sort(key=lambda step: CATALOG[step.technique].acts_on == "file")
    recipe = Recipe(tuple(rows), seed)
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert again.id == recipe.id
    assert hash(again) == hash(recipe)


def test_id_follows_what_is_done() -> None:
    base = Recipe((Step("prune_channels", {"ratio": 0.5}), Step("quantize")))
    assert base.id == Recipe((Step("prune_channels", {"ratio": 0.5, "criterion": "l2"}), Step("quantize"))).id
    assert base.id == base.with_steps(*base.steps, Step("distill", enabled=False)).id, "a disabled step does nothing"
    others = [
        Recipe((Step("prune_channels", {"ratio": 0.4}), Step("quantize"))),
        Recipe((Step("prune_channels", {"ratio": 0.5}, {"conv1": 0.1}), Step("quantize"))),
        Recipe(base.steps, seed=1),
        Recipe(base.steps[:1]),
    ]
    assert len({base.id, *(r.id for r in others)}) == 5


def test_dial_is_the_layers_own_or_the_steps() -> None:
    step = Step("prune_channels", {"ratio": 0.5}, {"a": 0.25})
    assert (step.dial("a"), step.dial("b")) == (0.25, 0.5)


def test_file_steps_come_last() -> None:
    with pytest.raises(RecipeError, match="quantize works on the exported file, so it must come last"):
        Recipe((Step("quantize"), Step("prune_channels")))
    Recipe((Step("quantize", enabled=False), Step("prune_channels")))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps:\n- shrink: {}", "Unknown technique: received 'shrink', accepted are prune_channels"),
        ("steps: 3", "A recipe is a mapping with a list of steps"),
        ("- a", "A recipe is a mapping"),
        ("steps: [", "not YAML"),
        ("steps: [4]", "Step 1 must be a mapping"),
        ("steps:\n- prune_channels: 0.5", "options of step 1"),
        ("steps:\n- prune_channels: {}\n  quantize: {}", "must name one technique"),
        ("steps:\n- prune_channels: {ratio: 1.5}", r"ratio was 1.5; accepted is 0.0 to 1.0"),
        ("steps:\n- prune_channels: {ratio: yes}", r"ratio was True; accepted is 0.0 to 1.0"),
        ("steps:\n- prune_channels: {ratio: .nan}", "ratio was nan"),
        ("steps:\n- prune_channels: {rato: 0.5}", "has no option 'rato'; accepted are ratio"),
        ("steps:\n- quantize: {bits: 3}", "bits was 3; accepted is 8, 32"),
        ("steps:\n- distill: {}\n  layers: {conv1: 1}", "distill has no setting per layer"),
        ("steps:\n- prune_channels: {}\n  layers: {conv1: 2.0}", "ratio was 2.0"),
        ("seed: a\nsteps: []", "seed must be a whole number; received 'a'"),
    ],
)
def test_bad_recipes_get_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Recipe.from_yaml(text)


def test_an_option_that_came_later_counts_only_where_it_is_used() -> None:
    """The first id is that of the time before the option: what people made then is found again."""
    plain = Recipe((Step("distill", {"epochs": 2}),))
    assert plain.id == "c633f5c0a8"
    assert Recipe((Step("distill", {"epochs": 2, "views": 0}),)).id == plain.id
    assert Recipe((Step("distill", {"epochs": 2, "views": 4}),)).id != plain.id


@given(st.text())
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        assert Recipe.from_yaml(text).steps == ()


@pytest.mark.parametrize("key", CATALOG)
def test_every_default_is_accepted(key: str) -> None:
    entry = CATALOG[key]
    for name, spec in option_fields(entry).items():
        assert check_value(entry, name, spec.default) == spec.default
        assert spec.metadata["help"].endswith(".")
    if entry.dial:
        assert check_value(entry, entry.dial, entry.neutral) == entry.neutral
    assert entry.summary(entry.options())
