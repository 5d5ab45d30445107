"""Relations between keys and groups: each function yields the problems of one relation.

All take the resolved configuration, which has passed the rules for single keys, and the option that each group has.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from consistency_models.app.checks.files import has_checkpoint, wrong_checkpoint, wrong_path
from consistency_models.app.checks.problems import problem
from consistency_models.app.checks.targets import fact
from consistency_models.errors import ConfigError, Exit, pasteable
from consistency_models.values import show

__all__ = ["EVAL", "TRAIN", "Choices", "needs_teacher"]

Config, Problems = dict[str, Any], Iterator[ConfigError]


class Choices(dict[str, str]):
    """The chosen option of each group.

    Args:
        chosen: group -> option.
        options: `options(group)` returns the options of a group with the content of their files.
    """

    def __init__(self, chosen: Mapping[str, str], options: Callable[[str], Iterable[tuple[str, Config]]]) -> None:
        super().__init__(chosen)
        self.options = options


PAIRS_OF_TIMES = ("MeanFlow", "AlphaFlow", "AlignYourFlow")
FLOW_MAPS = (*PAIRS_OF_TIMES, "FlowAnchoredConsistency", "Shortcut")  # networks that predict an average velocity
A_RUN = "a finished run: its folder or a checkpoint file"
OFFICIAL = "an official checkpoint, a file"


def _is(config: Config, group: str, name: str) -> bool:
    return str(config[group]["_target_"]).endswith(f".{name}")


def needs_teacher(config: Config) -> bool | None:
    """Return whether the method needs a teacher, or the schedule if the method works with and without one."""
    needs = fact(config["model"], "needs_teacher")
    return fact(config["schedule"], "needs_teacher") if needs is None else needs


def teacher(config: Config, choices: Choices) -> Problems:
    """A method has a teacher if and only if it needs one, and the teacher is available."""
    needs, given, model = needs_teacher(config), config["teacher"]["_target_"], choices.get("model")
    path, chosen = config["teacher"].get("path"), choices.get("teacher", "?")
    if needs and not given:
        fix = "add teacher=run teacher.path=FOLDER, where FOLDER is a finished run of model=teacher"
        allowed, reason = "run, edm, openai, ect, or exact with data=mixture", f"model={model} distils a teacher"
        yield problem("teacher", chosen, allowed, fix, reason=reason)
    elif given and needs is False:
        yield problem("teacher", chosen, "none", "or choose model=cd", reason=f"model={model} uses no teacher")
    elif path and (not given or _is(config, "teacher", "exact_teacher")):
        yield problem("teacher.path", path, f"null with teacher={chosen}", "did you mean teacher=run?")
    elif given and _is(config, "teacher", "run_teacher"):
        yield from wrong_checkpoint("teacher.path", path) if path else _give("teacher.path", A_RUN)
    elif given and _is(config, "teacher", "official_teacher"):
        yield from wrong_path("teacher.path", path, "a file") if path else _give("teacher.path", OFFICIAL)
    elif path:
        yield from wrong_path("teacher.path", path, "a file")
    elif given and _is(config, "teacher", "exact_teacher") and not fact(config["data"]["source"], "has_closed_form"):
        allowed, fix = f"run with data={choices.get('data')}", "or choose data=mixture or data=mixture_16d"
        yield problem("teacher", chosen, allowed, fix, reason="only mixtures have a closed-form denoiser")


def guidance(config: Config, choices: Choices) -> Problems:
    """A weaker teacher requires guidance, and guidance by classes requires classes."""
    teacher, model = config["teacher"], config["model"]
    if teacher.get("weak") is not None:
        if teacher.get("guidance") == 1:
            reason = "with teacher.guidance=1 the weaker teacher is not used"
            yield problem("teacher.weak", teacher["weak"], "null", "or set teacher.guidance, e.g. to 2", reason=reason)
        yield from wrong_checkpoint("teacher.weak", teacher["weak"])
    for key, none in (("omega", 1), ("kappa", 0), ("label_dropout", 0)):
        if model.get(key, none) != none and not config["data"]["network_classes"]:
            fix = "set data.conditional=true"
            yield problem(f"model.{key}", model[key], f"{none}", fix, reason="the network takes no classes")
    if (model.get("omega", 1), model.get("kappa", 0)) != (1, 0) and not model.get("label_dropout", 0):
        reason = "guidance calls the network without a class, which label dropout trains"
        yield problem("model.label_dropout", model.get("label_dropout"), "a number in (0, 1]", reason=reason)
    if "interval" in model and not model["interval"][0] <= model["interval"][1]:
        yield problem("model.interval", model["interval"], "two ascending times", "did you swap them?")
    if not model.get("start", 0) < model.get("stop", 1):
        yield problem("model.start", model["start"], f"less than model.stop={model.get('stop')}", "did you swap them?")


def two_times(config: Config, choices: Choices) -> Problems:
    """A method of two times has a network, a preconditioning and a sampler of two times."""
    if not config["model"].get("two_times"):
        return
    model, target = f"model={choices.get('model')}", config["network"]["_target_"]
    if target.startswith("consistency_models.") and not config["network"].get("two_times"):
        allowed = "a network with the argument two_times: small, ddpmpp, ncsnpp, adm, dit, mlp"
        reason = f"{model} calls the network with two times, and {target.rpartition('.')[2]} takes one"
        yield problem("network", choices.get("network"), allowed, "did you mean network=small?", reason=reason)
    if fact(config["sampler"], "one_time"):
        reason = f"{model} takes the level at the end of a step, which this sampler does not pass"
        yield problem("sampler", choices.get("sampler"), "flow_map, euler, heun", reason=reason)
    scalings, method = config["preconditioning"]["_target_"], config["model"]["_target_"].rpartition(".")[2]
    if method in FLOW_MAPS and scalings.startswith("consistency_models.") and not scalings.endswith(".Flow"):
        reason = f"the network of {model} predicts a velocity"
        yield problem("preconditioning", choices.get("preconditioning"), "flow", reason=reason)


def init(config: Config, choices: Choices) -> Problems:
    """The initial weights are available."""
    path, given, chosen = config["init"].get("path"), config["init"]["_target_"], choices.get("init", "?")
    if given and _is(config, "init", "weights_of_teacher") and not config["teacher"]["_target_"]:
        if needs_teacher(config) is False:
            yield problem("init", chosen, "random or run with teacher=none", "did you mean init=random?")
    elif given and _is(config, "init", "weights_of_pretrained"):
        yield from wrong_path("init.path", path, "a file") if path else _give("init.path", OFFICIAL)
    elif given and _is(config, "init", "weights_of_run"):
        yield from wrong_checkpoint("init.path", path) if path else _give("init.path", A_RUN)
    elif path:
        yield problem("init.path", path, f"null with init={chosen}", "did you mean init=run?")


def _give(key: str, what: str) -> Problems:
    yield problem(key, None, what, f"add {key}=…")


def levels(config: Config, choices: Choices) -> Problems:
    """Ranges of noise levels are not empty, and schedule and preconditioning have the same range."""
    schedule, sampler, preconditioning = config["schedule"], config["sampler"], config["preconditioning"]
    spacing = schedule.get("spacing") or {}
    for group, settings in (("schedule", schedule), ("schedule.spacing", spacing), ("sampler", sampler)):
        low, high, sigma_mid = (settings.get(key) for key in ("sigma_min", "sigma_max", "sigma_mid"))
        if low is not None and high is not None and not low < high:
            yield problem(f"{group}.sigma_min", low, f"less than {group}.sigma_max={high}", "did you swap them?")
        elif sigma_mid is not None and not (low or 0) < sigma_mid < (math.inf if high is None else high):
            yield problem(f"{group}.sigma_mid", sigma_mid, f"between sigma_min={low} and sigma_max={high}")
        if settings.get("churn_min", 0) > settings.get("churn_max", math.inf):
            allowed = f"at most {group}.churn_max={settings['churn_max']}"
            yield problem(f"{group}.churn_min", settings["churn_min"], allowed)
    transition, called = (
        config["model"].get("transition") or 0.0,
        ("sigma_mid" if "sigma_mid" in sampler else "sigma_min"),
    )
    if called in sampler and sampler[called] < transition:
        fix, reason = "choose sampler=consistency_truncated", "the model is trained on no levels below"
        allowed = f"at least model.transition={transition}"
        yield problem(f"sampler.{called}", sampler[called], allowed, fix, reason=reason)
    low, boundary = schedule.get("sigma_min"), preconditioning.get("sigma_min")
    if fact(preconditioning, "identity_at_sigma_min") and low not in (None, boundary):
        reason = "the model is the identity at the lowest level"
        yield problem("preconditioning.sigma_min", boundary, f"schedule.sigma_min={low}", "set both", reason=reason)
    if {"sigma_min", "sigma_max", "mean", "std"} <= schedule.keys() and schedule["sigma_min"] < schedule["sigma_max"]:
        ends = ((math.log(schedule[f"sigma_{end}"]) - schedule["mean"]) / schedule["std"] for end in ("min", "max"))
        below, above = (math.erf(end / math.sqrt(2)) for end in ends)
        if not above > below:
            allowed, fix = "a mean of ln σ near [ln sigma_min, ln sigma_max]", "or widen schedule.std"
            yield problem("schedule.mean", schedule["mean"], allowed, fix, reason="no level is ever drawn")


def schedule(config: Config, choices: Choices) -> Problems:
    """The schedule draws the levels that the method needs, and its stages or phases are consistent."""
    schedule, chosen, model = config["schedule"], choices.get("schedule"), choices.get("model")
    needs, levels, name = (
        fact(config["model"], "needs_levels"),
        fact(schedule, "draws"),
        schedule["_target_"].rpartition(".")[2],
    )
    if needs and levels and needs != levels:
        given = config["teacher"]["_target_"]
        nodes = [option for option in choices.options("schedule") if given or not fact(option[1], "needs_teacher")]
        fitting = [option for option, node in nodes if fact(node, "draws") == needs]
        reason = f"model={model} needs {needs}, and schedule={chosen} draws {levels}"
        fix = f"did you mean schedule={fitting[0]}?" if fitting else ""
        yield problem("schedule", chosen, ", ".join(fitting), fix, reason=reason)
    if (
        name == "ECTSchedule"
        and {"stages", "q"} <= schedule.keys()
        and schedule["stages"] * math.log2(schedule["q"]) > 20
    ):
        most = max(int(20 / math.log2(schedule["q"])), 1)
        yield problem("schedule.stages", schedule["stages"], f"at most {most} with schedule.q={schedule['q']}")
    if name == "TruncatedStudentT" and {"share", "transition"} <= schedule.keys():
        batch, transition = config["data"]["batch_size"], config["model"].get("transition")
        if schedule["share"] and schedule["share"] * batch < 1:
            allowed, reason = (
                f"at least {math.ceil(1 / schedule['share'])}",
                f"schedule.share={schedule['share']} is no row",
            )
            yield problem("data.batch_size", batch, allowed, reason=reason)
        if transition is not None and schedule["transition"] != transition:
            allowed = f"model.transition={transition}"
            yield problem("schedule.transition", schedule["transition"], allowed, "set model.transition")
    sections, top = schedule.get("sections"), schedule.get("sigma_max", math.inf)
    if sections is not None and sections & (sections - 1):
        yield problem("schedule.sections", sections, "a power of two")
    elif sections is not None and not sections < top:
        yield problem("schedule.sigma_max", top, f"more than schedule.sections={sections}")
    if not schedule.get("lowest", 0) < schedule.get("highest", 1):
        yield problem("schedule.highest", schedule["highest"], f"more than schedule.lowest={schedule.get('lowest')}")
    if name == "Phases" and {"steps", "segments"} <= schedule.keys():
        chain = [*schedule["steps"], schedule["segments"]]
        if any(a <= b or a % b for a, b in pairwise(chain)):
            allowed = f"each a multiple of the following one, and the last of model.segments={chain[-1]}"
            yield problem("model.phases", schedule["steps"], allowed)


def tangent(config: Config, choices: Choices) -> Problems:
    """A method with a tangent has supported coordinates, and an RMS norm requires a norm."""
    model = config["model"]
    if "tangent_rms" not in model:
        return
    if model.get("tangent_rms") and model["tangent_norm"] is None:
        fix = "set model.tangent_norm=0.1"
        reason = "it says how the norm is taken"
        yield problem("model.tangent_rms", True, "false with model.tangent_norm=null", fix, reason=reason)
    if config["preconditioning"]["_target_"].rpartition(".")[2] not in ("TrigFlow", "EDM"):
        reason = f"model={choices.get('model')} needs EDM's scalings, up to the sign of F"
        yield problem("preconditioning", choices.get("preconditioning"), "trigflow, edm", reason=reason)


def steps(config: Config, choices: Choices) -> Problems:
    """A model of S segments is sampled in S steps."""
    segments, wanted = config["sampler"].get("segments"), config["evaluation"]["steps"]
    if segments is not None and any(count != segments for count in wanted):
        fix = f"did you mean evaluation.steps=[{segments}]?"
        yield problem("evaluation.steps", wanted, f"[{segments}] with model.segments={segments}", fix)


def curriculum(config: Config, choices: Choices) -> Problems:
    """A growing curriculum ends above its start."""
    s0, s1 = config["curriculum"].get("s0"), config["curriculum"].get("s1")
    if None not in (s0, s1) and s0 > s1:
        yield problem("curriculum.s0", s0, f"at most curriculum.s1={s1}", "did you swap them?")


def network(config: Config, choices: Choices) -> Problems:
    """The network fits the shape of the data, its sizes can be halved, and its widths allow group normalisation."""
    network, size = config["network"], config["data"]["image_size"]
    shapes = {"image_size": "image_size", "channels": "channels", "num_classes": "network_classes"}
    for own, key in shapes.items():
        if own in network and network[own] != config["data"][key]:
            yield problem(
                f"network.{own}", network[own], f"{show(config['data'][key])}, which is data.{key}", "leave it out"
            )
            return
    if network.get("double_norm") and not network.get("adaptive_scale"):
        allowed, fix = "false with network.adaptive_scale=false", "add network.adaptive_scale=true"
        yield problem("network.double_norm", True, allowed, fix, reason="there is no scale to normalise")
    patch, width, heads = network.get("patch_size", 1), network.get("width", 1), network.get("heads") or 1
    if size % patch:
        yield problem("network.patch_size", patch, f"a divisor of data.image_size={size}", "patches tile the image")
    if width % heads or ("patch_size" in network and width % 4):
        reason = "heads share the width, and positions take a quarter of it for each of sine and cosine"
        yield problem("network.width", width, f"a multiple of 4 and of network.heads={heads}", reason=reason)
    multipliers, base = network.get("channel_mult"), network.get("model_channels")
    if not multipliers or not base or size not in fact(config["data"]["source"], "image_size", (size,)):
        return
    factor = 2 ** (len(multipliers) - 1)
    if size % factor:
        reason = f"network={choices.get('network')} has {len(multipliers)} levels"
        fewer = next((n for n in range(len(multipliers), 0, -1) if size % 2 ** (n - 1) == 0), 1)
        fix = f"did you mean network.channel_mult={multipliers[:fewer]}?".replace(" [", "[").replace(", ", ",")
        fix += "" if size > 1 else " For points: network=mlp"
        yield problem("data.image_size", size, f"a multiple of {factor}", fix, reason=reason)
    widths = [base * multiplier for multiplier in multipliers]
    sums = {base, *widths, *(2 * width for width in widths)}
    sums |= {a + b for a, b in pairwise(widths)} | {base + widths[0]}
    if fact(network, "norm_groups"):
        bad = [width for width in sums if width < 4 or width % min(32, width // 4)]
        if bad:
            reason = f"a layer of {min(bad)} channels cannot be normalised in groups; multiples of 32 can"
            yield problem("network.model_channels", base, "a multiple of 32", reason=reason)


def data(config: Config, choices: Choices) -> Problems:
    """The data exist, and the settings match the data set."""
    data, source, name = config["data"], config["data"]["source"], choices.get("data")
    if "root" in source:
        if source["root"] is not None:
            yield from wrong_path("data.root", source["root"], "a folder, or an archive,")
        elif "download" not in source:
            yield problem("data.root", None, "a folder or a zip of images", "it must be given: data.root=…")
        elif source.get("cache_dir") is None:
            fix = "or set data.root; null stores no files"
            yield problem("data.source.cache_dir", None, "a folder for the downloaded files", fix)
    elif data["root"] is not None:
        yield problem("data.root", data["root"], "null", "leave data.root out", reason=f"data={name} reads no files")
    for key in ("image_size", "channels", "num_classes"):
        allowed = fact(source, key, ())
        if allowed and data[key] not in allowed:
            choice = " or ".join(map(str, allowed))
            yield problem(
                f"data.{key}", data[key], f"{choice} with data={name}", f"did you mean data.{key}={allowed[0]}?"
            )
    if data["conditional"] and not data["num_classes"]:
        fix = "set data.num_classes" if data["num_classes"] is None else "set data.conditional=false"
        yield problem("data.conditional", True, f"false with data.num_classes={data['num_classes'] or 'null'}", fix)
    if config["augment"].get("flip") and not data["flip"]:
        yield problem("augment.flip", True, "false", "or set data.flip=true", reason=f"data={name} is not mirrored")
    if data.get("overfit_steps") and fact(source, "has_closed_form"):
        reason = f"data={name} draws fresh points in every step"
        yield problem("data.overfit_steps", data["overfit_steps"], "0", reason=reason)


def augment(config: Config, choices: Choices) -> Problems:
    """The network takes all augmentation labels."""
    augment, width = config["augment"], config["network"].get("augment_dim", 0)
    if augment.get("_target_") and (widths := fact(augment, "LABELS")):
        labels = sum(width for name, width in widths.items() if augment.get(name, 0) > 0)
        colours, channels = fact(augment, "COLOURS", ()), config["data"]["channels"]
        for name in colours if channels not in (1, 3) else ():
            if augment.get(name, 0) > 0:
                reason = f"data={choices.get('data')} has {channels} channels; colours need 3 or 1"
                yield problem(f"augment.{name}", augment[name], "0", reason=reason)
        if not labels:
            yield problem("augment", choices.get("augment"), "one transformation or more above 0, or augment=none")
        elif width != labels:
            allowed = f"{labels}, the labels of augment={choices.get('augment')}"
            yield problem("network.augment_dim", width, allowed, f"did you mean network.augment_dim={labels}?")


def features(config: Config, choices: Choices) -> Problems:
    """Feature space and distance fit the images."""
    data, chosen, extractor = config["data"], choices.get("features"), config["features"].get("extractor") or {}
    reference, package = config["features"].get("reference"), fact(extractor, "needs_package")
    if fact(extractor, "needs_classes") and data["num_classes"] == 0:
        fix = "did you mean features=identity?"
        yield problem("features", chosen, "identity", fix, reason="there are no classes to learn")
    if fact(extractor, "needs_images") and not data["clamp"]:
        allowed, fix = f"identity with data={choices.get('data')}", "did you mean features=identity?"
        yield problem("features", chosen, allowed, fix, reason="points are no images")
    if fact(extractor, "needs_images") and data["channels"] not in (1, 3):
        yield problem("features", chosen, f"classifier or identity with {data['channels']} channels")
    if package and importlib.util.find_spec(package) is None:
        reason = f"the package {package} is not installed"
        fix = "install it with pip install 'consistency-models[features]'"
        yield problem("features", chosen, "another feature space", fix, reason=reason)
    if extractor.get("weights"):
        yield from wrong_path("features.extractor.weights", extractor["weights"], "a file of weights")
    if reference not in (None, "train", "test"):
        yield from wrong_path("features.reference", reference, "train, test, or an npz file")
    if fact(config["loss"], "needs_rgb"):
        if data["channels"] != 3:
            allowed = f"l1, l2, pseudo_huber with {data['channels']} channels"
            fix, reason = "did you mean loss=l2?", "LPIPS compares RGB images"
            yield problem("loss", choices.get("loss"), allowed, fix, reason=reason)
        if config["loss"].get("weights"):
            yield from wrong_path("loss.weights", config["loss"]["weights"], "torchvision's vgg16-397923af.pth, a file")


def trainer(config: Config, choices: Choices) -> Problems:
    """The batch is divisible into micro-batches, and the strategy supports the devices."""
    trainer, batch = config["trainer"], config["data"]["batch_size"]
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else devices
    if trainer["strategy"] == "auto" and (trainer["num_nodes"] > 1 or (count != 1 and count != "auto")):
        key = "num_nodes" if count == 1 else "devices"
        yield problem(f"trainer.{key}", trainer[key], "1 with trainer.strategy=auto", "add trainer=ddp to use more")
    if trainer["accelerator"] == "mps" and count not in (1, "auto"):
        yield problem("trainer.devices", devices, "1 with trainer.accelerator=mps")
    micro_batches = trainer["accumulate_grad_batches"]
    parts = trainer["num_nodes"] * (micro_batches if micro_batches != "auto" else 1) * (count if count != "auto" else 1)
    if batch % parts:
        reason = "devices x nodes x trainer.accumulate_grad_batches micro-batches share a batch evenly"
        fix = f"did you mean data.batch_size={max(round(batch / parts), 1) * parts}?"
        yield problem("data.batch_size", batch, f"a multiple of {parts}", fix, reason=reason)
    group = config["model"].get("group", 1)
    if batch % parts == 0 and batch // parts % group:
        reason = f"a micro-batch has {batch // parts} images, and groups of model.group={group} are not divided"
        yield problem("data.batch_size", batch, f"a multiple of {parts * group}", reason=reason)
    if trainer["max_images"] is not None and trainer["max_images"] < batch:
        allowed, reason = f"at least data.batch_size={batch}", "a step takes one batch"
        yield problem("trainer.max_images", trainer["max_images"], allowed, reason=reason)


def outputs(config: Config, choices: Choices) -> Problems:
    """The command trains or tests, and callbacks have the callbacks that they need."""
    if not config["train"] and not config["test"]:
        yield problem("train", False, "true, unless test=true", reason="there is nothing to do")
    elif not config["train"] and config["ckpt_path"] is None:
        reason = "with train=false there is no trained model to score"
        yield problem("ckpt_path", None, "a run folder or a checkpoint file", reason=reason)
    callbacks = config.get("callbacks") or {}
    for name in dict.fromkeys(need for node in callbacks.values() for need in fact(node, "needs_callbacks", ())):
        left = [other for other, node in callbacks.items() if node and name in fact(node, "needs_callbacks", ())]
        if not callbacks.get(name):
            off = " and ".join(f"callbacks.{other}=null" for other in left)
            yield problem(f"callbacks.{name}", None, f"null only with {off}", reason="they use it")
    saves = callbacks.get("checkpoint") or {}
    if saves.get("keep") is not None and saves.get("keep_every") is None:
        allowed, fix = "null with callbacks.checkpoint.keep_every=null", "also set keep_every"
        reason = "keep counts the numbered checkpoints"
        yield problem("callbacks.checkpoint.keep", saves["keep"], allowed, fix, reason=reason)
    if config["logger"]["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
        fix = "install it with pip install 'consistency-models[tensorboard]'"
        reason = "the package tensorboard is not installed"
        yield problem("logger.tensorboard", True, "false", fix, reason=reason)


def solver(config: Config, choices: Choices) -> Problems:
    """A chosen solver is used."""
    if choices.get("solver") not in (None, "heun") and "solver" not in config["model"]:
        reason = f"model={choices.get('model')} solves no ODE in training"
        yield problem("solver", choices["solver"], "heun", "leave solver out", reason=reason)


def checkpoint(config: Config, choices: Choices) -> Problems:
    """The checkpoint exists, and no checkpoint in the run folder would be overwritten."""
    path, folder = config["ckpt_path"], Path(choices["run folder"])
    if path is not None:
        if path == "last" or (Path(path).expanduser().is_dir() and Path(path).resolve() != folder.resolve()):
            reason = "last and FOLDER resume one run, on the command line only"
            yield problem("ckpt_path", path, "a checkpoint file", reason=reason)
        elif not Path(path).is_dir():
            yield from wrong_checkpoint("ckpt_path", path)
    goes_on = choices["goes on"] == "true" or (path is not None and Path(path).resolve() == folder.resolve())
    saved = ((config.get("callbacks") or {}).get("checkpoint") or {}).get("folder")
    if saved is not None and Path(saved).resolve() != (folder / "checkpoints").resolve():
        allowed, fix = f"{folder}/checkpoints", "choose the run folder by paths.runs or hydra.run.dir"
        reason = "a resumed or scored run is searched in its run folder"
        yield problem("callbacks.checkpoint.folder", saved, allowed, fix, reason=reason)
    parent = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = f"{parent} is {'not writable' if parent.is_dir() else 'a file'}"
        fix = "choose another by paths.runs or hydra.run.dir"
        yield problem("run folder", folder, "a folder that can be created", fix, Exit.STORAGE, reason=reason)
    if has_checkpoint(folder) and not goes_on:
        fix = f"resume it by {pasteable('ckpt_path', folder)}, or choose another folder"
        reason = "its checkpoints would be overwritten"
        yield problem("run folder", folder, "a folder without checkpoints", fix, reason=reason)


def scored_run(config: Config, choices: Choices) -> Problems:
    """The run or checkpoint can be scored; official files and exports require a data set."""
    path = Path(config["run"]).expanduser()
    if config["run"].startswith("wandb:"):
        fix = f"wandb artifact get {config['run'].removeprefix('wandb:')} fetches it"
        yield problem("run", config["run"], "a run folder or a checkpoint file, on this machine", fix)
        return
    if path.suffix not in (".pkl", ".pt", ".safetensors") and not (path / "model.safetensors").is_file():
        yield from wrong_checkpoint("run", config["run"])
        return
    yield from wrong_path("run", config["run"], "a run folder, a checkpoint file, an official file or an export")
    if choices.get("task", "evaluate") not in ("evaluate", "search"):
        return
    reason = "official checkpoints and exports name neither data nor features"
    for group, add in (("data", "data=cifar10 data.root=FOLDER"), ("features", "features=classifier")):
        if group not in config:
            yield problem(group, None, f"an option of {group}", f"add {add}", reason=reason)


def sample_sets(config: Config, choices: Choices) -> Problems:
    """Images are given by seeds, or by n and repeats; all sample sets have the same size."""
    seeds, task = config["seeds"], choices.get("task")
    if seeds is not None:
        for key, usual in (("n", None), ("repeats", 1)):
            if config[key] != usual:
                reason = f"seeds={show(seeds)} already sets the number of images"
                yield problem(key, config[key], show(usual), reason=reason)
        ends = [tuple(map(int, each.split("-"))) for each in (seeds if isinstance(seeds, list) else [seeds])]
        if len({last - first for first, last in ends}) > 1:
            reason = "metrics of different numbers of images cannot be compared"
            yield problem("seeds", seeds, "ranges of one size", reason=reason)
        if task == "sample" and len(ends) > 1:
            yield problem("seeds", seeds, "one range with task=sample")
    if task == "sample" and config["repeats"] > 1:
        yield problem("repeats", config["repeats"], "1 with task=sample", "set n")


def ways(config: Config, choices: Choices) -> Problems:
    """Steps and levels are consistent, the sampler can be built, and there are enough devices."""
    steps, sigmas, sampler = config["steps"], config["sigmas"], config.get("sampler") or {}
    if sigmas is not None and steps not in (None, [len(sigmas)]):
        reason = f"sigmas={show(sigmas)} are {len(sigmas)} steps"
        yield problem("steps", steps, "null", "leave steps out", reason=reason)
    if choices.get("task") in ("sample", "search") and steps is not None and len(steps) > 1:
        yield problem("steps", steps, f"one step count with task={choices['task']}")
    if choices.get("task") == "search":
        if sigmas is not None:
            yield problem("sigmas", sigmas, "null", reason="task=search looks for them")
        if steps == [1]:
            reason = "task=search needs a second level, which one step does not have"
            yield problem("steps", steps, "a step count from 2", reason=reason)
    low, high = sampler.get("sigma_min"), sampler.get("sigma_max")
    if low is not None and high is not None and not low < high:
        yield problem("sampler.sigma_min", low, f"less than sampler.sigma_max={high}", "did you swap them?")
    elif "sigma_mid" in sampler and not low < sampler["sigma_mid"] < high:
        yield problem("sampler.sigma_mid", sampler["sigma_mid"], f"between sigma_min={low} and sigma_max={high}")
    if config["devices"] > 1 and config["device"] not in ("auto", "cpu", "cuda"):
        yield problem(
            "devices", config["devices"], f"1 with device={config['device']}", "or device=cuda, for the first"
        )


TRAIN = (
    *(teacher, guidance, two_times, init, levels, schedule, tangent, steps, curriculum, network, data, augment),
    *(features, trainer, outputs, solver, checkpoint),
)
EVAL = (scored_run, sample_sets, ways)
