"""Recipes: what the shipped ones say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bluedit.editors.presets import PRESETS
from bluedit.errors import RecipeError
from bluedit.experiments import find_recipe, read_plan, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.toml"))
PUBLISHED = [name for name in SHIPPED if not name.startswith(("mini/", "paper", "smollm2/")) and "batch" not in name]

# The published settings, model by model: critical layers, steps, learning rate, lambda.
MODELS = {
    "llama-3-8b": ((4, 5, 6, 7, 8), 25, 0.1, 15000),
    "gpt-j-6b": ((3, 4, 5, 6, 7, 8), 25, 0.5, 15000),
    "gpt2-xl": ((13, 14, 15, 16, 17), 20, 0.5, 20000),
}
L2_WITH_BLUE = {"llama-3-8b": 1, "gpt-j-6b": 95, "gpt2-xl": 80}


def test_every_published_setting_has_its_recipe() -> None:
    methods = ("memit", "rect", "prune", "alphaedit", "pmet")
    wanted = {f"{model}/{method}{blue}" for model in MODELS for method in methods for blue in ("", "-blue")}
    assert wanted <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_found_by_name_and_valid(name: str) -> None:
    plan = read_plan(find_recipe(name))
    assert plan.name == name
    for cell in plan.cells:
        assert len(set(cell.recipe.names)) == len(cell.recipe.runs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sequential_recipes_say_what_was_published(name: str) -> None:
    model, _, file = name.partition("/")
    recipe = read_recipe(find_recipe(name))
    (run,) = recipe.runs
    layers, steps, rate, weight = MODELS[model]
    blue = file.endswith("-blue")
    assert run.method == file.removesuffix("-blue")
    assert run.strategy == ("boundary" if blue else "square-root" if run.method == "pmet" else "even")
    assert run.layers == layers
    assert (recipe.facts, recipe.batch_size, recipe.samples) == (2000, 100, 100_000)
    expected = {
        "v_num_grad_steps": steps,
        "v_lr": rate,
        "clamp_norm_factor": 0.75,
        "v_weight_decay": 0.5,
        "kl_factor": 0.0625,
        "lambda": weight,
    }
    if run.method == "pmet":
        expected |= {"gpt2-xl": {"lambda": 10000, "clamp_norm_factor": 2}}.get(model, {})
        expected |= {"lambda": 1000} if blue and model == "gpt-j-6b" else {}
    if run.method == "rect":
        expected["rect_keep"] = 0.4
    if run.method == "alphaedit":
        del expected["lambda"]
        expected |= {"L2": L2_WITH_BLUE[model] if blue else 10, "nullspace_threshold": 2e-2, "nullspace_scale": "absolute"}
    assert run.settings == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_known_by_the_models_shape_are_the_recipes(name: str) -> None:
    """`bluedit edit --method M` without a setting does what the recipe does."""
    known = next(known for known in PRESETS if known.name == name.partition("/")[0])
    (run,) = read_recipe(find_recipe(name)).runs
    method = run.resolve()
    looked_up = method.override(known.settings_for(method.name, method.strategy.name), {}).as_dict()
    assert run.layers == known.layers
    assert {key: looked_up[key] for key in run.settings} == run.settings


BASE = 'name = "x"\nmodel = "gpt2-mini"\ndataset = "world:counterfact"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "cannot be read"),
        (BASE, "runs: Field required"),
        (BASE + "runs = []", "runs: .*at least 1 item"),
        (BASE + "batchsize = 3\n[[runs]]\nmethod = 'memit'", "batchsize: unknown key 'batchsize'. Did you mean 'batch_size'"),
        (BASE + "[[runs]]\nmethod = 'memitt'", r"runs\[1\]: unknown method 'memitt'. Did you mean 'memit'"),
        (BASE + "[[runs]]\nmethod = 'memit'\nstrategy = 'blue'", r"runs\[1\]: unknown strategy 'blue'"),
        (BASE + "[[runs]]\nmethod = 'memit'\nsettings = {L2 = 3}", r"runs\[1\]: memit does not use the setting 'L2'"),
        (BASE + "[[runs]]\nmethod = 'memit'\nsettings = {lambda = -3}", r"runs\[1\]: setting lambda=-3"),
        (BASE + "[[runs]]\nmethod = 'memit'\nlayers = '5-3'", r"runs\[1\]\.layers: .*runs backwards; write 3-5"),
        (BASE + "[[runs]]\nmethod = 'memit'\nlayer = 3", r"runs\[1\]\.layer: unknown key 'layer'. Did you mean 'layers'"),
        (BASE + "[[runs]]\nmethod = 'ft-l'\nstrategy = 'boundary'", r"runs\[1\]: ft-l trains one weight"),
        (BASE + "facts = 0\n[[runs]]\nmethod = 'memit'", "facts: .*greater than or equal to 1"),
    ],
)
def test_malformed_recipes_are_refused_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 'mini/sequential'"):
        find_recipe("mini/sequentail")


def test_runs_of_one_method_and_strategy_get_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    run = "[[runs]]\nmethod = 'memit'\n"
    path.write_text(BASE + run + run + run + "strategy = 'single:3'\n")
    assert read_recipe(path).names == ("memit-even-1", "memit-even-2", "memit-single-3")
