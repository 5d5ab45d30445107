"""Every file of sweeps/: all sizes are grids of jobs that pass the checks, and it says what it is."""

import re
from pathlib import Path

import pytest
import yaml

from consistency_models.app.checks import Composer, check

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.fixture(scope="module")
def composer(_as_in_main):
    return Composer("train", ROOT / "conf")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What FOLDER, FILE and RUN stand for in the commands that the files name, as far as checks look at them."""
    folder = tmp_path_factory.mktemp("inputs")
    checkpoint = folder / "run/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"PK" + b"sha256:" + b"0" * 64)
    (folder / "official.pkl").write_bytes(b"not looked at")
    return {"FOLDER": folder, "FILE": folder / "official.pkl", "RUN": folder / "run"}


def commands(file):
    """The command lines in a file's comments, and the one for its small size."""
    named = re.findall(r"python train\.py (.*?)(?: \(.*)?$", file.read_text(), re.MULTILINE)
    return [f"sweeps={file.stem}", *named]


@pytest.mark.parametrize(
    "which", [slice(1), pytest.param(slice(1, None), marks=pytest.mark.slow)], ids=["small", "rest"]
)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_cell_of_every_command_passes(file, which, composer, inputs):
    for line in commands(file)[which]:
        words = [re.sub(r"\b(FOLDER|FILE|RUN)$", lambda m: str(inputs[m[1]]), word) for word in line.split()]
        handed = check("train", composer, words)
        overrides = composer.parse(handed)
        cells = composer.cells(overrides, composer.compose([o for o in overrides if not o.is_sweep_override()]))
        seeds = {override.value() for cell in cells for override in cell if override.key_or_group == "seed"}
        assert len(seeds) >= 3, line
        told = re.search(rf"\b{len(cells)} runs\b", file.read_text())
        assert told or "loss=" in line, f"{line}: {len(cells)} jobs"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_says_what_it_is(file):
    text = file.read_text()
    comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    for part in (
        r"arXiv \d{4}\.\d{5}",
        r"Published: ",
        r"Small( and digits)?: ",
        r"[Dd]igits: ",
        r"Paper: ",
        r"\d runs",
    ):
        assert re.search(part, comment), part
    assert "sweep_size=paper" in comment
    if "2411.08954" not in comment:  # of Direct CM's paper no table has been seen
        assert re.search(r"(Fig\.|Tables?) \d", comment)
    sizes = yaml.safe_load(text)["sweep"]
    assert sizes["small"]["trainer"] == sizes["digits"]["trainer"] == "cpu"
    assert sizes["digits"]["data"] == "digits"
    assert {sizes[size]["seed"] for size in ("small", "digits", "paper")} == {"0,1,2"}


def test_every_published_ablation_has_a_file():
    """Parts A.6, B.7, C and E of what the papers report."""
    assert {file.stem for file in FILES} >= {
        *("ict_teacher_ema", "ict_distance", "ict_pseudo_huber_c", "ict_constant_n", "ict_curriculum", "ict_noise_law"),
        *("ict_components", "ict_depth", "cd_solver", "mcm_steps", "mcm_annealing", "mcm_teacher_sampler"),
        *("dcm_equal_steps", "dcm_equal_calls"),
    }


def test_equal_calls_are_equal():
    """N points, N - 1 intervals: a uniform index makes N/2 solver steps on average, where distillation makes one."""
    sweep = yaml.safe_load((ROOT / "sweeps/dcm_equal_calls.yaml").read_text())["sweep"]
    for size, steps in sweep["steps"].items():
        assert steps["cd"] == steps["dcm"] * sweep[size].get("curriculum.N", 18) / 2


def test_anything_can_be_overridden_beside_a_sweep(composer):
    words = ["sweeps=ict_distance", "seed=7", "trainer.max_steps=5", "data.batch_size=32", "loss=l1,l2"]
    check("train", composer, words)
    overrides = composer.parse(words)
    cells = composer.cells(overrides, composer.compose([o for o in overrides if not o.is_sweep_override()]))
    assert len(cells) == 4
    for cell in cells:
        config = composer.compose(cell)
        assert (config.seed, config.trainer.max_steps, config.data.batch_size) == (7, 5, 32)
        assert config.loss._target_.endswith(("L1", "SquaredL2"))
        assert (config.curriculum.s0, config.curriculum.s1) in {(2, 150), (10, 1280)}
