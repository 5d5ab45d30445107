"""The types of the settings of a configuration: keys that are no arguments of an object.

Annotations give the bounds of arguments, see `consistency_models.values`. `FOREIGN` has the bounds of classes of other
packages. Indices of list items are written as *. `FREE` has keys that no file in conf/ sets and that a user can add.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import NoneType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen, Predicate, doc

from consistency_models.app.checks.targets import find
from consistency_models.values import (
    BelowOne,
    Count,
    Descending,
    Distinct,
    Interval,
    NotNegative,
    Positive,
    Share,
    Sigma,
    SigmaOrZero,
    Size,
    Text,
    Weights,
)

__all__ = ["EVAL", "FREE", "NOT_ARGUMENTS", "TRAIN", "kind_of"]

NOT_ARGUMENTS = {
    "model": ("name", "segments", "phases", "two_times", "w_embedding", "guidance_w"),
    "data": ("network_classes", "clamp", "evaluation_images", "class_names"),
    "data.source": ("download", "urls"),
    "teacher": ("guidance", "weak", "interval"),
    "trainer": ("max_images",),
}
"""Keys of a group that are no arguments of its object, because other parts of the configuration use them."""

Target = Annotated[
    str, Predicate(lambda name: find(name).exists), doc("the full name of a class or function that can be imported")
]
Object = Annotated[dict[str, Any], Predicate(lambda node: "_target_" in node), doc("an object with its _target_")]
Reserved = Annotated[Any, Predicate(lambda value: False), doc("not given: the trainer of every run has its own")]
Precision = Annotated[
    Literal["32-true", "16-mixed", "bf16-mixed"],
    doc(
        "32-true, 16-mixed or bf16-mixed: weights, averages and levels are float32, since a step changes a weight by "
        "less than half precision can hold, and images and noise are drawn in float32"
    ),
]
Device = (
    Literal["auto", "cpu", "cuda", "mps"]
    | Annotated[str, Predicate(re.compile(r"cuda:\d+").fullmatch), doc("cuda:NUMBER")]
)


def _is_range(value: str) -> bool:
    ends = re.fullmatch(r"(\d{1,15})-(\d{1,15})", value)
    return bool(ends) and int(ends[1]) < int(ends[2])


Seeds = Annotated[str, Predicate(_is_range), doc("FIRST-LAST, two or more images, such as 0-49999")]
Tag = Annotated[Text, MaxLen(64), doc("text of at most 64 characters")]
Project = Annotated[
    Text,
    MaxLen(128),
    Predicate(lambda name: not set(name) & set("/\\#?%:")),
    doc("a name of at most 128 characters, without / \\ # ? % :"),
]
Mode = Literal["auto", "online", "offline", "disabled"]
Urls = Annotated[
    str,
    Predicate(re.compile(r"https?://[^\s{}]+(\{\d{1,9}\.\.\d{1,9}\}[^\s{}]*)*\.(tar|parquet)").fullmatch),
    doc("http(s)://….tar or .parquet, with ranges such as {000..099}; files of this machine: data=image_folder"),
]
StepCounts = Annotated[Sequence[Size], MinLen(1), Distinct]
Images = Annotated[int, Ge(2), Le(10_000_000)]
PATHS: dict[str, Any] = {"paths.runs": Text, "paths.output": Text}

EVAL: dict[str, Any] = PATHS | {
    "task._target_": Target,
    "run": Annotated[Text, doc("a run folder or a checkpoint file")],
    "weights": Weights | None,
    "steps": StepCounts | None,
    "sigmas": Descending | None,
    "n": Images | None,
    "seed": Count,
    "seeds": Seeds | Annotated[Sequence[Seeds], MinLen(1), Distinct] | None,
    "repeats": Size,
    "batch_size": Size,
    "precision": Precision,
    "compile": Literal["auto"] | bool,
    "device": Device,
    "devices": Annotated[int, Ge(1), Le(1024)],
    "wandb": Mode,
    "show_traceback": bool,
    "augment": NoneType,
    "network": NoneType,
}

TRAIN: dict[str, Any] = PATHS | {
    "name": Text,
    "seed": Count,
    "tags": Sequence[Tag],
    "train": bool,
    "test": bool,
    "plan": bool,
    "ckpt_path": Annotated[Text, doc("last, a run folder, a checkpoint file")] | None,
    "show_traceback": bool,
    "compile": Literal["auto"] | bool,
    "channels_last": Literal["auto"] | bool,
    "classes_if.True": Count | None,
    "classes_if.False": Literal[0],
    # settings of a recipe, read by the groups
    "recipe.lr": Positive,
    "recipe.decay": Share,
    "recipe.warmup_images": NotNegative,
    "recipe.N": Annotated[int, Ge(2)],
    "recipe.s0": Size,
    "recipe.s1": Size,
    "recipe.ema": BelowOne,
    "recipe.sigma_mid": Sigma,
    "recipe.dropout": BelowOne,
    "recipe.fourier_scale": Positive,
    "recipe.warmup_steps": Count,
    "recipe.limit": Annotated[float, Gt(0), Lt(1)],
    "recipe.pooling": Literal["average", "max"],
    # settings of the method, the teacher and the data, read by other parts
    "model.name": Text,
    "model.segments": Size,
    "model.phases": Annotated[Sequence[Size], MinLen(1)],
    "model.two_times": bool,
    "model.w_embedding": Size | None,
    "model.guidance_w": Interval | None,
    "teacher._target_": Target | None,
    "teacher.path": Text | None,
    "teacher.guidance": NotNegative | None,  # null: of each caption, with data.guidance_w
    "teacher.weak": Text | None,
    "teacher.interval": Annotated[Sequence[SigmaOrZero], Len(2, 2)] | None,
    "init._target_": Target | None,
    "init.path": Text | None,
    "network.num_classes": Count | None,  # null if the data set has an unknown number: see relations.data
    "data.source": Object,
    "data.name": Text,
    "data.root": Text | None,  # of eval.py alone, without the object of `data`
    "data.image_size": Size,
    "data.channels": Size,
    "data.network_classes": Count | None,
    "data.clamp": bool,
    "data.evaluation_images": Images,
    "data.source.download": bool,
    "data.source.urls": Urls,
    "data.source.dimension": Annotated[int, Ge(2)],  # of a mixture, whose pictures show two coordinates
    "augment.flip": bool,
    "evaluation.steps": StepCounts,
    "evaluation.n": Images,
    "evaluation.batch_size": Size,
    "evaluation.seed": Count,
    "evaluation.ode_points": Count,
    "evaluation.ode_steps": Size,
    # trainer, logger
    "trainer.accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
    "trainer.devices": Literal["auto"] | Size | Annotated[Sequence[Count], MinLen(1), Distinct],
    "trainer.num_nodes": Size,
    "trainer.strategy": Literal["auto", "ddp", "fsdp"],
    "trainer.precision": Precision,
    "trainer.max_steps": Size,
    "trainer.max_images": Size | None,
    "trainer.accumulate_grad_batches": Literal["auto"] | Size,
    "trainer.gradient_clip_val": Positive | None,
    "trainer.deterministic": bool | Literal["warn"] | None,
    "logger.csv": bool,
    "logger.tensorboard": bool,
    "logger.wandb": NoneType,
    "logger.wandb.project": Project,
    "logger.wandb.entity": Text | None,
    "logger.wandb.group": Text | None,
    "logger.wandb.mode": Mode,
    "logger.wandb.upload": bool,
}

FREE: dict[str, Any] = {
    **{f"callbacks.{name}": Object | None for name in ("metrics", "finite", "ema", "samples", "validation")},
    **{f"callbacks.{name}": Object | None for name in ("checkpoint", "signals", "progress")},
    "sweep_size": Literal["small", "digits", "paper"],  # of the files of sweeps/
    **{f"trainer.{name}": Reserved for name in ("callbacks", "logger", "plugins", "default_root_dir", "max_epochs")},
    **{f"trainer.{name}": Reserved for name in ("use_distributed_sampler", "enable_checkpointing")},
    **{f"trainer.{name}": Reserved for name in ("enable_progress_bar", "enable_model_summary", "overfit_batches")},
    **{f"trainer.{name}": Reserved for name in ("enable_autolog_hparams", "num_sanity_val_steps", "fast_dev_run")},
    "trainer.limit_val_batches": Reserved,
}

HYDRA: dict[str, Any] = {"_target_": Target, "_partial_": bool, "_recursive_": bool, "_convert_": Text, "_args_": list}
"""Keys of Hydra for every object."""

FOREIGN: dict[str, dict[str, Any]] = {
    "torch.optim.": {
        "lr": Positive,
        "betas": Annotated[Sequence[BelowOne], Len(2, 2)],
        "eps": NotNegative,
        "weight_decay": NotNegative,
        "fused": bool | None,
    },
}
"""Arguments of classes of other packages, by the prefix of the class name."""


def kind_of(task: str, key: str) -> Any:
    """Return the type of a setting, None if there is no such setting."""
    key = re.sub(r"\.\d+(?=\.|$)", ".*", key)
    replaced = ("data.", "features.", "sampler.")  # eval.py can replace these groups of the run
    if task == "eval" and not key.startswith(replaced):
        return EVAL.get(key) or HYDRA.get(key.rpartition(".")[2])
    return TRAIN.get(key) or FREE.get(key) or HYDRA.get(key.rpartition(".")[2])
