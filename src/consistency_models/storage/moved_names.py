"""Renamed modules, classes, keys and options, for checkpoints, run folders and command lines of earlier versions."""

from __future__ import annotations

from typing import Any

__all__ = ["current_config", "current_override", "current_target"]

MODULES = {
    "ablation_sampler": "sampling.general_ode",
    "augment": "data.augment",
    "curricula": "noise.curricula",
    "distances": "losses.distances",
    "ema": "optim.ema",
    "learning_rates": "optim.learning_rates",
    "methods.diffusion": "methods.teacher",
    "methods.direct": "methods.dcm",
    "methods.distillation": "methods.cd",
    "methods.easy": "methods.ect",
    "methods.improved": "methods.ict",
    "methods.multistep": "methods.mcm",
    "methods.training": "methods.ct",
    "optimizers": "optim.optimizers",
    "preconditioning": "noise.preconditioning",
    "samplers": "sampling.samplers",
    "schedules": "noise.schedules",
    "segments": "noise.segments",
    "solvers": "sampling.solvers",
    "weightings": "losses.weightings",
}
"""Modules of version 0.1 and their present names."""

CLASSES = {
    "consistency_models.methods.dcm.MidTraining": "consistency_models.methods.cmt.MidTraining",
    "consistency_models.noise.schedules.Closing": "consistency_models.noise.schedules.ECTSchedule",
    "consistency_models.sampling.general_ode.Ablation": "consistency_models.sampling.general_ode.GeneralODESampler",
    "consistency_models.sampling.samplers.Chain": "consistency_models.sampling.samplers.SegmentSampler",
}
"""Renamed classes, by their present module."""

KEYS = {
    "callbacks.checkpoint.every": "callbacks.checkpoint.every_n_steps",
    "callbacks.finite.at_most": "callbacks.finite.max_consecutive",
    "callbacks.metrics.every": "callbacks.metrics.every_n_steps",
    "callbacks.samples.every": "callbacks.samples.every_n_steps",
    "callbacks.validation.every": "callbacks.validation.every_n_steps",
    "data.bounded": "data.clamp",
    "recipe.middle": "recipe.sigma_mid",
    "sampler.middle": "sampler.sigma_mid",
}
"""Renamed keys of a configuration."""

OPTIONS = {
    ("sampler", "chain"): "segments",
    ("schedule", "closing"): "ect",
    ("trainer.precision", "32"): "32-true",
    ("trainer.precision", "16"): "16-mixed",
    ("trainer.precision", "bf16"): "bf16-mixed",
}
"""Renamed options of config groups, and short names of Lightning that 0.1 took."""

DATA_RECIPES = [f"{model}_mixture" for model in ("cd", "cmt", "ct", "dcm", "ect", "ict", "teacher")]
DATA_RECIPES += [f"{model}_digits" for model in ("cd", "ect")]
"""Options of the group recipe whose numbers are in the group budget now: no recipe is chosen in their place."""


def current_target(target: str) -> str:
    """The present name of the class or function that `target` named in an earlier version."""
    package, _, rest = target.partition(".")
    if package != "consistency_models":
        return target
    teachers = ("app.build.run_teacher", "app.build.official_teacher", "app.build.exact_teacher")
    if rest in teachers or rest.startswith("app.build.weights_of_"):
        return f"{package}.teachers.{rest.removeprefix('app.build.')}"
    module, _, name = rest.rpartition(".")
    for old, new in MODULES.items():
        if module == old or module.startswith(f"{old}."):  # for_steps of a class
            moved = f"{package}.{new}{module.removeprefix(old)}.{name}"
            for before, now in CLASSES.items():
                if moved == before or moved.startswith(f"{before}."):
                    return now + moved.removeprefix(before)
            return moved
    return target


def current_config(config: Any, path: str = "") -> Any:
    """A saved configuration with the present names of its keys and of the classes in it."""
    if isinstance(config, list):
        return [current_config(item, path) for item in config]
    if not isinstance(config, dict):
        return config
    renewed = {}
    for key, value in config.items():
        own = f"{path}.{key}" if path else str(key)
        name = KEYS[own].rpartition(".")[2] if own in KEYS else key
        is_target = key == "_target_" and isinstance(value, str)
        renewed[name] = current_target(value) if is_target else current_config(value, own)
        if own == "trainer.precision":
            renewed[name] = OPTIONS.get((own, str(value)), value)
    return renewed


def current_override(override: str) -> str:
    """An override of the command line with the present names of its key and of the option that it chooses."""
    signed, equals, value = override.partition("=")
    key = signed.lstrip("+~")
    prefix = signed.removesuffix(key)
    if key == "recipe" and value in DATA_RECIPES:
        return "~recipe"
    options = ",".join(OPTIONS.get((key, option.strip()), option) for option in value.split(","))
    return f"{prefix}{KEYS.get(key, key)}{equals}{options}"
