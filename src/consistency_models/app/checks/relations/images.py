"""The data, augmentation, feature spaces and distances of images."""

from __future__ import annotations

import importlib.util

from consistency_models.app.checks.files import wrong_path
from consistency_models.app.checks.problems import problem
from consistency_models.app.checks.relations.choices import Choices, Config, Problems
from consistency_models.app.checks.targets import fact

__all__ = ["augment", "data", "features"]


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
    elif data["root"] is not None and source.get("_target_", "").startswith("consistency_models."):
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
    if fact(source, "is_latent"):
        if data["flip"]:
            reason = "a flipped latent is not the latent of the flipped image"
            yield problem("data.flip", True, "false", "encode flipped copies of the images", reason=reason)
        if config["augment"].get("_target_"):
            reason = "augmentations are defined for images, not for latents"
            yield problem("augment", choices.get("augment"), "none", "did you mean augment=none?", reason=reason)
    elif any(data.get(key) for key in ("guidance_w", "caption_dropout")):
        key = next(key for key in ("guidance_w", "caption_dropout") if data.get(key))
        yield problem(f"data.{key}", data[key], f"nothing with data={name}", reason="the images have no captions")
    if config["augment"].get("flip") and not data["flip"]:
        yield problem("augment.flip", True, "false", "or set data.flip=true", reason=f"data={name} is not mirrored")
    if data.get("overfit_steps") and fact(source, "has_closed_form"):
        reason = f"data={name} draws fresh points in every step"
        yield problem("data.overfit_steps", data["overfit_steps"], "0", reason=reason)


def augment(config: Config, choices: Choices) -> Problems:
    """The network takes all augmentation labels, and the inputs of its guidance behind them."""
    augment, width = config["augment"], config["network"].get("augment_dim", 0)
    given = config["model"].get("guidance_input")
    guidance = 0 if given is None else fact(config["model"], "guidance_inputs", 0)
    inputs = config["sampler"].get("inputs")
    if inputs is not None and len(inputs) != width:
        allowed = f"null or {width} numbers, which is network.augment_dim"
        yield problem("sampler.inputs", inputs, allowed, reason="they are inputs of the network")
    if guidance and not augment.get("_target_") and width != guidance:
        reason = f"the number of inputs of the guidance with model.guidance_input={given}"
        yield problem("network.augment_dim", width, f"{guidance}", reason=reason)
    if augment.get("_target_") and (widths := fact(augment, "LABELS")):
        labels = guidance + sum(width for name, width in widths.items() if augment.get(name, 0) > 0)
        colours, channels = fact(augment, "COLOURS", ()), config["data"]["channels"]
        for name in colours if channels not in (1, 3) else ():
            if augment.get(name, 0) > 0:
                reason = f"data={choices.get('data')} has {channels} channels; colours need 3 or 1"
                yield problem(f"augment.{name}", augment[name], "0", reason=reason)
        if labels == guidance:
            yield problem("augment", choices.get("augment"), "one transformation or more above 0, or augment=none")
        elif width != labels:
            more = f" and {guidance}" if guidance else ""
            allowed = f"{labels}, the labels of augment={choices.get('augment')}{more}"
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
    if fact(data["source"], "is_latent") and fact(extractor, "needs_classes"):
        fix = "did you mean features=identity?"
        yield problem("features", chosen, "identity with data=latents", fix, reason="latents are no images")
    if fact(extractor, "needs_images") and data["channels"] not in (1, 3):
        yield problem("features", chosen, f"classifier or identity with {data['channels']} channels")
    if package and importlib.util.find_spec(package) is None:
        reason = f"the package {package} is not installed"
        fix = 'install it with pip install -e ".[features]"'
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
