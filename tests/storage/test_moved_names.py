"""What is renamed is renamed to something that exists."""

from importlib import import_module
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from consistency_models.app.checks import Composer, check
from consistency_models.storage import moved_names
from consistency_models.storage.moved_names import current_config, current_override, current_target

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("module", sorted(set(moved_names.MODULES.values())))
def test_modules_exist(module):
    assert import_module(f"consistency_models.{module}")


@pytest.mark.parametrize("target", sorted(moved_names.CLASSES.values()))
def test_classes_exist(target):
    module, _, name = target.rpartition(".")
    assert hasattr(import_module(module), name)
    assert current_target(target) == target


def test_keys_and_options_exist():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train")
    for key in moved_names.KEYS.values():
        assert OmegaConf.select(config, key, throw_on_missing=False) is not None, key
    for (group, _), option in moved_names.OPTIONS.items():
        if group != "trainer.precision":
            assert (CONF / group / f"{option}.yaml").is_file()


@pytest.mark.parametrize(("short", "name"), [("32", "32-true"), ("16", "16-mixed"), ("bf16", "bf16-mixed")])
def test_short_names_of_precisions_are_understood(short, name, capsys):
    arguments = [f"trainer.precision={short}", "trainer=cpu"]
    assert f"trainer.precision={name}" in check("train", Composer("train", CONF), arguments)
    assert f"trainer.precision={short} is called trainer.precision={name} now" in capsys.readouterr().err
    for saved in (short, int(short) if short.isdigit() else short):
        assert current_config({"trainer": {"precision": saved}}) == {"trainer": {"precision": name}}
    assert current_override(f"trainer.precision=32-true, {short}") == f"trainer.precision=32-true,{name}"


@pytest.mark.parametrize("recipe", moved_names.DATA_RECIPES)
def test_a_recipe_whose_numbers_are_in_the_budget_is_left_out(recipe):
    model, data = recipe.split("_")
    assert current_override(f"recipe={recipe}") == "~recipe"
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        asked = hydra.compose("train", [f"model={model}", f"data={data}", "~recipe"])
        config = hydra.compose("train", [f"model={model}", f"data={data}"])
    assert asked == config
    assert config.recipe.lr == 1e-3
