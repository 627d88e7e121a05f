"""What the layer table is given: who moves with whom, who cannot be touched and why; how an edit becomes a recipe."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from app import layer_rows, tune_view
from app.components.layer_table import Edit, read_edit
from app.state import State
from core.catalog import CATALOG
from core.errors import RecipeError
from core.recipe import Recipe, Step
from tests.forecasts import make_times
from tests.profiles import mixed, resnet

PRUNE, WEIGHTS, FACTORIZE = CATALOG["prune_channels"], CATALOG["prune_weights"], CATALOG["factorize"]


def rows_of(technique: str) -> dict[str, dict[str, object]]:
    return {str(row["layer"]): row for row in layer_rows.layer_rows(mixed(), technique, 8)}


def test_layers_of_a_group_are_held_under_its_name_and_move_together() -> None:
    rows = rows_of("prune_channels")
    assert list(rows) == ["stem", "wide", "block.a", "block.b", "thin", "up", "joined", "head"]  # no norm
    assert [(rows[n]["key"], rows[n]["tied"]) for n in ("stem", "wide", "block.b")] == [
        ("stem", ""), ("stem", "stem"), ("stem", "stem"),
    ]  # fmt: skip
    assert all(row["tied"] == "" and row["key"] == row["layer"] for row in rows_of("prune_weights").values())


def test_what_cannot_be_touched_says_why() -> None:
    prune, factorize = rows_of("prune_channels"), rows_of("factorize")
    assert prune["thin"]["reason"] == "thin is a grouped convolution (4 groups of equal size)."
    assert prune["head"]["reason"] == "Its channels are the model's answer: one for each class."
    assert prune["stem"]["reason"] == ""
    assert "depthwise" in str(factorize["wide"]["reason"])
    assert "4 groups" in str(factorize["thin"]["reason"])
    assert factorize["head"]["reason"] == ""
    assert all(row["reason"] == "" for row in rows_of("quantize").values())


def test_rows_explain_themselves() -> None:
    lines = rows_of("prune_channels")["stem"]["about"]
    assert isinstance(lines, list)
    # 3 · 24 · 3 · 3 = 648 weights over 16 × 16 positions = 165,888 MACs
    assert lines[0] == "Convolution: 3×3, 3 → 24 channels, output 24×16×16."
    assert lines[1].startswith("648 parameters")
    assert "166 k MACs" in lines[1]
    why = rows_of("prune_channels")["stem"]["why"]
    assert isinstance(why, dict)
    assert "wide, block.b" in why["said"]
    assert rows_of("factorize")["stem"]["why"] is None


def test_spread_gives_every_layer_the_value_of_all_but_those_with_their_own() -> None:
    step = Step("prune_channels", {"ratio": 0.4}, {"stem": 0.1})
    spread = layer_rows.effective(mixed(), step)
    assert {name for name, value in spread.items() if value == 0.1} == {"stem", "wide", "block.b"}
    assert {value for name, value in spread.items() if name not in ("stem", "wide", "block.b")} == {0.4}
    assert layer_rows.effective(mixed(), Step("prune_weights", {}, {"block": 0.2}))["block.a"] == 0.2


def test_an_absent_step_goes_where_the_catalog_puts_it() -> None:
    recipe = Recipe((Step("prune_channels"), Step("quantize")))
    assert layer_rows.find(recipe, "distill") == layer_rows.Place("distill", 1, False)
    assert layer_rows.find(recipe, "quantize") == layer_rows.Place("quantize", 1, True)
    assert layer_rows.find(Recipe(), "quantize") == layer_rows.Place("quantize", 0, False)
    place = layer_rows.find(recipe, "distill")
    put = layer_rows.put(recipe, place, Step("distill"))
    assert [s.technique for s in put.steps] == ["prune_channels", "distill", "quantize"]
    again = layer_rows.put(put, layer_rows.find(put, "distill"), Step("distill", {"epochs": 9}))
    assert [s.technique for s in again.steps] == ["prune_channels", "distill", "quantize"]
    assert again.steps[1].record.epochs == 9


def test_an_absent_step_changes_nothing() -> None:
    for key, entry in CATALOG.items():
        step = layer_rows.find(Recipe(), key).step(Recipe())
        if entry.dial:
            assert getattr(step.record, entry.dial) == entry.neutral


def test_steps_move_and_the_order_is_kept_lawful() -> None:
    recipe = Recipe((Step("prune_channels"), Step("distill"), Step("quantize")))
    assert [s.technique for s in layer_rows.move(recipe, 1, -1).steps] == ["distill", "prune_channels", "quantize"]
    with pytest.raises(RecipeError, match="must come last"):
        layer_rows.move(recipe, 2, -1)


def test_layers_that_the_model_lacks_are_refused() -> None:
    good = Recipe((Step("prune_weights", {}, {"block.a": 0.1, "block": 0.2}),))
    assert layer_rows.check_layers(mixed(), good) is good
    with pytest.raises(RecipeError, match=r"Step 2 names the layer 'conv9', .* it has stem, wide, block.a, block.b, …"):
        layer_rows.check_layers(mixed(), Recipe((Step("distill"), Step("prune_channels", {}, {"conv9": 0.1}))))


def test_edits_against_an_older_revision_are_ignored() -> None:
    raw = {"rev": 3, "value": 0.4, "layers": {"stem": 0.1}}
    assert read_edit(raw, 3) == Edit(0.4, {"stem": 0.1})
    assert read_edit(raw, 4) is None
    assert read_edit(None, 0) is None


@pytest.mark.parametrize("technique", CATALOG)
def test_the_table_travels_as_json(technique: str) -> None:
    recipe = Recipe((Step("prune_channels", {"ratio": 0.5}),))
    data = layer_rows.table_data(resnet(1), recipe, layer_rows.find(recipe, technique), "m")
    again = json.loads(json.dumps(data))
    assert again["present"] == (technique == "prune_channels")
    assert len(again["rows"]) == len(resnet(1).tunable)
    assert (again["dial"] is None) == (CATALOG[technique].dial is None)
    assert again["original"]["params"] == resnet(1).params


def test_a_profile_that_tells_no_memory_offers_none() -> None:
    assert layer_rows.original(mixed())["peak_bytes"] == mixed().peak_bytes
    assert layer_rows.original(replace(mixed(), operators=()))["peak_bytes"] is None


def test_shares_that_pay_are_those_of_widths_and_of_a_whole_branch() -> None:
    """Times that fall with every block of 8 channels: 32 can go to 24, 16 and 8, or with their branch."""
    profile = resnet(1)
    found = layer_rows.paying_ratios(profile, make_times(profile), 8, 32.0)
    assert found["layer2.0.conv1"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert "fc" not in found


def test_the_table_is_not_given_its_own_edits_but_all_that_came_from_elsewhere() -> None:
    def ratio(now: State) -> float:
        place = layer_rows.find(now.recipe, "prune_channels")
        return float(place.step(tune_view._as_given(now, place, "m")).record.ratio)

    def pruned(ratio: float, **more: object) -> Recipe:
        return Recipe((Step("prune_channels", {"ratio": ratio, **more}, {"conv1": ratio / 2}),))

    now = State(model="m")
    now.change(pruned(0.3))
    assert ratio(now) == 0.3
    now.change(pruned(0.5), from_table=True)
    assert ratio(now) == 0.3
    now.change(pruned(0.5, criterion="l1"), from_table=True)  # another option: the rest travels, the slider does not
    place = layer_rows.find(now.recipe, "prune_channels")
    given = place.step(tune_view._as_given(now, place, "m"))
    assert (given.record.criterion, given.record.ratio, given.layers["conv1"]) == ("l1", 0.3, 0.15)
    now.undo()
    assert ratio(now) == 0.5
    now.change(pruned(0.7), from_table=True)
    assert ratio(now) == 0.5
    now.change(pruned(0.6, multiple=4), from_table=True)  # rows get other stops, so the table is made anew
    assert ratio(now) == 0.6
    now.change(pruned(0.7, multiple=4), from_table=True)
    assert ratio(now) == 0.6
    now.given = None  # as a page drawn from the start has it
    assert ratio(now) == 0.7
