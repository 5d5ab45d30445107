"""Noise levels: of the schedule, the curriculum, the preconditioning and the sampler."""

from __future__ import annotations

import math
from itertools import pairwise

from consistency_models.app.checks.problems import problem
from consistency_models.app.checks.relations.choices import Choices, Config, Problems
from consistency_models.app.checks.targets import fact

__all__ = ["curriculum", "levels", "preconditioning", "ranges", "schedule", "steps", "table"]


def ranges(config: Config, choices: Choices) -> Problems:
    """Ranges of noise levels are not empty."""
    schedule, sampler = (config.get(group) or {} for group in ("schedule", "sampler"))
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


def levels(config: Config, choices: Choices) -> Problems:
    """The model is trained on the levels of the sampler, and schedule and preconditioning have the same range."""
    schedule, sampler, preconditioning = config["schedule"], config["sampler"], config["preconditioning"]
    transition = config["model"].get("transition") or 0.0
    called = "sigma_mid" if "sigma_mid" in sampler else "sigma_min"
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


def table(config: Config, choices: Choices) -> Problems:
    """A schedule or sampler on the levels of a table has scalings with a table."""
    for group in ("schedule", "sampler"):
        scalings = config[group].get("scalings")
        if scalings is not None and not fact(scalings, "has_table"):
            chosen, fix = choices.get("preconditioning"), f"or choose another {group}"
            names = [option for option, node in choices.options("preconditioning") if fact(node, "has_table")]
            reason = f"{group}={choices.get(group)} takes its levels from a table"
            yield problem("preconditioning", chosen, ", ".join(names), fix, reason=reason)
            return


def schedule(config: Config, choices: Choices) -> Problems:
    """The schedule draws the levels that the method needs, and its stages or phases are consistent."""
    schedule, chosen, model = config["schedule"], choices.get("schedule"), choices.get("model")
    needs, levels = fact(config["model"], "needs_levels"), fact(schedule, "draws")
    if needs and levels and needs != levels:
        given = config["teacher"]["_target_"]
        nodes = [option for option in choices.options("schedule") if given or not fact(option[1], "needs_teacher")]
        fitting = [option for option, node in nodes if fact(node, "draws") == needs]
        reason = f"model={model} needs {needs}, and schedule={chosen} draws {levels}"
        fix = f"did you mean schedule={fitting[0]}?" if fitting else ""
        yield problem("schedule", chosen, ", ".join(fitting), fix, reason=reason)
    halvings = fact(schedule, "MOST_HALVINGS", math.inf)
    if {"stages", "q"} <= schedule.keys() and schedule["stages"] * math.log2(schedule["q"]) > halvings:
        most = max(int(halvings / math.log2(schedule["q"])), 1)
        yield problem("schedule.stages", schedule["stages"], f"at most {most} with schedule.q={schedule['q']}")
    if levels == "levels above a transition" and {"share", "transition"} <= schedule.keys():
        batch, transition = config["data"]["batch_size"], config["model"].get("transition")
        if schedule["share"] and schedule["share"] * batch < 1:
            allowed = f"at least {math.ceil(1 / schedule['share'])}"
            reason = f"schedule.share={schedule['share']} is no row"
            yield problem("data.batch_size", batch, allowed, reason=reason)
        if transition is not None and schedule["transition"] != transition:
            allowed = f"model.transition={transition}"
            yield problem("schedule.transition", schedule["transition"], allowed, "set model.transition")
        if schedule.get("sigma_min", math.inf) < schedule["transition"]:
            allowed, reason = f"at least schedule.transition={schedule['transition']}", "the first stage is used below"
            yield problem("schedule.sigma_min", schedule["sigma_min"], allowed, reason=reason)
        if schedule["share"] and schedule["transition"] == 0:
            reason = "there is no level below schedule.transition=0"
            yield problem("schedule.share", schedule["share"], "0", "or set model.transition", reason=reason)
    sections, top = schedule.get("sections"), schedule.get("sigma_max", math.inf)
    if levels == "steps of lengths 2^-j" and sections and schedule.get("share"):
        lengths = sections.bit_length() - 1
        if int(schedule["share"] * config["data"]["batch_size"]) < lengths:
            allowed = f"at least {math.ceil(lengths / schedule['share'])}, or a larger schedule.share"
            reason = f"schedule.share={schedule['share']} has no row for each of the {lengths} lengths of a step"
            yield problem("data.batch_size", config["data"]["batch_size"], allowed, reason=reason)
    if sections is not None and not sections < top:
        yield problem("schedule.sigma_max", top, f"more than schedule.sections={sections}")
    if "highest" in schedule and not schedule.get("lowest", 0) < schedule["highest"]:
        yield problem("schedule.highest", schedule["highest"], f"more than schedule.lowest={schedule.get('lowest')}")
    if fact(schedule, "multiples") and {"steps", "segments"} <= schedule.keys():
        chain = [*schedule["steps"], schedule["segments"]]
        if any(a <= b or a % b for a, b in pairwise(chain)):
            allowed = f"each a multiple of the following one, and the last of model.segments={chain[-1]}"
            yield problem("model.phases", schedule["steps"], allowed)


def curriculum(config: Config, choices: Choices) -> Problems:
    """A chosen curriculum is used, and a growing one ends above its start."""
    typed = [key for key in choices.typed if key.partition(".")[0] == "curriculum"]
    uses = (config["schedule"], config["model"].get("target_ema") or {})
    if typed and not any("curriculum" in each for each in uses):
        reason = f"schedule={choices.get('schedule')} has no number of levels N"
        yield problem(typed[0], choices.get("curriculum"), "left out", reason=reason)
    s0, s1 = config["curriculum"].get("s0"), config["curriculum"].get("s1")
    if None not in (s0, s1) and s0 > s1:
        yield problem("curriculum.s0", s0, f"at most curriculum.s1={s1}", "did you swap them?")


def preconditioning(config: Config, choices: Choices) -> Problems:
    """The network predicts what the method needs."""
    needs, given = fact(config["model"], "needs_network_of"), fact(config["preconditioning"], "predicts")
    if needs and given and needs != given:
        fitting = [option for option, node in choices.options("preconditioning") if fact(node, "predicts") == needs]
        reason = f"the network of model={choices.get('model')} predicts {needs}"
        yield problem("preconditioning", choices.get("preconditioning"), ", ".join(fitting), reason=reason)


def steps(config: Config, choices: Choices) -> Problems:
    """A model of S segments is sampled in S steps, and LCM's sampler chooses among the levels of the training."""
    segments, wanted = config["sampler"].get("segments"), config["evaluation"]["steps"]
    if segments is not None and any(count != segments for count in wanted):
        fix = f"did you mean evaluation.steps=[{segments}]?"
        yield problem("evaluation.steps", wanted, f"[{segments}] with model.segments={segments}", fix)
    levels = config["sampler"].get("original_steps")
    if levels is not None and max(wanted) > levels:
        yield problem("evaluation.steps", wanted, f"at most {levels}, which is sampler.original_steps")
