"""Checkpoints of others, read without running their code: pickles of EDM, EDM2 and ECT, OpenAI's torch files, and
folders of diffusers' pipelines.

load("edm-cifar10-32x32-uncond-vp.pkl").model(x, sigma)     a teacher
load("cd_imagenet64_lpips.pt").model(x, sigma, labels)      a baseline
load("stable-diffusion-v1-5").model(x, sigma, prompts)      a folder with model_index.json
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from consistency_models.errors import CheckpointError
from consistency_models.files import is_pipeline
from consistency_models.networks.layout import prefers_channels_last, set_channels_last
from consistency_models.pretrained.build import Pretrained
from consistency_models.pretrained.diffusers import load_pipeline, read_pipeline
from consistency_models.pretrained.edm import load_snapshot
from consistency_models.pretrained.openai import load_openai
from consistency_models.pretrained.reader import Snapshot, read_snapshot

__all__ = [
    "CheckpointError",
    "Pretrained",
    "Snapshot",
    "is_pipeline",
    "load",
    "load_openai",
    "load_pipeline",
    "load_snapshot",
    "read_pipeline",
    "read_snapshot",
]


def load(path: Path | str) -> Pretrained:
    """Load the model of an official checkpoint, on the CPU, with the memory layout that is faster there.

    A folder is taken as a pipeline of diffusers, a zip file as one of OpenAI's, any other file as a snapshot.

    Raises:
        CheckpointError: the file is no checkpoint that this package knows. The message names the file, what was
            expected and what was found.
    """
    path = Path(path).expanduser()
    read = load_pipeline if path.is_dir() else load_openai if zipfile.is_zipfile(path) else load_snapshot
    loaded = read(path)
    set_channels_last(loaded.model.network, prefers_channels_last(loaded.model.network, "cpu"))
    return loaded
