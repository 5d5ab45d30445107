"""On a CUDA device: every method trains, its samples are those of the CPU, and every task runs.

python -m pytest -m gpu -n 0      # one after the other: one of them takes all memory of the device
"""

import re
import sys

import pytest
import torch
from jobs import ROOT, TINY, composed, config_of, run

from consistency_models import load
from consistency_models.app.tasks import run_task
from consistency_models.errors import Exit
from consistency_models.storage.loading import build_model

sys.path.insert(0, str(ROOT / "benchmarks"))

from time_to_quality import CHOICES, STAGES

pytestmark = pytest.mark.gpu

GPU = ["trainer=gpu", *(argument for argument in TINY if argument != "trainer=cpu")]
SMALL = ["data=digits", "network=small", "network.model_channels=16", "data.batch_size=32", "features=identity"]
SCORED = ["evaluation.n=64", "evaluation.ode_points=8", "evaluation.ode_steps=4"]
BF16 = "trainer.precision=bf16-mixed"
STEPS = 6


def trained(folder, *overrides, steps=STEPS):
    """A training of digits on the GPU."""
    assert run(folder, *GPU, *SMALL, *SCORED, f"trainer.max_steps={steps}", *overrides) == Exit.DONE
    return folder


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The folder of a stage, by its name."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = trained(tmp_path_factory.mktemp(name.lower()), *words(STAGES[name], folder))
        return folders[name]

    return folder


def words(choice, folder):
    """The words of a choice of time_to_quality.py, with the folders of its stages."""
    return [re.sub("|".join(STAGES), lambda match: str(folder(match[0])), word) for word in choice.split()]


@pytest.fixture
def exact():
    """Convolutions in float32 instead of TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("choice", CHOICES)
def test_every_method_trains_in_bf16_and_samples_as_on_the_cpu(choice, stages, tmp_path, exact):
    looked_at = [f"callbacks.{name}.every_n_steps={STEPS}" for name in ("validation", "samples")]
    more = [BF16, f"trainer.max_steps={STEPS}", "trainer=gpu", "logger=csv", "callbacks.progress=null", *looked_at]
    assert run(tmp_path, *SMALL, *SCORED, *words(choice, stages), *more) == Exit.DONE
    assert list(tmp_path.glob("samples/*.png"))
    on_gpu, on_cpu = load(tmp_path, device="cuda"), load(tmp_path)
    for steps in on_gpu.steps:
        found, expected = on_gpu.sample(8, steps=steps), on_cpu.sample(8, steps=steps)
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", ["ddpmpp", "adm", "openai_adm"])
def test_norms_keep_half_precision(network, tmp_path):
    config = config_of(tmp_path, "data=cifar10", f"network={network}", "network.model_channels=32")
    model, types = build_model(config).cuda(), set()
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_hook(lambda module, inputs, output: types.add(output.dtype))
    with torch.autocast("cuda", torch.bfloat16):
        model(torch.randn(2, 3, 32, 32, device="cuda"), torch.ones(2, device="cuda"))
    assert types == {torch.bfloat16}


@pytest.mark.parametrize("dropout", [0, 0.3])
@pytest.mark.parametrize("model", ["ict", "teacher", "sct", "meanflow"])
def test_compiled_steps_are_those_of_the_eager_network(model, dropout, tmp_path):
    rows = []
    for name in ("false", "true"):
        folder = trained(tmp_path / name, f"model={model}", f"compile={name}", f"network.dropout={dropout}")
        rows.append([line.split(",")[1] for line in (folder / "metrics.csv").read_text().splitlines()[1:]])
    torch.testing.assert_close(*(torch.tensor([float(v) for v in row]) for row in rows), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("task", sorted(path.stem for path in (ROOT / "conf/task").glob("*.yaml")))
def test_every_task_runs_on_the_gpu(task, tmp_path):
    folder = trained(tmp_path / "run", "model=ict")
    arguments = [f"run={folder}", f"paths.output={folder}", "device=cuda", f"task={task}"]
    config = composed("eval", *arguments, *(["n=4"] if task not in ("evaluate", "search") else ["n=64"]))
    assert run_task(config) == (Exit.BAD_INPUT if task == "colorize" else Exit.DONE)


def test_a_score_is_that_of_the_cpu(tmp_path, exact):
    folder, found = trained(tmp_path / "run", "model=ict"), []
    for device in ("cuda", "cpu"):
        arguments = [f"run={folder}", f"paths.output={folder}", f"device={device}", "n=64"]
        assert run_task(composed("eval", *arguments)) == Exit.DONE
        found.append((folder / "evaluation/evaluation.json").read_text())
    values = [[float(v) for v in re.findall(r'"value": ([\d.e+-]+)', text)] for text in found]
    assert values[0]
    assert values[0] == pytest.approx(values[1], rel=1e-3)
