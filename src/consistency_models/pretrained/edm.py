"""The models in the snapshots of EDM, EDM2 and ECT. A snapshot describes its own network and preconditioning."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from consistency_models.errors import CheckpointError, naming
from consistency_models.networks import official
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, IDDPM, VE, VP, Boundary
from consistency_models.pretrained.build import Pretrained, fill
from consistency_models.pretrained.reader import Snapshot, read_snapshot
from consistency_models.sampling.samplers import Consistency, Heun
from consistency_models.trust import loadable

__all__ = ["load_snapshot"]

ARGUMENTS = {"img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min", "sigma_max", "sigma_data"}
ARGUMENTS |= {"model_type", "beta_d", "beta_min", "M", "epsilon_t", "C_1", "C_2"}
"""Arguments of the official preconditionings; further arguments of a constructor belong to the network."""

DEFAULTS = {"label_dim": 0, "sigma_data": 0.5, "sigma_min": 0.0, "sigma_max": math.inf}
DEFAULTS |= {"beta_d": 19.9, "beta_min": 0.1, "epsilon_t": 1e-5, "M": 1000, "C_1": 0.001, "C_2": 0.008}
"""Values of arguments that snapshots of older versions may lack."""


@loadable()
def iddpm(c_1: float, c_2: float, levels: list[float]) -> IDDPM:
    """`IDDPM` with the levels of a file, exact in float32."""
    scalings = IDDPM(c_1, c_2, len(levels) - 1)
    scalings.levels = torch.tensor(levels)
    return scalings


PRECONDITIONINGS = {
    "EDMPrecond": lambda said: partial(EDM, sigma_data=said["sigma_data"]),
    "ECMPrecond": lambda said: partial(Boundary, sigma_data=said["sigma_data"], sigma_min=said["sigma_min"]),
    "Precond": lambda said: partial(EDM, sigma_data=said["sigma_data"]),
    "VPPrecond": lambda said: partial(
        VP, beta_d=said["beta_d"], beta_min=said["beta_min"], steps=said["M"], epsilon=said["epsilon_t"]
    ),
    "VEPrecond": lambda said: partial(VE, sigma_min=said["sigma_min"], sigma_max=said["sigma_max"]),
    "iDDPMPrecond": lambda said: partial(iddpm, c_1=said["C_1"], c_2=said["C_2"], levels=said["u"].tolist()),
}


def load_snapshot(path: Path | str) -> Pretrained:
    """Load the model of a snapshot pickle of EDM, EDM2 or ECT, with the preconditioning that is used for sampling.

    ECT trains on CIFAR-10 with EDM's scalings, `Preconditioned(model.network, EDM())`, and samples with the boundary
    scalings at 0.003.

    Raises:
        CheckpointError: the file is no such snapshot, or its class, arguments or shapes are unknown.
    """
    with naming(path, "a network that this package has"):
        snapshot = read_snapshot(path)
        if snapshot.class_name not in PRECONDITIONINGS:
            raise CheckpointError(f"a network of class {', '.join(PRECONDITIONINGS)}", snapshot.class_name)
        weights = dict(snapshot.state_dict)
        blocks = snapshot.kwargs.get("num_blocks", 0) * len(snapshot.kwargs.get("channel_mult", ()))
        if blocks > len(weights):
            raise CheckpointError(f"a network of {len(weights)} tensors", f"the arguments of one of {blocks} blocks")
        said = {**DEFAULTS, **snapshot.kwargs, **snapshot.attributes, "u": weights.pop("u", None)}
        network, weights = (edm2_network if snapshot.class_name == "Precond" else edm_network)(snapshot, weights)
        scalings, (sampler, steps) = PRECONDITIONINGS[snapshot.class_name](said), sampling(snapshot, said)
        return Pretrained(
            model=Preconditioned(fill(network, weights), scalings()).eval(),
            kind=snapshot.class_name,
            **{name: said[name] for name in ("sigma_data", "sigma_min", "sigma_max")},
            image_size=said["img_resolution"],
            channels=said["img_channels"],
            num_classes=said["label_dim"],
            digest=snapshot.digest,
            steps=steps,
            recipe={"network": network, "preconditioning": scalings, "sampler": sampler},
        )


def sampling(snapshot: Snapshot, said: dict[str, object]) -> tuple[partial, tuple[int, ...]]:
    """Sampler and step counts: 18 steps of Heun for EDM, one and two steps for ECT, whose levels end at 0."""
    if snapshot.class_name == "ECMPrecond" or (snapshot.class_name == "Precond" and not has_uncertainty(snapshot)):
        sigma_mid = 0.821 if said["img_resolution"] <= 32 else 1.526  # ECT's, of CIFAR-10 and of ImageNet 64
        return partial(Consistency.for_steps, sigma_mid=sigma_mid, sigma_min=0.0, sigma_max=80.0), (1, 2)
    low, high = max(said["sigma_min"], 0.002), min(said["sigma_max"], 80.0)  # arXiv 2206.00364, Table 1
    return partial(Heun, sigma_min=low, sigma_max=high), (18,)


def edm_network(snapshot: Snapshot, weights: dict[str, Tensor]) -> tuple[partial, dict[str, Tensor]]:
    """The constructor of SongUNet or DhariwalUNet, and its weights: the entries that start with "model."."""
    kwargs = snapshot.kwargs
    channels = kwargs["img_channels"]
    weights = {name.removeprefix("model."): value for name, value in weights.items()}
    outputs = channels * (2 if snapshot.class_name == "iDDPMPrecond" else 1)  # iDDPM's second half are variances
    make = {"SongUNet": official.SongUNet, "DhariwalUNet": official.DhariwalUNet}[snapshot.network]
    given = {name: value for name, value in kwargs.items() if name not in ARGUMENTS}
    images = {"img_resolution": kwargs["img_resolution"], "in_channels": channels, "out_channels": outputs}
    return partial(make, **images, label_dim=kwargs.get("label_dim", 0), **given), weights


def has_uncertainty(snapshot: Snapshot) -> bool:
    """Whether the network has EDM2's uncertainty head; ECT's copies of the network have none."""
    return "logvar_linear.weight" in snapshot.state_dict


def edm2_network(snapshot: Snapshot, weights: dict[str, Tensor]) -> tuple[partial, dict[str, Tensor]]:
    """The constructor of EDM2's U-Net, and its weights. ECT may limit dropout to low resolutions (`dropout_res`)."""
    kwargs = dict(snapshot.kwargs)
    if not has_uncertainty(snapshot):
        kwargs["logvar_channels"] = 0
    return partial(official.Precond, **kwargs), weights
