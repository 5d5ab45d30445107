"""The data module under a trainer: the same images whatever the workers, micro-batches and interruptions."""

import multiprocessing
import os
import signal
import warnings

import pytest
import torch
from lightning import LightningModule, Trainer

from consistency_models.data import Batch, DataError, DataModule, ImageSet, Mixture, Source, digits
from consistency_models.random import BatchRandom


class Record(LightningModule):
    """Keeps the batches it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.batches = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, index):
        self.batches.append(batch)
        return self.weight * batch.images.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


def train(folder, max_steps=5, accumulate=1, resume=None, limit=1.0, **options):
    """[(step, images, labels)] of each global batch, and the checkpoint at its end."""
    options = {"source": digits(), "batch_size": 12, "seed": 4, **options}
    trainer = Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        limit_train_batches=limit,
        enable_checkpointing=False,
        default_root_dir=folder,
        **QUIET,
    )
    module = Record()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more workers would be faster, and the like
        trainer.fit(module, datamodule=DataModule(**options), ckpt_path=resume, weights_only=False)
        trainer.save_checkpoint(folder / "last.ckpt")
    steps = {}
    for batch in module.batches:
        steps.setdefault(batch.rows.step, []).append(batch)
    return [
        (
            step,
            torch.cat([batch.images for batch in micro]),
            None if micro[0].labels is None else torch.cat([batch.labels for batch in micro]),
        )
        for step, micro in steps.items()
    ]


def same(first, second):
    assert [step for step, _, _ in first] == [step for step, _, _ in second]
    for (_, images, labels), (_, other_images, other_labels) in zip(first, second):
        assert torch.equal(images, other_images)
        assert labels is other_labels is None or torch.equal(labels, other_labels)


@pytest.mark.parametrize("source", [digits(), Mixture()], ids=["digits", "mixture"])
@pytest.mark.parametrize("options", [{"workers": 2}, {"accumulate": 3}, {"accumulate": 2, "limit": 4}])
def test_nothing_but_the_seed_matters(tmp_path, source, options):
    common = {"source": source, "conditional": True, "flip": True}
    undisturbed = train(tmp_path, **common)
    same(undisturbed, train(tmp_path, **common, **options))
    assert not torch.equal(undisturbed[0][1], train(tmp_path, 1, **common, seed=5)[0][1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_workers_survive_the_first_signal_and_end_with_the_training(number, tmp_path, monkeypatch):
    """Slurm sends a signal to every process of a step; the training needs its workers until it has saved."""
    undisturbed, original, signalled = train(tmp_path, workers=2), Record.training_step, []

    def step(module, batch, index):
        if index == 1:
            signalled.extend(multiprocessing.active_children())
            for worker in signalled:
                os.kill(worker.pid, number)
        return original(module, batch, index)

    monkeypatch.setattr(Record, "training_step", step)
    same(undisturbed, train(tmp_path, workers=2))
    assert len(signalled) == 2
    for worker in signalled:
        worker.join(60)
        assert worker.exitcode is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_where_it_was(tmp_path, workers):
    undisturbed = train(tmp_path, 5, flip=True, accumulate=2)
    train(tmp_path, 3, flip=True, accumulate=2, workers=workers)
    same(undisturbed[3:], train(tmp_path, 5, flip=True, accumulate=2, workers=workers, resume=tmp_path / "last.ckpt"))


def test_a_global_batch_larger_than_the_data(tmp_path):
    source = ImageSet("few", torch.arange(5 * 4, dtype=torch.uint8).view(5, 1, 2, 2))
    (_, images, _), *_ = train(tmp_path, 1, source=source, batch_size=12)
    counts = (images[:, 0, 0, 0] + 1).mul(127.5).round().div(4).long().bincount(minlength=5)
    assert counts.tolist() in [
        [2 + (k in extra) for k in range(5)] for extra in [(a, b) for a in range(5) for b in range(a)]
    ]


class Uniform(Source):
    """A source of another package: new images of uniform noise, with nothing beyond the required attributes."""

    name, shape, n, num_classes, sigma_data, digest, labels = "uniform", (1, 2, 2), None, 0, 0.58, "0", None
    images = torch.zeros(4, *shape)

    def __getitem__(self, slot):
        return Batch(2 * slot.rows.rand("uniform", *self.shape) - 1, None, slot.rows)


def test_a_source_needs_only_the_required_attributes(tmp_path):
    batches = train(tmp_path, 2, source=Uniform(), resident="auto")
    assert [(images.shape, labels) for _, images, labels in batches] == [((12, 1, 2, 2), None)] * 2
    assert not torch.equal(batches[0][1], batches[1][1])
    with pytest.raises(DataError, match="uniform has no captions"):
        DataModule(Uniform(), 4, caption_dropout=0.1)


def test_overfit_steps_repeat(tmp_path):
    batches = [images for _, images, _ in train(tmp_path, 5, overfit_steps=2)]
    assert torch.equal(batches[0], batches[2])
    assert torch.equal(batches[1], batches[3])
    assert not torch.equal(batches[0], batches[1])


def test_images_are_scaled_to_minus_one_to_one(tmp_path):
    source = ImageSet("all values", torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16))
    (_, images, labels), *_ = train(tmp_path, 1, source=source, batch_size=1)
    assert images.dtype == torch.float32
    assert labels is None
    torch.testing.assert_close(images.flatten().double(), torch.linspace(-1, 1, 256, dtype=torch.float64))
    assert (images.min(), images.max()) == (-1, 1)


def test_flips_mirror_half_of_the_images_by_their_rows(tmp_path):
    source = ImageSet("ramp", torch.arange(4, dtype=torch.uint8).expand(7, 3, 4, 4).contiguous())
    (_, images, _), *_ = train(tmp_path, 1, source=source, batch_size=1000, flip=True)
    mirrored = images[:, 0, 0, 0] > images[:, 0, 0, 3]
    assert torch.equal(mirrored, BatchRandom(4, 0, 1000, slice(0, 1000)).rand("flip") < 0.5)
    assert torch.equal(images[mirrored][0], images[~mirrored][0].flip(-1))
    assert 400 < mirrored.sum() < 600


@pytest.mark.parametrize(
    ("source", "conditional", "classes"), [(digits(), True, 10), (digits(), False, 0), (Mixture(components=3), True, 3)]
)
def test_labels_are_handed_over_when_asked_for(tmp_path, source, conditional, classes):
    module = DataModule(source, 4, conditional=conditional)
    assert (module.num_classes, module.shape) == (classes, source.shape)
    (_, _, labels), *_ = train(tmp_path, 1, source=source, conditional=conditional)
    assert (labels is None) == (not conditional)
    assert labels is None or (labels.dtype == torch.int64 and labels.max() < classes)


@pytest.mark.parametrize(("stated", "warns"), [(0.75, False), (0.7, False), (0.5, True), (1.0, True), (None, False)])
def test_a_wrong_sigma_data_is_warned_of(stated, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DataModule(digits(), 4, sigma_data=stated, root="here").setup("fit")
    assert [str(w.message) for w in caught if "sigma_data" in str(w.message)] == (
        [
            f"data.sigma_data is {stated}, but digits (here) measures 0.752: the preconditioning is off; "
            "set data.sigma_data=0.752"
        ]
        if warns
        else []
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0 is not .* >= 1"),
        ({"workers": -1}, ValueError, "workers=-1 is not .* >= 0"),
        ({"overfit_steps": -1}, ValueError, "overfit_steps=-1 is not .* >= 0"),
        ({"resident": "yes"}, ValueError, "resident=yes is not .* true, false, or auto"),
        ({"image_size": 32}, DataError, "data.image_size is 32, but digits has 8: set data.image_size=8"),
        ({"channels": 3, "root": "here"}, DataError, r"data.channels is 3, but digits \(here\) has 1"),
        ({"num_classes": 3, "name": "numbers"}, DataError, "data.num_classes is 3, but numbers has 10"),
        (
            {"source": ImageSet("plain", torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), "conditional": True},
            DataError,
            "data.conditional is true, but plain has no classes: set data.conditional=false",
        ),
        ({"source": Mixture(), "overfit_steps": 1}, DataError, "mixture has no fixed images: set it to 0"),
        ({"source": Mixture(), "resident": True}, DataError, "mixture is not a set of decoded images: leave"),
    ],
)
def test_refuses_what_the_data_cannot_give(arguments, error, message):
    with pytest.raises(error, match=message):
        DataModule(**{"source": digits(), "batch_size": 4, **arguments})


def test_a_batch_that_cannot_be_divided_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"data.batch_size=12 is .* a multiple of 5"):
        train(tmp_path, accumulate=5)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"resident": "auto"}, {"resident": False, "workers": 2}, {"resident": False}])
def test_images_on_a_gpu_are_those_on_the_cpu(tmp_path, monkeypatch, options):
    expected = train(tmp_path, flip=True)
    monkeypatch.setitem(QUIET, "accelerator", "gpu")
    got = [(step, images.cpu(), labels) for step, images, labels in train(tmp_path, flip=True, **options)]
    same(expected, got)
