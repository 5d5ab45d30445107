"""`trainer.accumulate_grad_batches=auto`: micro-batches that fit, the same numbers, and a trial without traces."""

from types import SimpleNamespace

import pytest
import torch
from jobs import GRADIENT_STEP, TINY, config_of, run

from consistency_models.app.folder import RunFolder
from consistency_models.callbacks import micro_batches
from consistency_models.callbacks.memory import PeakMemory, available_bytes, peak_of
from consistency_models.callbacks.micro_batches import MicroBatches
from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import read

STEP = (*TINY, "data=digits", "data.batch_size=16", "network.model_channels=8", *GRADIENT_STEP)
COUNT = "trainer.accumulate_grad_batches"


def chosen(folder):
    return read(folder / "checkpoints/last.ckpt")["trainer"]["callbacks"]["MicroBatches"]["count"]


def weights(folder):
    return read(folder / "checkpoints/last.ckpt")["model"]


@pytest.fixture
def memory(monkeypatch):
    """`memory(n)`: so many bytes are free, and no bound says that a step fits."""

    def give(free):
        monkeypatch.setattr(micro_batches, "available_bytes", lambda device: free)
        monkeypatch.setattr(micro_batches, "FEW", 0)

    return give


def test_a_small_training_pays_no_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(micro_batches.MicroBatches, "_pass", None)
    assert config_of(tmp_path, *STEP)["trainer"]["accumulate_grad_batches"] == "auto"
    assert run(tmp_path, *STEP) == Exit.DONE
    assert chosen(tmp_path) == 1


def test_auto_trains_the_same_numbers_as_one(tmp_path, memory, caplog):
    assert run(tmp_path / "one", *STEP, f"{COUNT}=1") == Exit.DONE
    memory(1_500_000)
    with caplog.at_level("INFO"):
        assert run(tmp_path / "auto", *STEP) == Exit.DONE
    count = chosen(tmp_path / "auto")
    assert count in (2, 4, 8)
    assert f"micro-batches of a step: {count} of {16 // count} images each" in caplog.text
    found = weights(tmp_path / "auto")
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_the_trial_changes_nothing(tmp_path, memory):
    """With all the memory there is the trial ends at 1, and training is bit-identical to one without a trial."""
    steps = (*TINY, "data=digits", "data.batch_size=16", "network.model_channels=8", "network.dropout=0.3")
    steps += ("trainer.max_steps=3", "model=ct")
    assert run(tmp_path / "without", *steps, f"{COUNT}=1") == Exit.DONE
    memory(2**40)
    assert run(tmp_path / "with", *steps) == Exit.DONE
    without, tried = (read(tmp_path / name / "checkpoints/last.ckpt") for name in ("without", "with"))
    assert tried["trainer"]["callbacks"]["MicroBatches"]["count"] == 1
    for part in ("model", "target"):
        assert all(torch.equal(tried[part][name], value) for name, value in without[part].items())
    for decay, average in without["ema"].items():
        assert all(torch.equal(tried["ema"][decay][name], value) for name, value in average.items())
    for states in zip(*(content["optimizer"]["state"].values() for content in (without, tried))):
        assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


def test_a_run_that_goes_on_keeps_its_number(tmp_path, memory):
    steps = [argument for argument in STEP if not argument.startswith("trainer.max_steps")]
    memory(1_500_000)
    assert run(tmp_path, *steps, "trainer.max_steps=1") == Exit.DONE
    count = chosen(tmp_path)
    memory(2**40)
    assert run(tmp_path, *steps, "trainer.max_steps=2", f"ckpt_path={tmp_path}") == Exit.DONE
    assert chosen(tmp_path) == count > 1


def test_a_run_that_goes_on_with_another_batch_needs_no_trial(tmp_path, memory, monkeypatch):
    """The number of the checkpoint does not divide the new batch."""
    steps = [argument for argument in STEP if not argument.startswith("trainer.max_steps")]
    with monkeypatch.context() as patch:
        patch.setattr(micro_batches, "available_bytes", lambda device: 1_500_000)
        patch.setattr(micro_batches, "FEW", 0)
        assert run(tmp_path, *steps, "trainer.max_steps=1") == Exit.DONE
    assert chosen(tmp_path) > 1
    assert run(tmp_path, *steps, "trainer.max_steps=2", "data.batch_size=5", f"ckpt_path={tmp_path}") == Exit.DONE
    assert chosen(tmp_path) == 1


@pytest.mark.parametrize("other", [1, 4])
def test_processes_agree_whether_or_not_they_tried(other, monkeypatch):
    """Free memory differs between processes: the one that needs no trial takes part in the agreement, too."""
    monkeypatch.setattr(micro_batches, "_bound", lambda *_: 0.0)
    reduced = []

    def reduce(value, reduce_op):
        reduced.append(reduce_op)
        return torch.tensor(max(float(value), other))

    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=16), world_size=2, num_nodes=1, strategy=SimpleNamespace(reduce=reduce)
    )
    method = SimpleNamespace(on_fit_start=lambda: None, device=torch.device("cpu"), rows_together=1)
    MicroBatches(forecast=None).on_fit_start(trainer, method)
    assert reduced == ["max"]
    assert trainer.accumulate_grad_batches == other


def test_what_does_not_fit_at_all_is_refused(tmp_path, memory, capsys):
    memory(1000)
    assert run(tmp_path, *STEP) == Exit.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: data.batch_size=16 is not allowed: 1 images at a time need more memory than")
    assert RunFolder(tmp_path).state == "FAILED"


def test_a_training_of_weeks_is_told_with_the_first_lines(tmp_path, memory, caplog):
    memory(2**40)
    config = config_of(tmp_path, *STEP, "trainer.max_steps=1000000000", "compile=false")
    config["callbacks"]["at"] = {"_target_": f"{__name__}.Stop"}
    from consistency_models.app.run import run_job

    RunFolder(tmp_path).write_config(config, [*STEP, "trainer.max_steps=1000000000", "name='a b'"])
    assert run_job(config, tmp_path)[0] == Exit.UNEXPECTED
    assert "this training takes about " in caplog.text
    assert "years on this device (cpu): 1000000000 steps of 16 images" in caplog.text
    assert "data.batch_size=16" in caplog.text
    assert "trainer.max_images=" in caplog.text
    assert "python train.py model=ict data=digits" in caplog.text


class Stop(torch.nn.Module):
    """A callback is made of a `_target_`: this one cannot be made, long before the second step."""

    def __new__(cls):
        from lightning import Callback

        class AfterOneStep(Callback):
            def on_train_batch_end(self, *_):
                raise RuntimeError("enough")

        return AfterOneStep()


def test_on_a_gpu_the_number_is_doubled_until_a_pass_fits(monkeypatch):
    tried = []

    def run_out(self, trainer, method, images):
        tried.append(images)
        if images > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MicroBatches, "_pass", run_out)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(batch_size=32), world_size=2, callbacks=[])
    method = SimpleNamespace(
        parameters=list, device=torch.device("cpu"), zero_grad=lambda **_: None, monitored={}, losses_by_level=[]
    )
    callback = MicroBatches(None)
    assert callback._try(trainer, method, [1, 2, 4, 8, 16], 0) == 8
    assert tried == [16, 8, 4, 2]
    assert callback._try(trainer, method, [1, 2, 4], 0) is None


@pytest.mark.gpu
def test_on_a_real_gpu(tmp_path, monkeypatch):
    """As much of the memory is taken away as makes 16 images too many."""
    monkeypatch.setattr(micro_batches, "FEW", 0)
    gpu = [argument for argument in STEP if argument != "trainer=cpu"]
    assert run(tmp_path / "one", *gpu, "trainer=gpu", f"{COUNT}=1") == Exit.DONE
    torch.cuda.empty_cache()
    monkeypatch.setattr(micro_batches, "_later_bytes", lambda *_: torch.cuda.mem_get_info()[0] - 2**25)
    assert run(tmp_path / "auto", *gpu, "trainer=gpu") == Exit.DONE
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "auto")[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_peak_memory_counts_what_is_alive_at_the_same_time():
    with PeakMemory() as memory:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second * 2
        del second, third
    assert max(memory.trace) == 2 * 4000
    weight = torch.zeros(100, 100, requires_grad=True)
    with PeakMemory() as memory:
        (weight * 2).square().sum().backward()
    assert max(memory.trace) >= 2 * 40_000  # the product, and its square or a gradient


def test_the_peak_of_many_images_is_extrapolated_operation_by_operation():
    def trace(n):
        weight = torch.zeros(64, 1000, requires_grad=True)
        with PeakMemory() as memory:
            (torch.ones(n, 64) @ weight).square().square().sum().backward()
        return memory.trace

    assert peak_of(3000, trace(1), trace(2)) == max(trace(3000))
    assert max(trace(2)) == pytest.approx(max(trace(1)), rel=0.1)  # of few images the weights' gradient is the peak
    assert peak_of(10, [5, 6], [5, 6, 8]) == 40


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    from consistency_models.callbacks import memory

    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = available_bytes(cpu)
    assert free > 2**27
    for name, text in {"max": f"{2**27}\n", "current": f"{2**26}\n", "stat": "anon 1\ninactive_file 1024\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_bytes(cpu) == 2**26 + 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(cpu) > 2**27
