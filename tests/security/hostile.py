"""Objects that a hostile file asks for, and a file or folder that asks for them."""

import yaml
from jobs import TINY

from consistency_models.storage import checkpoints

CANARY = "EXPLODED"
SMALL = (*TINY, "data=mixture", "network.width=16", "network.depth=1", "data.batch_size=8", "features=identity")


def nodes(folder):
    """Name -> what a file says instead of a network, a sampler and so on; each would leave `CANARY` in the folder."""
    path = str(folder / CANARY)
    own = "consistency_models"
    return {
        "a function of this package that writes": {
            "_target_": f"{own}.evaluation.html_report.save_page",
            **{"path": path, "tables": {}, "figures": [], "cells": []},
        },
        "a command line of this package": {
            "_target_": f"{own}.evaluation.compare.main",
            "arguments": [str(folder), "--out", path],
        },
        "a figure": {"_target_": f"{own}.evaluation.plots.save_search", "path": path, "trace": [], "metric": "x"},
        "a checkpoint": {"_target_": f"{own}.storage.checkpoints.write", "content": {}, "path": path},
        "a run folder": {"_target_": f"{own}.app.folder.RunFolder", "path": path},
        "a callback that makes folders": {
            "_target_": f"{own}.callbacks.samples.SampleGrids",
            **{"folder": path, "every_n_steps": 1, "_partial_": True},
        },
        "another module, through this package": {
            "_target_": f"{own}.storage.checkpoints.os.mkdir",
            "_args_": [path],
        },
        "a command": {"_target_": "os.system", "command": f"touch {path}"},
        "a command in a tuple": {"embedding": ({"_target_": "os.mkdir", "_args_": [path]},)},
        "a command in a list": {"channel_mult": [1, {"_target_": "os.mkdir", "_args_": [path]}]},
        "a pickle": {"_target_": "torch.load", "f": str(folder / "pickle.pt"), "weights_only": False},
        "a method of a pure class": {"_target_": f"{own}.data.GaussianMixture.random"},
        "a builder of builders": {
            "_target_": "hydra.utils.instantiate",
            "config": {"_target_": "os.mkdir", "_args_": [path]},
        },
        "an environment variable": {"_target_": f"{own}.networks.MLP", "width": "${oc.env:CANARY}"},
        "a target that is made up later": {"_target_": "${oc.env:CANARY}"},
        "a key that is one": {"${oc.env:CANARY}": 1, "_target_": f"{own}.networks.MLP"},
        "the trust itself": {"_target_": f"{own}.trust.loadable"},
    }


class Pickle:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def checkpoint_with(source, target, part, node):
    """Write the checkpoint `source` with another part to `target`."""
    content = checkpoints.read(source)
    content["config"][part] = node
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write(content, target)
    return target


def folder_with(source, target, overrides):
    """A run folder like `source`, whose overrides.yaml holds other lines."""
    (target / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        (target / name).write_bytes((source / name).read_bytes())
    (target / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (target / "STOPPED").touch()
    return target
