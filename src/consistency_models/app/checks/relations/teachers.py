"""A teacher, its guidance, and initial weights."""

from __future__ import annotations

from functools import partial

from consistency_models.app.checks.files import wrong_checkpoint, wrong_path, wrong_pipeline
from consistency_models.app.checks.problems import problem
from consistency_models.app.checks.relations.choices import Choices, Config, Problems
from consistency_models.app.checks.targets import fact
from consistency_models.errors import show

__all__ = ["guidance", "init", "needs_teacher", "teacher"]

FILES = {
    "a run": "a finished run: its folder or a checkpoint file",
    "an official file": "an official checkpoint, a file",
    "a pipeline": "a folder of a diffusers pipeline",
}


def needs_teacher(config: Config) -> bool | None:
    """Return whether the method needs a teacher, or the schedule if the method works with and without one."""
    needs = fact(config["model"], "needs_teacher")
    return fact(config["schedule"], "needs_teacher") if needs is None else needs


def teacher(config: Config, choices: Choices) -> Problems:
    """A method has a teacher if and only if it needs one, and the teacher is available."""
    needs, given, model = needs_teacher(config), config["teacher"]["_target_"], choices.get("model")
    path, chosen = config["teacher"].get("path"), choices.get("teacher", "?")
    reads = fact(config["teacher"], "reads", "a file")
    if needs and not given:
        fix = "add teacher=run teacher.path=FOLDER, where FOLDER is a finished run of model=teacher"
        allowed = "run, diffusers, edm, openai, ect, or exact with data=mixture"
        reason = f"model={model} distils a teacher"
        yield problem("teacher", chosen, allowed, fix, reason=reason)
    elif given and needs is False:
        yield problem("teacher", chosen, "none", "or choose model=cd", reason=f"model={model} uses no teacher")
    elif path and (not given or reads is None):
        yield problem("teacher.path", path, f"null with teacher={chosen}", "did you mean teacher=run?")
    elif fact(config["teacher"], "needs_closed_form") and not fact(config["data"]["source"], "has_closed_form"):
        allowed, fix = f"run with data={choices.get('data')}", "or choose data=mixture or data=mixture_16d"
        yield problem("teacher", chosen, allowed, fix, reason="only mixtures have a closed-form denoiser")
    elif given and reads:
        yield from _wrong_file("teacher.path", path, reads)


def guidance(config: Config, choices: Choices) -> Problems:
    """A weaker teacher and an interval require guidance, and guidance by classes requires classes."""
    teacher, model = config["teacher"], config["model"]
    interval = teacher.get("interval")
    if interval is not None and teacher.get("guidance") == 1:
        reason = "with teacher.guidance=1 no level has guidance"
        yield problem("teacher.interval", interval, "null", "or set teacher.guidance, e.g. to 2", reason=reason)
    elif interval is not None and not interval[0] <= interval[1]:
        yield problem("teacher.interval", interval, "two ascending levels", "did you swap them?")
    if teacher.get("weak") is not None:
        if teacher.get("guidance") == 1:
            reason = "with teacher.guidance=1 the weaker teacher is not used"
            yield problem("teacher.weak", teacher["weak"], "null", "or set teacher.guidance, e.g. to 2", reason=reason)
        yield from wrong_checkpoint("teacher.weak", teacher["weak"])
    takes_text = fact(config["network"], "needs_package") and fact(config["data"]["source"], "is_latent")
    needs_classes = [("model", "omega", 1), ("model", "kappa", 0), ("model", "cfg_scale", 1)]
    needs_classes += [(group, "label_dropout", 0) for group in ("model", "network")]
    for group, key, none in needs_classes:
        value = config[group].get(key, none)
        if value != none and not config["data"]["network_classes"] and not takes_text:
            fix = "set data.conditional=true"
            yield problem(f"{group}.{key}", value, f"{none}", fix, reason="the network takes no classes")
    given = model.get("guidance_input")
    if given is not None and not config["data"]["network_classes"] and teacher.get("weak") is None:
        allowed, reason = "null", "the network takes no classes"
        yield problem("model.guidance_input", given, allowed, "set data.conditional=true", reason=reason)
    guided = given is not None or (model.get("omega", 1), model.get("kappa", 0)) != (1, 0)
    if given is not None and fact(model, "needs_teacher") and teacher.get("guidance") is not None:
        reason = f"model.guidance_input={given} draws the guidance of each image"
        yield problem("teacher.guidance", teacher["guidance"], "null", reason=reason)
    drawn, fixed = config["data"].get("guidance_w"), teacher.get("guidance")
    if drawn is not None and teacher["_target_"] and fixed is not None:
        own = "model.guidance_w=null model.w_embedding=null" if "guidance_w" in model else "data.guidance_w=null"
        reason = f"data.guidance_w={show(drawn)} draws w of each caption, which a fixed guidance ignores"
        yield problem("teacher.guidance", fixed, "null", f"add {own}, or set teacher.guidance=null", reason=reason)
    reason, allowed = "guidance calls the network without a class, which label dropout trains", "a number in (0, 1]"
    if guided and "label_dropout" in model and not model["label_dropout"]:
        yield problem("model.label_dropout", model.get("label_dropout"), allowed, reason=reason)
    if model.get("cfg_scale", 1) != 1 and not config["network"].get("label_dropout"):
        yield problem("network.label_dropout", config["network"].get("label_dropout", 0), allowed, reason=reason)


def init(config: Config, choices: Choices) -> Problems:
    """The initial weights are available."""
    path, given, chosen = config["init"].get("path"), config["init"]["_target_"], choices.get("init", "?")
    reads = fact(config["init"], "reads", "a file")
    if given and fact(config["init"], "needs_teacher") and not config["teacher"]["_target_"]:
        if needs_teacher(config) is False:
            yield problem("init", chosen, "random or run with teacher=none", "did you mean init=random?")
    elif path and (not given or reads is None):
        yield problem("init.path", path, f"null with init={chosen}", "did you mean init=run?")
    elif given and reads:
        yield from _wrong_file("init.path", path, reads)


def _wrong_file(key: str, path: str | None, reads: str) -> Problems:
    """The problem of the file of a teacher or of initial weights.

    Args:
        key: of the path.
        path: the value of the key.
        reads: "a run", "an official file", "a pipeline", or "a file" that may be left out.
    """
    if not path and reads in FILES:
        yield problem(key, None, FILES[reads], f"add {key}=…")
    elif path:
        kinds = {"a run": wrong_checkpoint, "a pipeline": wrong_pipeline}
        yield from kinds.get(reads, partial(wrong_path, what="a file"))(key, path)
