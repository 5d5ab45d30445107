"""Images from a trained model: the same images whatever the batch, the number of processes and the order.

The noise of image k is a function of (seed, k) alone, so images 0-63 of a run of 50,000 are those of a run of 64.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from consistency_models.editing import edit, grid_of
from consistency_models.random import seed_of

__all__ = ["Generator", "build_model", "checkpoint_file", "instantiate", "load"]


class Generator:
    """A model with its sampler: `.sample(n, steps=1)` gives images.

    Args:
        model: preconditioned network, `model(x, sigma, labels) -> denoised`.
        shape: (C, H, W) of one image.
        make_sampler: `make_sampler(steps=n)` gives the sampler that makes an image in n steps.
        num_classes: classes of a class-conditional model, 0 for an unconditional one.
        bounded: images live in [-1, 1] and are clamped to it.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, ...],
        make_sampler: Callable[..., Any],
        num_classes: int = 0,
        bounded: bool = True,
    ) -> None:
        self.model, self.shape, self.make_sampler = model, tuple(shape), make_sampler
        self.num_classes, self.bounded = num_classes, bounded
        # What `load` knows of the file: the name of an average, its configuration, step counts, path and digest.
        self.weights, self.config, self.steps, self.origin = "model", {}, (1,), {}

    def labels(self, indices: Tensor) -> Tensor | None:
        """The class of each image where none is asked for: they take turns, so that all are equally frequent."""
        return indices % self.num_classes if self.num_classes else None

    def solver(self, steps: int) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """`(x, sigma, labels) -> x` at the ODE's end, from any one level, as the sampler of `steps` steps takes it."""
        sampler = self.make_sampler(steps=steps)
        return lambda x, sigma, labels=None: sampler.descend(
            lambda x, sigma: self.model(x, sigma, labels), x, sigma[0].item()
        )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int | None = None,
        seed: int = 0,
        labels: Tensor | None = None,
        batch_size: int = 256,
        first: int = 0,
        progress: Callable[[int], None] | None = None,
        sampler: Any = None,
    ) -> Tensor:
        """Images first … first + n - 1 of this seed, shape (n, C, H, W), on the CPU; in [-1, 1] for image data.

        Args:
            n: how many, at least 1.
            steps: network calls an image (for an ODE sampler: solver steps); by default the first step count at which
                the model was evaluated, 1 for a consistency model.
            seed: images depend on (seed, index) only.
            labels: classes (n,) of a class-conditional model; by default they take turns.
            batch_size: images at a time, from one multiple of it to the next; changes them by rounding only.
            first: index of the first image.
            progress: called with the number of images after each batch.
            sampler: of `consistency_models.samplers`; by default `make_sampler(steps=steps)`.

        Raises:
            ValueError: n or steps below 1, or labels that the model cannot take.
        """
        steps = self.steps[0] if steps is None else steps
        if n < 1 or steps < 1:
            raise ValueError(f"n and steps must be at least 1; got n={n}, steps={steps}")
        if labels is not None:
            labels = torch.as_tensor(labels)
            if not self.num_classes:
                raise ValueError("labels: this model is unconditional; leave them out")
            if len(labels) != n or labels.min() < 0 or labels.max() >= self.num_classes:
                raise ValueError(
                    f"labels must be {n} numbers from 0 to {self.num_classes - 1}; got {labels.tolist()[:8]}"
                )
        sampler, images = self.make_sampler(steps=steps) if sampler is None else sampler, []
        device = next(self.model.parameters()).device
        # Batches of a long run are those of its parts: a network rounds otherwise in a batch of another size.
        borders = [first, *range(first - first % batch_size + batch_size, first + n, batch_size), first + n]
        for start, stop in pairwise(borders):
            indices = torch.arange(start, stop)
            classes = self.labels(indices) if labels is None else labels[start - first : stop - first]
            onehot = None if classes is None else one_hot(classes, self.num_classes).float().to(device)
            noise = ImageNoise(seed, indices.tolist(), self.shape, device)
            x = sampler(lambda x, sigma, y=onehot: self.model(x, sigma, y), noise(), noise)
            images.append((x.clamp(-1, 1) if self.bounded else x).float().cpu())
            if progress is not None:
                progress(len(indices))
        return torch.cat(images)

    def edit(
        self,
        images: Tensor,
        operator: Any,
        levels: int | Sequence[float] = 40,
        seed: int = 0,
        labels: Tensor | None = None,
        steps: int | None = None,
        batch_size: int = 256,
        x: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Images that agree with what `operator` measures of these, shape (n, C, H, W), on the CPU; see `editing`.

            known = torch.ones(8, 8, dtype=torch.bool);  known[2:6, 2:6] = False
            repaired = generator.edit(images, editing.Inpainting(known), labels=[3] * len(images))
            denoised = generator.edit(noisy, editing.Unconstrained(), levels=[0.5], labels=…, x=noisy)

        What is measured of the result is what was measured of the images: of inpainting to the last bit, otherwise but
        for rounding. So results are not clamped: with `Colorization` and `SuperResolution` they may leave [-1, 1].
        A model of segments and a teacher are taken down to the ODE's end at each level, by their own sampler.

        Args:
            images: (n, C, H, W) in [-1, 1], of the model's shape.
            operator: a measurement of `consistency_models.editing`, the same for all images.
            levels: how many points the Karras grid has (one call at each but the last), or descending levels.
            seed: noise depends on (seed, place in `images`) only.
            labels: classes (n,) for a class-conditional model.
            steps: those of its sampler, for a model that is not a consistency model; by default as in `sample`.
            batch_size: images at a time; changes them by rounding only.
            x: (n, C, H, W), images at the first level to start from; by default what is measured, with noise.
            progress: called with the number of images after each level of each batch.

        Raises:
            ValueError: images, labels or levels that do not fit the model, or that the operator cannot measure.
        """
        n, classes, device = len(images), self.num_classes, next(self.model.parameters()).device
        if tuple(images.shape[1:]) != self.shape or not images.is_floating_point() or not n:
            allowed = f"floating-point numbers of shape (n, {', '.join(map(str, self.shape))})"
            raise ValueError(f"images must be {allowed}; got {images.dtype} of shape {tuple(images.shape)}")
        if (labels is None) == bool(classes):
            kind = f"class-conditional: give {n} classes" if classes else "unconditional: leave them out"
            raise ValueError(f"labels: this model is {kind}")
        labels = None if labels is None else torch.as_tensor(labels)
        if classes and (len(labels) != n or labels.min() < 0 or labels.max() >= classes):
            raise ValueError(f"labels must be {n} numbers from 0 to {classes - 1}; got {labels.tolist()[:8]}")
        steps = self.steps[0] if steps is None else steps
        solver, sampler = self.solver(steps), self.make_sampler(steps=steps)
        sigmas = grid_of(levels, sigma_max=sampler.sigmas[0]) if isinstance(levels, int) else levels
        sigma_min = getattr(sampler, "sigma_min", 0.0)  # only consistency functions stop above 0
        y, results = operator.measure(images.float()), []
        for rows in torch.arange(n).split(batch_size):
            onehot = one_hot(labels[rows], classes).float().to(device) if classes else None

            def denoiser(x: Tensor, sigma: Tensor, onehot: Tensor | None = onehot) -> Tensor:
                if progress is not None:
                    progress(len(x))
                return solver(x, sigma, onehot)

            noise = ImageNoise(seed, rows.tolist(), self.shape, device)
            start = None if x is None else x[rows].float().to(device)
            edited = edit(
                denoiser, y[rows].to(device), operator.replace, sigmas, noise, sigma_min, x=start, clip=self.bounded
            )
            results.append(edited.cpu())
        return torch.cat(results)


class ImageNoise:
    """Standard normal noise of given images: each call draws the next, and each image has generators of its own."""

    def __init__(self, seed: int, indices: list[int], shape: tuple[int, ...], device: torch.device | str) -> None:
        self.seed, self.indices, self.shape, self.device = seed, indices, shape, device
        self.draws = 0

    def __call__(self) -> Tensor:
        """(len(indices), *shape)"""
        drawn = [
            torch.randn(self.shape, generator=torch.Generator().manual_seed(seed_of(self.seed, "image", k, self.draws)))
            for k in self.indices
        ]
        self.draws += 1
        return torch.stack(drawn).to(self.device)


def instantiate(node: Any, **arguments: Any) -> Any:
    """The object that a configuration node describes; lists and dicts in it are plain, so that they can be saved."""
    import hydra.utils

    return hydra.utils.instantiate(node, _convert_="all", **arguments)


def build_model(config: dict[str, Any]) -> nn.Module:
    """The preconditioned network that a configuration describes, with fresh weights."""
    from consistency_models.preconditioning import Preconditioned

    return Preconditioned(instantiate(config["network"]), instantiate(config["preconditioning"]))


def load(path: str | Path, weights: str | None = None, device: torch.device | str = "cpu") -> Generator:
    """A generator from a checkpoint, a run folder, an export or an official checkpoint.

    Args:
        path: a checkpoint file, a run folder (its `checkpoints/last.ckpt`), a `*.safetensors` file or Hub folder of
            `consistency_models.export`, or an official `*.pkl` or `*.pt` of others (see `pretrained`).
        weights: which weights: "model", or the name of an average such as "0.999"; by default the first average.
        device: where it shall run.

    Raises:
        CheckpointError: the file is damaged, or asks for something other than a network, a sampler or the like of this
            package or of one that is trusted.
        ValueError: no such weights.
        ModuleNotFoundError: an export, and the extra `export` is not installed.
    """
    path = checkpoint_file(path)
    content = _content(path)
    config = content["config"]
    _check_targets(config, path)
    model = build_model(config)
    chosen = weights or next(iter(content["ema"]), "model")
    if chosen != "model" and chosen not in content["ema"]:
        raise ValueError(f"weights={chosen!r}: {path} has {['model', *content['ema']]}")
    model.load_state_dict(content["model"])
    if chosen != "model":
        model.load_state_dict(content["ema"][chosen], strict=False)  # buffers are not averaged
    data = config["data"]
    generator = Generator(
        model.to(device).eval().requires_grad_(False),
        (data["channels"], data["image_size"], data["image_size"]),
        instantiate(config["sampler"]),
        data["network_classes"],
        data["bounded"],
    )
    generator.weights, generator.config = chosen, config
    generator.steps = tuple(config["evaluation"]["steps"])
    generator.origin = content["origin"]
    return generator


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that a run folder, a folder for the Hub or a file name stands for."""
    path = Path(path)
    exported = path / "model.safetensors"
    if exported.is_file():
        return exported
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def _content(path: Path) -> dict[str, Any]:
    """What is in a file of any form that `load` takes: config, weights, and where they are from."""
    from consistency_models.checkpoints import digest_of, is_marked, read
    from consistency_models.pretrained.convert import checkpoint_of

    if path.suffix == ".safetensors":
        from consistency_models.export.weights import read_safetensors  # here: it imports this module

        return read_safetensors(path)
    if path.suffix in (".pkl", ".pt") and not is_marked(path):
        return checkpoint_of(path)
    content = read(path)
    return content | {"origin": content.get("origin", {}) | {"path": str(path), "digest": digest_of(path)}}


MODEL = ("networks", "preconditioning", "pretrained.edm", "samplers", "schedules", "segments", "solvers")
TRUSTED = dict.fromkeys(("network", "preconditioning", "sampler"), MODEL)
TRUSTED |= {"data": ("data",), "features": ("evaluation",)}
"""Parts of a configuration that are built from a file, and the modules of this package that they may name: there are
others in it that write files."""


def _check_targets(config: dict[str, Any], path: Path) -> None:
    """Refuse a configuration that would run anything but what it is there to describe."""
    from consistency_models.pretrained.errors import CheckpointError

    for part, modules in TRUSTED.items():
        for target in _targets(config.get(part)):
            if not _is_trusted(target, modules):
                expected = f"classes of this package, or of one in CONSISTENCY_MODELS_TRUST={target.split('.')[0]}"
                raise CheckpointError(expected, f"{part} asks for {target}", path)
        if "${" in str(config.get(part)):  # it would be resolved, and could become a target that is not written here
            raise CheckpointError("plain values, without ${", f"{part} with one", path)


def _is_trusted(target: str, modules: tuple[str, ...]) -> bool:
    """Whether it is from these modules, or from a package that the user names in CONSISTENCY_MODELS_TRUST (a,b,…)."""
    from hydra.utils import get_object

    named = {name.strip() for name in os.environ.get("CONSISTENCY_MODELS_TRUST", "").split(",")}
    packages = [*(f"consistency_models.{module}" for module in modules), *named - {"", "consistency_models"}]
    prefixes = tuple(f"{package}." for package in packages)
    # consistency_models.samplers.math.pow begins like ours and is not: ask the object where it is from.
    return target.startswith(prefixes) and f"{get_object(target).__module__}.".startswith(prefixes)


def _targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [t for value in node.values() for t in _targets(value)]
    return [t for value in node for t in _targets(value)] if isinstance(node, list) else []
