"""Formats of files that strangers may have made: how a file is changed, and what then reads it."""

import contextlib
import copy
import hashlib
import io
import json
import shutil
import zipfile

import numpy as np
import torch
import yaml
from jobs import ROOT

import consistency_models
from consistency_models.app.checks import check
from consistency_models.app.checks.composing import Composer
from consistency_models.app.run import run_job
from consistency_models.errors import CheckpointError, ConfigError, DataError, Exit
from consistency_models.evaluation.compare import main as compare
from consistency_models.evaluation.references import Reference
from consistency_models.storage import checkpoints

OWN = "consistency_models"
VALUES = [None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 10**9, 2**63, 2**70, 0.0, -0.5, 1e-30, 1e300, "", "x", "2"]
VALUES += ["${oc.env:HOME}", "${seed}", "???", "../..", "/etc/passwd", "\x00", "é" * 50, [], {}, [1], [[]], {"a": 1}]
VALUES += [float("nan"), float("inf"), [1, 2, 3], [10**9], [None], {"_target_": None}, {"_target_": 3}, (1, 2)]
TARGETS = ["os.system", "os.mkdir", "builtins.exec", "torch.load", "torch.nn.Linear", "subprocess.run", "pathlib.Path"]
TARGETS += [f"{OWN}.{name}" for name in ("evaluation.html_report.save_page", "storage.checkpoints.write", "load")]
TARGETS += [f"{OWN}.{name}" for name in ("noise.preconditioning.IDDPM", "noise.preconditioning.VP", "networks.mlp.MLP")]
TARGETS += [f"{OWN}.{name}" for name in ("sampling.samplers.Heun", "sampling.samplers.Ancestral", "data.digits")]
TARGETS += [f"{OWN}.{name}" for name in ("sampling.samplers.SegmentSampler", "networks.layers.PositionalEmbedding", "")]
VALUES += [{"_target_": target, "_args_": ["fuzz.marker"]} for target in TARGETS] + TARGETS
WORDS = [
    "_target_",
    "_args_",
    "_partial_",
    "_recursive_",
    "steps",
    "width",
    "depth",
    "sigma_max",
    "seed",
    "a.b",
    "0",
    "",
]


def places(node, found=()):
    """(container, key) of every value in nested dicts and lists."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    for key, value in items:
        yield node, key
        yield from places(value)


def mutated(tree, rng, values=VALUES):
    """A copy of nested dicts and lists with some values changed, moved, added or taken away."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        every = list(places(tree))
        if not every:
            break
        container, key = rng.choice(every)
        kind = rng.randrange(6)
        if kind <= 2:
            container[key] = copy.deepcopy(rng.choice(values))
        elif kind == 3:
            del container[key]
        elif kind == 4:
            other, name = rng.choice(every)
            with contextlib.suppress(LookupError):
                container[key] = copy.deepcopy(other[name])
        elif isinstance(container, dict):
            container[rng.choice(WORDS)] = copy.deepcopy(rng.choice(values))
        else:
            container.append(copy.deepcopy(rng.choice(values)))
    return tree


def scrambled(data, rng):
    """Bytes with some flipped, cut off, repeated or put in."""
    data, kind = bytearray(data), rng.randrange(4)
    if not data:
        return bytes(data)
    at = rng.randrange(len(data))
    if kind == 0:
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = data[at : at + rng.randrange(200)] * rng.choice([1, 50])
    else:
        data[at : at + rng.randrange(30)] = rng.randbytes(rng.randrange(30))
    return bytes(data)


def signed(data):
    """The bytes of a zip with a comment that is their digest, as a checkpoint has."""
    data = bytearray(data)
    data[-2:] = checkpoints.COMMENT.to_bytes(2, "little")
    return bytes(data) + checkpoints.MARK + hashlib.sha256(data).hexdigest().encode()


def tensors(rng):
    """Tensors that no network has."""
    return [torch.zeros(0), torch.zeros(3), torch.zeros(1).expand(10**6, 10**6), torch.full((16, 16), float("nan"))] + [
        torch.zeros(2, dtype=dtype) for dtype in (torch.int64, torch.complex64, torch.bool, torch.float16)
    ]


class Checkpoint:
    """`load` and sampling of a checkpoint whose content, or bytes beneath a right digest, were changed."""

    errors = (CheckpointError,)

    def __init__(self, folder):
        self.source = folder / "checkpoints/last.ckpt"
        self.content = checkpoints.read(self.source)
        self.data = self.source.read_bytes()[: -checkpoints.COMMENT]

    def make(self, rng, place):
        if rng.random() < 0.3:
            data = signed(scrambled(self.data, rng))
        else:
            content = dict(self.content)
            part = rng.choice(["config", "config", "config", "model", "ema", "all"])
            if part == "all":
                content = mutated(content, rng, VALUES + tensors(rng))
            else:
                content[part] = mutated(content[part], rng, VALUES + (tensors(rng) if part != "config" else []))
            file = io.BytesIO()
            torch.save(content, file)
            data = signed(file.getvalue())
        (place / "case.ckpt").write_bytes(data)

    def use(self, place):
        generator = consistency_models.load(place / "case.ckpt")
        generator.sample(2, steps=generator.steps[0])


class Export(Checkpoint):
    """`load` of a safetensors file whose header or bytes were changed."""

    def __init__(self, folder):
        self.data = (folder / "model.safetensors").read_bytes()
        self.length = int.from_bytes(self.data[:8], "little")
        self.header = json.loads(self.data[8 : 8 + self.length])
        self.said = json.loads(self.header["__metadata__"][OWN])

    def make(self, rng, place):
        if rng.random() < 0.3:
            data = scrambled(self.data, rng)
        else:
            header = copy.deepcopy(self.header)
            if rng.random() < 0.2:
                header = mutated(header, rng)
            else:
                header["__metadata__"][OWN] = json.dumps(mutated(self.said, rng))
            text = json.dumps(header).encode()
            data = len(text).to_bytes(8, "little") + text + self.data[8 + self.length :]
        (place / "case.safetensors").write_bytes(data)

    def use(self, place):
        generator = consistency_models.load(place / "case.safetensors")
        generator.sample(2, steps=generator.steps[0])


class Npz:
    """The reference of an evaluation: other bytes, other arrays, headers that lie, members that unpack to more."""

    errors = (DataError,)

    class data:
        images = np.zeros((2, 2, 1, 1))

    def __init__(self, folder):
        self.good = (folder / "reference.npz").read_bytes()

    def make(self, rng, place):
        kind = rng.randrange(4)
        if kind == 0:
            return (place / "case.npz").write_bytes(scrambled(self.good, rng))
        arrays = {"arr_0": np.zeros((3, 1, 1, 2), np.uint8), "mu": np.zeros(4), "sigma": np.eye(4)}
        strange = [
            np.zeros(0),
            np.array("x"),
            np.array([{}], object),
            np.zeros((2, 2, 2)),
            np.full(4, np.nan),
            np.zeros(3),
        ]
        strange += [np.zeros((1, 10**7), np.uint8), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "i4")]), np.array(1j)]
        for name in rng.sample(sorted(arrays), rng.choice([0, 0, 1, 2])):
            arrays[name] = rng.choice(strange)
        method = rng.choice([*[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED] * 3, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
        with zipfile.ZipFile(place / "case.npz", "w", method) as archive:
            for name, array in arrays.items():
                file = io.BytesIO()
                np.save(file, array, allow_pickle=True)
                content = file.getvalue()
                if kind == 1:
                    content = content.replace(
                        b"'shape': (", b"'shape': (" + str(10 ** rng.randrange(14)).encode() + b", "
                    )
                if kind == 2 and rng.random() < 0.3:
                    content = scrambled(content, rng)
                if kind == 3 and rng.random() < 0.3:
                    content += bytes(10 ** rng.randrange(8))
                archive.writestr(f"{name}.npy", content)
        return None

    def use(self, place):
        Reference.of(self.data, str(place / "case.npz"))


class Yaml:
    """`ckpt_path=FOLDER`: config.yaml and overrides.yaml whose content or text was changed."""

    errors = (ConfigError,)
    lines = ("seed=3", "model=ct", "network.width=16", "trainer.max_steps=9", "tags=[a,b]", "+data.resident=false")

    def __init__(self, folder):
        self.folder, self.config = folder, yaml.safe_load((folder / "config.yaml").read_text())
        self.composer = Composer("train", ROOT / "conf")

    def make(self, rng, place):
        (place / "checkpoints").mkdir()
        shutil.copy(self.folder / "checkpoints/last.ckpt", place / "checkpoints")
        (place / "STOPPED").touch()
        lines = [*self.lines]
        for _ in range(rng.choice([0, 0, 1, 2])):
            lines[rng.randrange(len(lines))] = f"{rng.choice(WORDS)}={rng.choice(VALUES)}"
        if rng.random() < 0.3:
            sign, key = rng.choice(["+", "", "++", "~"]), rng.choice(["network", "x", "hydra", "data"])
            lines.append(f"{sign}{key}={rng.choice(VALUES)}")
        for name, content in {"config.yaml": self.config, "overrides.yaml": lines}.items():
            text = yaml.dump(mutated(content, rng) if rng.random() < 0.5 else content).encode()
            (place / name).write_bytes(scrambled(text, rng) if rng.random() < 0.2 else text)

    def use(self, place):
        check("train", self.composer, [f"ckpt_path={place}", "data=mixture"])


class Compare:
    """The comparison of a run folder whose JSON, YAML and CSV files were changed."""

    errors = ()

    def __init__(self, folder):
        self.files = {name: (folder / name).read_bytes() for name in ("config.yaml", "summary.json", "metrics.csv")}
        self.files["evaluation/evaluation.json"] = (folder / "evaluation/evaluation.json").read_bytes()
        self.files["samples/final.png"] = (folder / "evaluation/samples.png").read_bytes()

    def make(self, rng, place):
        files = dict(self.files)
        if rng.random() < 0.4:
            del files["evaluation/evaluation.json"]
        for name in rng.sample(sorted(files), rng.randrange(1, 3)):
            if name.endswith("json") and rng.random() < 0.7:
                files[name] = json.dumps(mutated(json.loads(files[name]), rng)).encode()
            else:
                files[name] = scrambled(files[name], rng)
        for name, content in files.items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(content)

    def use(self, place):
        assert compare([str(place), "--out", str(place / "out")]) in (0, 2)


class Resume(Checkpoint):
    """A training that goes on from a changed checkpoint."""

    def __init__(self, folder):
        super().__init__(folder)
        self.config = yaml.safe_load((folder / "config.yaml").read_text())
        self.config["trainer"]["max_steps"] = 3

    def use(self, place):
        config = copy.deepcopy(self.config) | {"ckpt_path": str(place / "case.ckpt")}
        code, _ = run_job(
            json.loads(json.dumps(config).replace(config["paths"]["output"], str(place / "run"))), place / "run"
        )
        assert code != Exit.UNEXPECTED, (place / "run/FAILED").read_text()


FORMATS = {"checkpoint": Checkpoint, "export": Export, "npz": Npz, "yaml": Yaml, "compare": Compare, "resume": Resume}
