"""Reference numbers from outside: which files there are, what is in them, and the networks that they were made with.

GOLDEN_DIR names another folder with files of the same kinds. A kind is told by its keys, not by the file's name. Its
cases, shapes and constants are read from the file; a key that a file may lack makes no test, or the default.
"""

import json
import os
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

OURS = Path(__file__).parents[1] / "golden"
FOLDER = Path(os.environ.get("GOLDEN_DIR") or OURS)

F64 = {"dtype": torch.float64, "suffix": "__f64", "rtol": 1e-9, "atol": 1e-11}
F32 = {"dtype": torch.float32, "suffix": "", "rtol": 1e-4, "atol": 1e-5}
RUNS = {"__f64": F64, None: F32}
"""What the end of a key says of the run: patterns of keys end in `SUFFIX`."""
SUFFIX = "(__f64)?"
CONSTANTS = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.5}


@lru_cache(maxsize=64)
def load(path):
    """{key: tensor, or string}, with JSON under "meta_json" decoded as "meta"."""
    with np.load(path) as file:
        case = {key: str(a) if (a := file[key]).dtype.kind in "SU" else torch.from_numpy(a) for key in file.files}
    return case | {"meta": json.loads(case.get("meta_json", "{}"))}


@lru_cache(maxsize=1)
def _keys():
    found = {}
    for folder, _, names in sorted(os.walk(FOLDER, followlinks=True)):
        for path in sorted(Path(folder) / name for name in names if name.endswith(".npz")):
            with np.load(path) as file:
                found[path] = file.files
    if not FOLDER.is_dir():
        raise pytest.UsageError(f"GOLDEN_DIR={FOLDER} is no folder")
    return found


def cases(pattern, *having, folder="*", without=()):
    """One parameter set (path, *groups) for each key that matches `pattern` whole, in the files that have, for each of
    `having`, a key that matches it, and none for each of `without`."""

    def any_matches(expression, keys):
        return any(re.fullmatch(expression, key) for key in keys)

    return [
        pytest.param(path, *match.groups(), id="-".join([path.stem, *filter(None, match.groups())]))
        for path, keys in _keys().items()
        if path.match(f"{folder}/*")
        and all(any_matches(h, keys) for h in having)
        and not any(any_matches(w, keys) for w in without)
        for match in filter(None, (re.fullmatch(pattern, key) for key in keys))
    ]


def expect(found, case, key, **tolerance):
    """`found` is the case's `key`. A file of another folder may lack the key: then nothing is compared."""
    if key in case or FOLDER == OURS:
        torch.testing.assert_close(found, case[key], msg=lambda text: f"{key}: {text}", **tolerance)


def class_labels(case):
    """The class labels of a file of edm's; None where there are none, or where the network takes none."""
    said = case["meta"].get("kwargs") or case["meta"].get("init_kwargs", {})
    return case.get("class_labels") if said.get("label_dim", 0) else None


class TinyNet(nn.Module):
    """out = conv2(silu(conv1(x) + lin(sin t/100, cos t/100, t/1000))),  t = 1000·c_noise: openai_cm's network."""

    def __init__(self, case, name, dtype):
        super().__init__()
        weights = {key.removeprefix(f"{name}."): value for key, value in case.items() if key.startswith(f"{name}.")}
        out, channels = weights["conv1.weight"].shape[:2]
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.lin = nn.Linear(3, out)
        self.conv2 = nn.Conv2d(out, channels, 3, padding=1)
        self.to(dtype).load_state_dict(weights)

    def forward(self, x, c_noise, labels=None, augment=None):
        t = 1000 * c_noise
        feats = torch.stack([torch.sin(t / 100), torch.cos(t / 100), t / 1000], dim=1)
        return self.conv2(torch.nn.functional.silu(self.conv1(x) + self.lin(feats)[:, :, None, None]))


def perceptual_stub(a, b):
    """What stands for LPIPS in openai_cm: mean of (a² - b²)² over C, H, W."""
    return (a**2 - b**2).square().flatten(1).mean(1)


def check_gradients(loss, network, case, prefix, suffix="", **tolerance):
    """d mean(loss)/d parameter against {prefix}{parameter}{suffix}, of the parameters that the file has.

    `atol` is a share of the largest number of a gradient, if that is above 1. Returns how many gradients there were."""
    expected = {name: case.get(f"{prefix}{name}{suffix}") for name, _ in network.named_parameters()}
    gradients = torch.autograd.grad(loss.mean(), list(network.parameters()))
    for (name, value), gradient in zip(expected.items(), gradients):
        if value is not None:
            near = tolerance | {"atol": tolerance["atol"] * max(1.0, value.abs().max().item())}
            torch.testing.assert_close(gradient, value, msg=lambda m, name=name: f"{name}: {m}", **near)
    return sum(value is not None for value in expected.values())


def constants(path):
    """sigma_min, sigma_max, rho and sigma_data of a file: its own, those of CONSTANTS.json beside it, or the usual."""
    beside, case = path.with_name("CONSTANTS.json"), load(path)
    shared = json.loads(beside.read_text()) if beside.exists() else {}
    return CONSTANTS | shared | {name: float(case[name]) for name in CONSTANTS if name in case}
