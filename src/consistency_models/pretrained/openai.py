"""OpenAI's checkpoints of "Consistency Models" (arXiv 2303.01469): `edm_`, `cd_` and `ct_` of ImageNet 64 and LSUN 256.

Each file is one flat dict of tensors that `torch.save` wrote, so `torch.load` reads it with `weights_only=True`. A file
has no description: the network follows from the shapes, and the kind (teacher or student) from the file name.
"""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from consistency_models.errors import CheckpointError, naming
from consistency_models.files import sha256_of
from consistency_models.networks.openai_adm import OpenAIUNet
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary
from consistency_models.pretrained.build import Pretrained, fill
from consistency_models.sampling.samplers import Consistency, Heun

__all__ = ["load_openai", "network_of"]

FAMILIES = {  # arXiv 2303.01469, App. C
    "ImageNet 64": partial(OpenAIUNet, image_size=64, channels=3, num_classes=1000),
    "LSUN 256": partial(
        OpenAIUNet,
        image_size=256,
        channels=3,
        model_channels=256,
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_blocks=2,
        adaptive_scale=False,
    ),
}
MIDDLE = {  # second level of two steps, from the search in OpenAI's code; that of cd_cat256 is not published
    "cd_imagenet64": 1.382,
    "ct_imagenet64": 1.913,
    "cd_bedroom256_lpips": 4.366,
    "cd_bedroom256": 3.520,
    "ct_bedroom256": 3.991,
    "cd_cat256": 4.366,  # of bedrooms
    "ct_cat256": 5.248,
}


def load_openai(path: Path | str, consistency: bool | None = None, network: nn.Module | None = None) -> Pretrained:
    """Load the model of one of OpenAI's `*.pt` files.

    Args:
        path: the file.
        consistency: True for a consistency model (`cd_…`, `ct_…`), with the boundary scalings at 0.002; False for a
            diffusion model (`edm_…`), with EDM's scalings. By default the file name decides.
        network: the network to fill, if it is neither the one for ImageNet 64 nor the one for LSUN 256.

    Raises:
        CheckpointError: the file is no such file, has weights of another network, or has a name without a known prefix.
    """
    path = Path(path)
    with naming(path, "a flat dict of tensors, as torch.save writes it"):
        if consistency is None:
            if not path.name.startswith(("edm_", "cd_", "ct_")):
                raise CheckpointError("a name that starts edm_, cd_ or ct_, or the argument consistency", path.name)
            consistency = not path.name.startswith("edm_")
        weights = read_weights(path)
        scalings, sampler = partial(EDM), partial(Heun, sigma_min=0.002, sigma_max=80.0, clip=True)
        if consistency:
            sigma_mid = next((level for name, level in MIDDLE.items() if path.name.startswith(name)), 1.382)
            scalings, sampler = partial(Boundary), partial(Consistency.for_steps, sigma_mid=sigma_mid, clip=True)
        recipe = {}
        if network is None:
            network, make = network_of(weights)
            recipe = {"network": make, "preconditioning": scalings, "sampler": sampler}
        else:
            fill(lambda: network, weights)
        return Pretrained(
            model=Preconditioned(network, scalings()).eval(),
            kind="OpenAI",
            sigma_data=0.5,
            sigma_min=0.002,
            sigma_max=80.0,
            image_size=network.image_size,
            channels=network.channels,
            num_classes=network.num_classes,
            digest=sha256_of(path),
            steps=(1, 2) if consistency else (40,),
            recipe=recipe,
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of `torch.save`, which must not be compressed: what unpacks could fill any memory."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    size = sum(part.file_size for part in parts)
    if size > path.stat().st_size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise CheckpointError("a torch file that is not compressed", f"{size} bytes in {path.stat().st_size}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own words suggest to load it all the same
        raise CheckpointError("a flat dict of tensors", "objects that would need code to be run") from error
    if not isinstance(weights, dict) or not all(type(value) is Tensor for value in weights.values()):
        raise CheckpointError("a flat dict of tensors", type(weights).__name__)
    return weights


def network_of(weights: dict[str, Tensor]) -> tuple[OpenAIUNet, partial]:
    """The published network that these weights fit, with the weights, and what makes it."""
    refusals = []
    for family, make in FAMILIES.items():
        try:
            return fill(make, weights), make
        except CheckpointError as error:
            refusals.append(f"{family}: expected {error.expected}, found {error.found}")
    raise CheckpointError("the weights of a published network", "; ".join(refusals))
