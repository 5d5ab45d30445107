"""The models in the snapshots of EDM, EDM2 and ECT; what a snapshot says of itself tells network and scalings."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor, nn

from consistency_models.networks import official
from consistency_models.preconditioning import EDM, IDDPM, VE, VP, Boundary, Preconditioned
from consistency_models.pretrained.build import Pretrained, fill
from consistency_models.pretrained.errors import CheckpointError, naming
from consistency_models.pretrained.reader import Snapshot, read_snapshot

__all__ = ["load_snapshot"]

ARGUMENTS = {"img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min", "sigma_max", "sigma_data"}
ARGUMENTS |= {"model_type", "beta_d", "beta_min", "M", "epsilon_t", "C_1", "C_2"}
"""Those of the official preconditionings; what else one is constructed with, it hands on to its network."""

DEFAULTS = {"label_dim": 0, "sigma_data": 0.5, "sigma_min": 0.0, "sigma_max": math.inf}
DEFAULTS |= {"beta_d": 19.9, "beta_min": 0.1, "epsilon_t": 1e-5, "M": 1000, "C_1": 0.001, "C_2": 0.008}
"""Of what a snapshot of an older version may not say."""


def iddpm(said: dict[str, object]) -> IDDPM:
    """With the levels that the file holds, to the last bit."""
    scalings = IDDPM(said["C_1"], said["C_2"], len(said["u"]) - 1)
    scalings.levels = said["u"]
    return scalings


PRECONDITIONINGS = {
    "EDMPrecond": lambda said: EDM(said["sigma_data"]),
    "ECMPrecond": lambda said: Boundary(said["sigma_data"], said["sigma_min"]),
    "Precond": lambda said: EDM(said["sigma_data"]),
    "VPPrecond": lambda said: VP(said["beta_d"], said["beta_min"], said["M"], said["epsilon_t"]),
    "VEPrecond": lambda said: VE(said["sigma_min"], said["sigma_max"]),
    "iDDPMPrecond": iddpm,
}


def load_snapshot(path: Path | str) -> Pretrained:
    """The model in a snapshot pickle of EDM, EDM2 or ECT, in the form that it has outside training.

    For ECT on CIFAR-10 that is another: in training it has EDM's scalings, `Preconditioned(model.network, EDM())`,
    afterwards those of the boundary at 0.003.

    Raises:
        CheckpointError: not such a snapshot, or of a class, of arguments or of shapes that our networks do not know.
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
        make = edm2_network if snapshot.class_name == "Precond" else edm_network
        return Pretrained(
            model=Preconditioned(make(snapshot, weights), PRECONDITIONINGS[snapshot.class_name](said)).eval(),
            kind=snapshot.class_name,
            **{name: said[name] for name in ("sigma_data", "sigma_min", "sigma_max")},
            image_size=said["img_resolution"],
            channels=said["img_channels"],
            num_classes=said["label_dim"],
            digest=snapshot.digest,
        )


def edm_network(snapshot: Snapshot, weights: dict[str, Tensor]) -> nn.Module:
    """SongUNet or DhariwalUNet: everything under "model."."""
    kwargs = snapshot.kwargs
    channels = kwargs["img_channels"]
    weights = {name.removeprefix("model."): value for name, value in weights.items()}
    outputs = channels * (2 if snapshot.class_name == "iDDPMPrecond" else 1)  # iDDPM's second half are variances
    make = {"SongUNet": official.SongUNet, "DhariwalUNet": official.DhariwalUNet}[snapshot.network]
    given = {name: value for name, value in kwargs.items() if name not in ARGUMENTS}
    resolution, label_dim = kwargs["img_resolution"], kwargs.get("label_dim", 0)
    return fill(lambda: make(resolution, channels, outputs, label_dim, **given), weights)


def edm2_network(snapshot: Snapshot, weights: dict[str, Tensor]) -> nn.Module:
    """EDM2's U-Net with its uncertainty head; ECT's copies of it have none, and a dropout of their own in training."""
    kwargs = {name: value for name, value in snapshot.kwargs.items() if name != "dropout_res"}
    if "logvar_linear.weight" not in weights:
        kwargs["logvar_channels"] = 0
    return fill(lambda: official.Precond(**kwargs), weights)
