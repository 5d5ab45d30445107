"""What every key of a configuration may be: one rule a key, in the order of the groups.

A key that is in no table must be an argument of the class that its object has, which then judges the value itself.
Numbers of list items are written as *. `FREE` holds keys that no file in conf/ sets, but that can be added with a plus.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from consistency_models.app.checks.rules import (
    Rule,
    either,
    flag,
    list_of,
    node,
    null,
    number,
    one_of,
    target,
    text,
    whole,
)

__all__ = ["EVAL", "FREE", "NOT_ARGUMENTS", "PLUGINS", "TASKS", "TRAIN", "rule_of"]

NOT_ARGUMENTS = (
    *(
        "name",
        "needs_teacher",
        "segments",
        "phases",
        "two_times",
        "network_classes",
        "clamp",
        "evaluation_images",
        "guidance",
        "weak",
        "class_names",
    ),  # see app.build
    *("max_images", "download"),  # see app.run and app.build
    *("_target_", "_partial_", "_convert_", "_recursive_", "_args_"),  # Hydra's own
)
"""Last parts of keys that are not handed to the object they stand in."""

COUNT, SIZE, FLAG, TARGET, TEXT, NULL = whole(0), whole(1), flag(), target(), text(), null()
POSITIVE, NOT_NEGATIVE, ANY = number("(0, inf)"), number("[0, inf)"), number("(-inf, inf)")
LEVEL, LEVEL_OR_0, RHO = number("(0, 1e6]"), number("[0, 1e6]"), number("[0.1, 1000]")
SHARE, BELOW_1 = number("[0, 1]"), number("[0, 1)")
CLASS = either(COUNT, text("the name of a class"))
WEIGHTS = either(text("model, or the name of an average"), BELOW_1)
CURRICULUM = node("${curriculum}")
FILTERS = one_of("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
EXISTING = Rule("a path that exists", lambda value: isinstance(value, str) and Path(value).expanduser().exists())
PRECISION = Rule(
    "32-true, 16-mixed or bf16-mixed: weights, averages and levels are float32, since a step changes a weight by less "
    "than half precision can hold, and images and noise are drawn in float32",
    (PRECISIONS := one_of("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16", 32, 16)).accepts,
    PRECISIONS.meant,
)
RESERVED = Rule("not given: the trainer of every run has its own", lambda value: False)


def maybe(rule: Rule) -> Rule:
    """What the rule allows, or null."""
    return either(rule, NULL)


def _is_range(value: Any) -> bool:
    ends = re.fullmatch(r"(\d{1,15})-(\d{1,15})", value) if isinstance(value, str) else None
    return bool(ends) and int(ends[1]) < int(ends[2])


DESCENDING = Rule(
    "a list of descending levels, each a number in (0, 1e6]",
    lambda value: list_of(LEVEL).accepts(value) and all(a > b for a, b in pairwise(value)),
    lambda value: sorted(value, reverse=True) if list_of(LEVEL, distinct=True).accepts(value) else None,
)
SEEDS = Rule("FIRST-LAST, two or more images, such as 0-49999", _is_range)
PATHS: dict[str, Rule] = {"paths.runs": TEXT, "paths.output": TEXT}

EVAL: dict[str, Rule] = PATHS | {
    "task._target_": TARGET,
    "run": text("a run folder or a checkpoint file"),
    "weights": maybe(WEIGHTS),
    "steps": maybe(list_of(SIZE, distinct=True)),
    "sigmas": maybe(DESCENDING),
    "n": maybe(whole(2)),
    "seed": COUNT,
    "seeds": maybe(either(SEEDS, list_of(SEEDS, distinct=True))),
    "repeats": SIZE,
    "batch_size": SIZE,
    "device": Rule(
        "auto, cpu, cuda, cuda:NUMBER, mps",
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value)),
        one_of("auto", "cpu", "cuda", "mps").meant,
    ),
    "devices": whole(1, 1024),
    "wandb": one_of("auto", "online", "offline", "disabled"),
    "show_traceback": FLAG,
    "augment": NULL,
    "network": NULL,
}

TASKS: dict[str, Rule] = {  # of eval.py's tasks; each takes some of them
    # sample, search
    "task.out": maybe(TEXT),
    "task.format": one_of("png", "zip", "npz"),
    "task.classes": maybe(list_of(CLASS, distinct=True)),
    "task.by_class": FLAG,
    "task.metric": maybe(TEXT),
    "task.grid": whole(3, 10_000),
    "task.images": whole(2),
    # editing
    "task.image": maybe(EXISTING),
    "task.mask": maybe(EXISTING),
    "task.label": maybe(CLASS),
    "task.levels": either(
        whole(2),
        DESCENDING,
    ),
    "task.patch": SIZE,
    "task.noise": LEVEL,
    "task.sigma": maybe(LEVEL),
    "task.ends": list_of(list_of(COUNT, least=2, most=2, distinct=True)),
}

TRAIN: dict[str, Rule] = PATHS | {
    "name": TEXT,
    "seed": COUNT,
    "tags": list_of(TEXT, least=0),
    "train": FLAG,
    "test": FLAG,
    "ckpt_path": maybe(text("last, a run folder, a checkpoint file")),
    "show_traceback": FLAG,
    "plan": FLAG,
    "compile": FLAG,
    "channels_last": FLAG,
    # what a recipe sets; the groups take it up
    "recipe.lr": POSITIVE,
    "recipe.decay": SHARE,
    "recipe.warmup_images": NOT_NEGATIVE,
    "recipe.N": whole(2),
    "recipe.s0": SIZE,
    "recipe.s1": SIZE,
    "recipe.ema": BELOW_1,
    "recipe.sigma_mid": LEVEL,
    "recipe.dropout": BELOW_1,
    "recipe.fourier_scale": POSITIVE,
    "recipe.warmup_steps": COUNT,
    "recipe.limit": number("(0, 1)"),
    # model
    "model._target_": TARGET,
    "model.name": TEXT,
    "model.needs_teacher": maybe(FLAG),
    "model.segments": SIZE,
    "model.phases": list_of(SIZE),
    "model.weight_inside": FLAG,
    "model.power": NOT_NEGATIVE,
    "model.eps": POSITIVE,
    "model.label_dropout": SHARE,
    "model.omega": ANY,
    "model.kappa": ANY,
    "model.interval": list_of(SHARE, least=2, most=2),
    "model.own_velocity": FLAG,
    "model.cfg_scale": NOT_NEGATIVE,
    "model.group": whole(2),
    "model.sigma_data": POSITIVE,
    "model.start": SHARE,
    "model.stop": SHARE,
    "model.steepness": POSITIVE,
    "model.clamp": number("[0, 0.5)"),
    "model.clip": maybe(POSITIVE),
    "model.q_max": SHARE,
    "model.two_times": FLAG,
    "model.solver": node("${solver}"),
    "model.transition": LEVEL_OR_0,
    "model.diffusion": NULL,
    "model.log_weight": NULL,
    "model.log_weight._target_": TARGET,
    "model.log_weight.sigma_data": POSITIVE,
    "model.tangent_norm": maybe(POSITIVE),
    "model.tangent_rms": FLAG,
    "model.tangent_clip": maybe(POSITIVE),
    "model.warmup_steps": COUNT,
    "model.target_ema": NULL,
    "model.target_ema._target_": TARGET,
    "model.target_ema.decay": BELOW_1,
    "model.target_ema.initial": BELOW_1,
    "model.target_ema.curriculum": CURRICULUM,
    # network
    "network._target_": TARGET,
    "network.image_size": SIZE,
    "network.channels": SIZE,
    "network.num_classes": maybe(COUNT),
    "network.augment_dim": COUNT,
    "network.dropout": BELOW_1,
    "network.dropout_resolution": maybe(SIZE),
    "network.label_dropout": SHARE,
    "network.width": SIZE,
    "network.depth": COUNT,
    "network.model_channels": SIZE,
    "network.channel_mult": list_of(SIZE),
    "network.channel_mult_emb": SIZE,
    "network.channel_mult_noise": SIZE,
    "network.num_blocks": SIZE,
    "network.attn_resolutions": list_of(SIZE, least=0),
    "network.middle_attention": FLAG,
    "network.head_channels": SIZE,
    "network.heads": maybe(SIZE),
    "network.embedding._target_": TARGET,
    "network.embedding._partial_": FLAG,
    "network.embedding.scale": POSITIVE,
    "network.embedding.endpoint": FLAG,
    "network.patch_size": SIZE,
    "network.encoder": one_of("standard", "skip", "residual"),
    "network.decoder": one_of("standard", "skip"),
    "network.resample_filter": list_of(POSITIVE),
    "network.adaptive_scale": FLAG,
    "network.double_norm": FLAG,
    "network.resblock_updown": FLAG,
    "network.legacy_order": FLAG,
    "network.noise_scale": POSITIVE,
    "network.logvar_channels": COUNT,
    **{f"network.{name}_balance": SHARE for name in ("res", "attn", "concat", "label")},
    "network.clip_act": maybe(POSITIVE),
    "network.checkpointing": FLAG,
    "network.two_times": FLAG,
    # schedule, curriculum
    "schedule._target_": TARGET,
    "schedule.curriculum": CURRICULUM,
    "schedule.sigma_min": LEVEL,
    "schedule.sigma_max": LEVEL,
    "schedule.rho": RHO,
    "schedule.mean": ANY,
    "schedule.std": POSITIVE,
    "schedule.end_mean": maybe(ANY),
    "schedule.end_std": maybe(POSITIVE),
    "schedule.swap": FLAG,
    "schedule.equal": SHARE,
    "schedule.by_position": FLAG,
    "schedule.sections": whole(2),
    "schedule.group": SIZE,
    "schedule.gap": SIZE,
    "schedule.highest": number("(0, 1)"),
    "schedule.lowest": BELOW_1,
    "schedule.sigma_data": POSITIVE,
    "schedule.q": number("(1, inf)"),
    "schedule.slope": NOT_NEGATIVE,
    "schedule.steepness": NOT_NEGATIVE,
    "schedule.stages": SIZE,
    "schedule.transition": LEVEL_OR_0,
    "schedule.scale": POSITIVE,
    "schedule.df": POSITIVE,
    "schedule.limit": number("(0, 1)"),
    "schedule.first_stage": COUNT,
    "schedule.share": BELOW_1,
    "schedule.boundary_weight": NOT_NEGATIVE,
    "schedule.segments": SIZE,
    "schedule.steps": list_of(SIZE),
    "schedule.spacing._target_": TARGET,
    "schedule.spacing._partial_": FLAG,
    "schedule.spacing.sigma_min": LEVEL,
    "schedule.spacing.sigma_max": LEVEL,
    "schedule.spacing.rho": RHO,
    "schedule.spacing.kappa": LEVEL,
    "curriculum._target_": TARGET,
    "curriculum.N": whole(2),
    "curriculum.s0": SIZE,
    "curriculum.s1": SIZE,
    "curriculum.steps": SIZE,
    # loss, weighting, preconditioning
    "loss._target_": TARGET,
    "loss.c": maybe(NOT_NEGATIVE),
    "loss.weights": maybe(TEXT),
    "weighting._target_": TARGET,
    "weighting.sigma_data": POSITIVE,
    "weighting.a": ANY,
    "weighting.b": ANY,
    "preconditioning._target_": TARGET,
    "preconditioning.sigma_data": POSITIVE,
    "preconditioning.sigma_min": LEVEL_OR_0,
    "preconditioning.sigma_max": LEVEL,
    "preconditioning.beta_d": POSITIVE,
    "preconditioning.beta_min": POSITIVE,
    "preconditioning.steps": whole(2, 10_000),
    "preconditioning.gap": FLAG,
    "preconditioning.epsilon": number("(0, 1)"),
    "preconditioning.c_1": SHARE,
    "preconditioning.c_2": POSITIVE,
    # optimizer, learning_rate, ema
    "optimizer._target_": TARGET,
    "optimizer._partial_": FLAG,
    "optimizer.lr": POSITIVE,
    "optimizer.betas": list_of(BELOW_1, least=2, most=2),
    "optimizer.eps": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.fused": maybe(FLAG),
    "learning_rate._target_": TARGET,
    "learning_rate.warmup_images": NOT_NEGATIVE,
    "learning_rate.decay": SHARE,
    "learning_rate.reference_steps": POSITIVE,
    "ema._target_": TARGET,
    "ema.decays": list_of(BELOW_1, distinct=True),
    "ema.images": POSITIVE,
    "ema.ramp": maybe(POSITIVE),
    "ema.stds": list_of(number(f"(0, {12**-0.5:.4f})"), distinct=True),
    # teacher, init, solver, sampler
    "teacher._target_": maybe(TARGET),
    "teacher.path": maybe(TEXT),
    "teacher.weights": maybe(WEIGHTS),
    "teacher.source": node("${data.source}"),
    "teacher.kinds": list_of(TEXT, distinct=True),
    "teacher.guidance": NOT_NEGATIVE,
    "teacher.weak": maybe(TEXT),
    "init._target_": maybe(TARGET),
    "init.path": maybe(TEXT),
    "init.weights": maybe(WEIGHTS),
    "solver._target_": TARGET,
    "solver.eta": maybe(NOT_NEGATIVE),
    "solver.share": NOT_NEGATIVE,
    "solver.prior_variance": POSITIVE,
    "sampler._target_": TARGET,
    "sampler._partial_": FLAG,
    "sampler.sigma_mid": LEVEL,
    "sampler.gamma": SHARE,
    "sampler.sigma_min": LEVEL_OR_0,
    "sampler.sigma_max": LEVEL,
    "sampler.rho": RHO,
    "sampler.segments": maybe(SIZE),
    "sampler.spacing": maybe(node("${schedule.spacing}")),
    # data, augment
    "data._target_": TARGET,
    "data.name": TEXT,
    "data.root": maybe(TEXT),
    "data.image_size": SIZE,
    "data.channels": SIZE,
    "data.num_classes": maybe(COUNT),
    "data.sigma_data": POSITIVE,
    "data.batch_size": SIZE,
    "data.conditional": FLAG,
    "data.flip": FLAG,
    "data.workers": COUNT,
    "data.overfit_steps": COUNT,
    "data.seed": COUNT,
    "data.clamp": FLAG,
    "data.evaluation_images": whole(2),
    "data.network_classes": maybe(COUNT),
    "data.source._target_": TARGET,
    "data.source.name": TEXT,
    "data.source.root": maybe(TEXT),
    "data.source.image_size": SIZE,
    "data.source.channels": one_of(1, 3),
    "data.source.resize": FILTERS,
    "data.source.bad_images": one_of("error", "skip"),
    "data.source.cache_dir": maybe(TEXT),
    "data.source.download": FLAG,
    "data.source.value_range": maybe(list_of(ANY, least=2, most=2)),
    "data.source.max_pixels": SIZE,
    "data.source.dimension": whole(2),  # pictures are of two coordinates
    "data.source.components": SIZE,
    "data.source.seed": COUNT,
    "augment.flip": FLAG,
    "augment._target_": TARGET,
    "augment.p": SHARE,
    **{
        f"augment.{name}": NOT_NEGATIVE
        for name in (
            *("xflip", "yflip", "rotate_int", "translate_int", "scale", "rotate_frac", "aniso", "translate_frac"),
            *("brightness", "contrast", "lumaflip", "hue", "saturation"),
            *("scale_std", "rotate_frac_max", "aniso_std", "translate_frac_std"),
            *("brightness_std", "contrast_std", "hue_max", "saturation_std"),
        )
    },
    "augment.translate_int_max": POSITIVE,
    "augment.aniso_rotate_prob": SHARE,
    # features, evaluation
    "features._target_": TARGET,
    "features._partial_": FLAG,
    "features.reference": Rule(
        "train, test, or the path of an npz file",
        lambda value: value in ("train", "test") or (isinstance(value, str) and value.endswith(".npz")),
        one_of("train", "test").meant,
    ),
    "features.batch_size": SIZE,
    "features.device": one_of("auto", "cpu", "cuda"),
    "features.extractor._target_": TARGET,
    "features.extractor._partial_": FLAG,
    "features.extractor.steps": SIZE,
    "features.extractor.batch_size": SIZE,
    "features.extractor.learning_rate": POSITIVE,
    "features.extractor.seed": COUNT,
    "features.extractor.weights": maybe(TEXT),
    "features.metrics.*._target_": TARGET,
    "features.metrics.*.name": one_of("fd", "fid", "kd", "kid"),
    "features.metrics.*.projections": SIZE,
    "features.metrics.*.seed": COUNT,
    "features.metrics.*.subsets": SIZE,
    "features.metrics.*.subset_size": whole(2),
    "features.metrics.*.splits": SIZE,
    "features.metrics.*.k": SIZE,
    "evaluation.steps": list_of(SIZE, distinct=True),
    "evaluation.n": whole(2),
    "evaluation.batch_size": SIZE,
    "evaluation.seed": COUNT,
    "evaluation.ode_points": whole(0),
    "evaluation.ode_steps": SIZE,
    # trainer
    "trainer._target_": TARGET,
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": either(one_of("auto"), SIZE, list_of(COUNT, distinct=True)),
    "trainer.num_nodes": SIZE,
    "trainer.strategy": one_of("auto", "ddp"),
    "trainer.precision": PRECISION,
    "trainer.max_steps": SIZE,
    "trainer.max_images": maybe(SIZE),
    "trainer.accumulate_grad_batches": either(one_of("auto"), SIZE),
    "trainer.gradient_clip_val": maybe(POSITIVE),
    "trainer.deterministic": maybe(either(FLAG, one_of("warn"))),
    "trainer.detect_anomaly": FLAG,
    "trainer.profiler._target_": TARGET,
    "trainer.profiler.dirpath": TEXT,
    "trainer.profiler.filename": TEXT,
    # logger, callbacks
    "logger.csv": FLAG,
    "logger.tensorboard": FLAG,
    "logger.wandb": NULL,
    "logger.wandb.project": TEXT,
    "logger.wandb.entity": maybe(TEXT),
    "logger.wandb.group": maybe(TEXT),
    "logger.wandb.mode": one_of("auto", "online", "offline", "disabled"),
    "logger.wandb.upload": FLAG,
    "callbacks.metrics._target_": TARGET,
    "callbacks.metrics.every_n_steps": SIZE,
    "callbacks.finite._target_": TARGET,
    "callbacks.finite.policy": one_of("stop", "skip"),
    "callbacks.finite.max_consecutive": SIZE,
    "callbacks.ema._target_": TARGET,
    "callbacks.ema.profile": node("${ema}"),
    "callbacks.samples._target_": TARGET,
    "callbacks.samples._partial_": FLAG,
    "callbacks.samples.folder": TEXT,
    "callbacks.samples.every_n_steps": SIZE,
    "callbacks.samples.columns": SIZE,
    "callbacks.samples.rows": SIZE,
    "callbacks.samples.points": SIZE,
    "callbacks.validation._target_": TARGET,
    "callbacks.validation._partial_": FLAG,
    "callbacks.validation.every_n_steps": SIZE,
    "callbacks.checkpoint._target_": TARGET,
    "callbacks.checkpoint.folder": TEXT,
    "callbacks.checkpoint.every_n_steps": SIZE,
    "callbacks.checkpoint.keep_every": maybe(SIZE),
    "callbacks.checkpoint.keep": maybe(SIZE),
    "callbacks.signals._target_": TARGET,
    "callbacks.progress._target_": TARGET,
}

FREE: dict[str, Rule] = {
    **{f"callbacks.{name}": NULL for name in ("metrics", "finite", "ema", "samples", "validation", "checkpoint")},
    **{f"callbacks.{name}": NULL for name in ("signals", "progress")},
    "sweep_size": one_of("small", "paper"),  # of the files of sweeps/
    "data.resident": either(FLAG, one_of("auto")),
    "data.source.sample_size": whole(2),
    "model.diffusion._target_": TARGET,
    "model.diffusion.path": TEXT,
    "model.diffusion.weights": maybe(WEIGHTS),
    "network.out_channels": maybe(SIZE),
    **{f"trainer.{name}": RESERVED for name in ("callbacks", "logger", "plugins", "default_root_dir", "max_epochs")},
    **{
        f"trainer.{name}": RESERVED for name in ("use_distributed_sampler", "enable_checkpointing", "limit_val_batches")
    },
    **{f"trainer.{name}": RESERVED for name in ("enable_progress_bar", "enable_model_summary", "overfit_batches")},
    **{f"trainer.{name}": RESERVED for name in ("enable_autolog_hparams", "num_sanity_val_steps", "fast_dev_run")},
    "sampler.clip": FLAG,
    **{f"sampler.churn{name}": number("[0, inf]") for name in ("", "_min", "_max", "_noise")},
}

PLUGINS: dict[str, dict[str, Rule]] = {  # of Hydra that are in this project, by their class
    "hydra_plugins.consistency_models.processes.Processes": {
        "hydra.launcher.jobs": maybe(SIZE),
        "hydra.launcher.gpus": maybe(list_of(either(COUNT, TEXT))),
    },
    "hydra_plugins.consistency_models.search.Search": {
        "hydra.sweeper.n_trials": SIZE,
        "hydra.sweeper.direction": one_of("minimize", "maximize"),
        "hydra.sweeper.at_once": SIZE,
        "hydra.sweeper.seed": COUNT,
    },
}


def rule_of(task: str, key: str) -> Rule | None:
    """The rule of a key, None if there is none."""
    key = re.sub(r"\.\d+(?=\.|$)", ".*", key)
    if task == "eval" and not key.startswith(("data.", "features.", "sampler.")):  # other ones than the run's
        return EVAL.get(key) or TASKS.get(key)
    return TRAIN.get(key) or FREE.get(key)
