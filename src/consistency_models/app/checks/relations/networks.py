"""The network and the method that trains it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import pairwise

from consistency_models.app.checks.problems import problem
from consistency_models.app.checks.relations.choices import Choices, Config, Problems
from consistency_models.app.checks.targets import fact
from consistency_models.errors import show
from consistency_models.files import is_pipeline

__all__ = ["method", "network", "text", "two_times"]


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
    if fact(network, "norm_groups") and (bad := _without_groups(base, multipliers)):
        possible = (n for n in range(max(4, base - 32), base + 33) if not _without_groups(n, multipliers))
        fix = f"did you mean network.model_channels={min(possible, key=lambda n: abs(n - base))}?"
        reason = f"a layer of {min(bad)} channels cannot be normalised in groups"
        allowed = "a multiple of 32, or another number whose layers can"
        yield problem("network.model_channels", base, allowed, fix, reason=reason)


def _without_groups(base: int, multipliers: Sequence[int]) -> list[int]:
    """The widths of layers of a U-Net that `layers.group_norm` cannot divide into groups."""
    widths = [base * multiplier for multiplier in multipliers]
    sums = {base, *widths, *(2 * width for width in widths), *map(sum, pairwise(widths)), base + widths[0]}
    return [width for width in sums if width < 4 or width % min(32, width // 4)]


def text(config: Config, choices: Choices) -> Problems:
    """A U-Net of diffusers has a folder that describes it, and w of each caption is drawn if it is an input."""
    network = config["network"]
    parts = [("network", network), ("network", network.get("lora") or {}), ("teacher", config["teacher"])]
    for group, part in parts:
        package = fact(part, "needs_package")
        if package and importlib.util.find_spec(package) is None:
            fix = 'install it with pip install -e ".[latent]"'
            yield problem(group, choices.get(group), "another", fix, reason=f"the package {package} is not installed")
            return
    reported = fact(config["teacher"], "reads") == "a pipeline"  # a wrong path is reported as such
    if fact(network, "starts_at_zero") and network.get("config") is None and not reported:
        paths = (config[group].get("path") for group in ("teacher", "init") if config[group]["_target_"])
        if not any(path and is_pipeline(path) for path in paths):
            allowed, fix = "the content of unet/config.json", "add teacher=diffusers teacher.path=FOLDER"
            reason = "neither teacher.path nor init.path is a folder of a diffusers pipeline"
            yield problem("network.config", None, allowed, fix, reason=reason)
    if network.get("lora"):
        if not config["teacher"]["_target_"]:
            fix, reason = "add teacher=diffusers teacher.path=FOLDER", "adapters share the weights of the teacher"
            yield problem("teacher", choices.get("teacher"), "diffusers, run", fix, reason=reason)
        if network.get("time_cond_proj_dim") or network.get("two_times"):
            key = "time_cond_proj_dim" if network.get("time_cond_proj_dim") else "two_times"
            reason = "adapters share the weights of the teacher, which has no such input"
            fix = "add model.w_embedding=null" if key == "time_cond_proj_dim" else ""
            yield problem(f"network.{key}", network[key], "null or false with network.lora", fix, reason=reason)
        if config["trainer"]["strategy"] == "fsdp":
            reason = "weights that are shared with the teacher cannot be divided"
            yield problem("trainer.strategy", "fsdp", "auto, ddp with network.lora", reason=reason)
    if network.get("time_cond_proj_dim") and config["data"].get("guidance_w") is None:
        fix = "add data.guidance_w=[LOW,HIGH], w = guidance - 1 of a pipeline: LCM has [5,15] for SD, [3,15] for SDXL"
        reason = "network.time_cond_proj_dim makes w of each caption an input"
        yield problem("data.guidance_w", None, "two numbers", fix, reason=reason)


def two_times(config: Config, choices: Choices) -> Problems:
    """A method of two times has a network and a sampler of two times, and a method of one time a sampler of one."""
    model, target = f"model={choices.get('model')}", config["network"]["_target_"]
    if not config["model"].get("two_times"):
        if fact(config["model"], "needs_two_times"):
            yield problem("model.two_times", False, "true", reason=f"{model} calls the network with two times")
        elif fact(config["sampler"], "needs_two_times") and target.startswith("consistency_models."):
            options = [name for name, node in choices.options("sampler") if not fact(node, "needs_two_times")]
            reason = f"it calls the network with two times, and {model} has a network of one"
            fix = f"did you mean sampler={options[0]}?" if options else ""
            yield problem("sampler", choices.get("sampler"), ", ".join(options), fix, reason=reason)
        return
    if target.startswith("consistency_models.") and not config["network"].get("two_times"):
        allowed = "a network with the argument two_times: small, ddpmpp, ncsnpp, adm, edm2, dit, mlp"
        reason = f"{model} calls the network with two times, and {target.rpartition('.')[2]} takes one"
        yield problem("network", choices.get("network"), allowed, "did you mean network=small?", reason=reason)
    if fact(config["sampler"], "one_time"):
        reason = f"{model} takes the level at the end of a step, which this sampler does not pass"
        yield problem("sampler", choices.get("sampler"), "flow_map, euler, heun", reason=reason)


def method(config: Config, choices: Choices) -> Problems:
    """A target network is used, an RMS norm has a norm, ranges are ascending, and a second output is trained."""
    model, outputs = config["model"], config["network"].get("outputs", 1)
    most = 2 if fact(model, "second_head") and model.get("own_velocity", True) else 1
    if outputs > most:
        fix, reason = "choose model=imf", f"model={choices.get('model')} does not train a further output"
        yield problem("network.outputs", outputs, "1 or 2" if most == 2 else "1", fix, reason=reason)
    if model.get("target_ema") is not None and not fact(model, "has_target_network", True):
        reason = f"model={choices.get('model')} has no target network"
        yield problem("model.target_ema", "a decay", "null", reason=reason)
    if model.get("tangent_rms") and model.get("tangent_norm") is None:
        fix = "set model.tangent_norm=0.1"
        reason = "it says how the norm is taken"
        yield problem("model.tangent_rms", True, "false with model.tangent_norm=null", fix, reason=reason)
    if "interval" in model and not model["interval"][0] <= model["interval"][1]:
        yield problem("model.interval", model["interval"], "two ascending times", "did you swap them?")
    if not model.get("start", 0) < model.get("stop", 1):
        yield problem("model.start", model["start"], f"less than model.stop={model.get('stop')}", "did you swap them?")
