"""`plan=true`: costs on paper, against what is counted and measured of real tensors."""

import subprocess
import sys

import pytest
import torch
from jobs import ROOT, command, config_of, distilling, on_points

from consistency_models.app.build import build_data, build_method
from consistency_models.app.plan import cost, plan
from consistency_models.callbacks.memory import PeakMemory
from consistency_models.data.batch import Slot
from consistency_models.losses.distances import VGG16
from consistency_models.random import BatchRandom

METHODS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
NEEDS_TEACHER = set(distilling())
SMALL = ("network.model_channels=32", "network.channel_mult=[1]", "data.batch_size=32")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_plan(method, monkeypatch):
    teacher = ["teacher=exact"] if method in NEEDS_TEACHER else []
    chosen = [f"model={method}", "data=mixture", *on_points(method), "data.conditional=true", *teacher]
    config = config_of("unused", *chosen)
    found = cost(config)
    assert found.flops > 0
    assert found.parameters >= 50_000
    monkeypatch.setattr("consistency_models.app.plan.cost", lambda _: found)  # computed once
    assert "this machine" in plan(config)


@pytest.mark.parametrize("model", ["ict", "ct"])
def test_memory_is_that_of_a_real_step(model):
    """Bytes of tensors that are alive together, within 15 % and in fact within 5 %."""
    config = config_of("unused", f"model={model}", "data=digits", *SMALL)
    found, data, method = cost(config), build_data(config), build_method(config).train()
    rows = BatchRandom(0, 0, 32, slice(0, 32))
    batch = data.on_after_batch_transfer(data.source[Slot(rows, torch.arange(32))], 0)
    with PeakMemory() as memory:
        method.training_step(batch, 0).backward()
    assert found.peak_bytes(32) - found.fixed_bytes == pytest.approx(max(memory.trace), rel=0.05)


def test_operations_are_those_of_the_profiler():
    """Of a forward pass, where both have formulas: matrix products and convolutions."""
    network = build_method(config_of("unused", "data=digits", *SMALL)).model.network.eval()
    x, label = torch.randn(4, 1, 8, 8), torch.zeros(4)
    with torch.no_grad(), torch.profiler.profile(with_flops=True) as profiler:
        network(x, label)
    profiled = sum(event.flops for event in profiler.key_averages() if event.key in ("aten::conv2d", "aten::addmm"))
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, label)
    assert counter.get_total_flops() == pytest.approx(profiled, rel=0.02)


def test_it_prints_and_leaves_nothing(tmp_path):
    without_images = ["data=image_folder", "data.image_size=8", "network=small"]
    code, output = command(tmp_path, "train.py", "plan=true", "data.batch_size=48", *without_images)
    assert code == 0, output
    lines = [line.split() for line in output.splitlines()]
    assert [line[0] for line in lines if line[:1] and line[0].isdigit()] == ["48", "24", "12", "6", "3"]
    assert list(tmp_path.iterdir()) == []


def test_a_perceptual_distance_is_counted_without_its_weights(monkeypatch):
    monkeypatch.setattr(type(VGG16), "use", None)  # would load or download them
    tiny = (
        "data=cifar10",
        "network=small",
        "network.model_channels=8",
        "network.channel_mult=[1]",
        "data.batch_size=2",
    )
    operations = [cost(config_of("unused", *tiny, f"loss={loss}")).flops for loss in ("l2", "lpips")]
    assert operations[1] > operations[0] + 2 * 15e9  # VGG16 has 15.5 G multiplications for 224×224, of two images


def test_the_largest_micro_batch_fits():
    found = cost(config_of("unused", "data=digits", *SMALL))
    images = found.largest(found.peak_bytes(8), 32)
    assert images == 8
    assert found.largest(found.peak_bytes(32), 32) == 32
    assert found.largest(found.fixed_bytes, 32) == 0


MEASURED = """
import resource, sys, torch
sys.path[:0] = {paths}
from jobs import config_of
from consistency_models.app.build import build_data, build_method
from consistency_models.data.batch import Slot
from consistency_models.losses.distances import VGG16
from consistency_models.random import BatchRandom
torch.set_num_threads(1)
config = config_of("unused", *{overrides})
data, method = build_data(config), build_method(config).train()
def step(n):
    rows = BatchRandom(0, 0, 256, slice(0, n))
    method.training_step(data.on_after_batch_transfer(data.source[Slot(rows, torch.arange(n))], 0), 0).backward()
    method.zero_grad()
step(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(256)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_memory_is_what_the_process_takes():
    """The process's peak, from one image to 256, within 15 %."""
    overrides = ["data=digits", "network.model_channels=64", "data.batch_size=256"]
    code = MEASURED.format(paths=[str(ROOT / "src"), str(ROOT / "tests")], overrides=overrides)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = cost(config_of("unused", *overrides))
    assert found.peak_bytes(256) - found.peak_bytes(1) == pytest.approx(int(done.stdout), rel=0.15)
