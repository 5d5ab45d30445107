"""Parts that users write themselves: what they may expect, and what is refused instead of ignored."""

import csv
import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch
from jobs import TINY, command, run
from lightning.pytorch.loggers import Logger
from torch import nn

from consistency_models.callbacks.ema import WeightEMA
from consistency_models.callbacks.step import StepCallback
from consistency_models.data import ImageSet, check_facts, digits
from consistency_models.errors import ConfigError, DataError, Exit
from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.features import Identity
from consistency_models.evaluation.metrics import FrechetDistance
from consistency_models.methods.base import Method
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM
from consistency_models.storage.checkpoints import read
from consistency_models.trust import is_trusted

SHORT = (*TINY, "data=mixture", "data.batch_size=8", "trainer.max_steps=4")


class Counter(StepCallback):
    """Counts steps, and keeps the count in checkpoints."""

    def __init__(self):
        self.count = 0

    def after_step(self, trainer, method, batch, step):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


class Lines(Logger):
    """Keeps the steps of the rows that it receives."""

    name, version, rows = "lines", 0, []

    def log_metrics(self, metrics, step=None):
        self.rows.append(step)

    def log_hyperparams(self, *_):
        pass


class Scaled(Identity):
    def __init__(self, data, scale):
        super().__init__(data)
        self.scale = scale

    def forward(self, images):
        return self.scale * super().forward(images)


@pytest.fixture(autouse=True)
def package(monkeypatch):
    own = ModuleType("own_parts")
    own.Counter, own.Lines, own.Scaled = Counter, Lines, Scaled
    monkeypatch.setitem(sys.modules, "own_parts", own)


def test_a_file_with_the_name_of_one_of_the_project_is_refused(tmp_path):
    for name in ("loss/own.yaml", "loss/l2.yaml"):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("_target_: consistency_models.losses.distances.SquaredL2\n")
        code, output = command(tmp_path, "train.py", "--config-dir=mine", "trainer.max_step=4")
        assert code == Exit.BAD_INPUT
        if name == "loss/l2.yaml":
            assert "loss/l2.yaml is not allowed: the project has a file of this name" in output
        else:
            assert "trainer.max_step=4 is not allowed" in output


def test_words_after_a_flag_are_words(tmp_path):
    code, output = command(tmp_path, "train.py", "model=ict", "--config-dir", str(tmp_path), "trainer.max_step=4")
    assert code == Exit.BAD_INPUT
    assert "Did you mean trainer.max_steps=4?" in output


def test_the_state_of_a_callback_in_a_checkpoint_is_that_of_its_step(tmp_path):
    assert run(tmp_path, *SHORT, callbacks={"counter": {"_target_": "own_parts.Counter"}}) == Exit.DONE
    states = read(tmp_path / "checkpoints/last.ckpt")["trainer"]["callbacks"]
    assert states["Counter"] == {"count": 4}


def test_two_callbacks_with_one_place_in_checkpoints_are_refused(tmp_path, capsys):
    both = {name: {"_target_": "own_parts.Counter"} for name in ("first", "second")}
    assert run(tmp_path, *SHORT, callbacks=both) == Exit.BAD_INPUT
    assert "callbacks.second=Counter is not allowed: callbacks.first has the same state_key" in capsys.readouterr().err


def test_a_logger_of_ones_own_is_built(tmp_path):
    Lines.rows.clear()
    assert run(tmp_path, *SHORT, "+logger.lines._target_=own_parts.Lines") == Exit.DONE
    assert Lines.rows == [1, 2, 3, 4]


def test_what_a_callback_logs_is_in_the_rows_that_metrics_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(Counter, "on_train_batch_end", lambda self, trainer, method, *_: method.log("mine", 7.0))
    arguments = [line for line in SHORT if "every_n_steps" not in line] + ["callbacks.metrics.every_n_steps=2"]
    assert run(tmp_path, *arguments, callbacks={"counter": {"_target_": "own_parts.Counter"}}) == Exit.DONE
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [row["mine"] for row in csv.DictReader(file) if row.get("mine")] == ["7.0", "7.0"]


def test_labels_outside_the_classes_are_refused():
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    for labels in ([0, 1, 2], [0, -1, 1]):
        with pytest.raises(ValueError, match="labels of own must be 0 to 1"):
            ImageSet("own", images, torch.tensor(labels), num_classes=2)


def test_the_settings_of_an_extractor_are_part_of_its_space(tmp_path, monkeypatch):
    """Otherwise the floor of one is that of another, from the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    floors = [
        Evaluation(digits(), lambda data, scale=scale: Scaled(data, scale), [FrechetDistance()]).floor()[0].value
        for scale in (1.0, 10.0)
    ]
    assert floors[1] == pytest.approx(100 * floors[0], rel=1e-3)


class NoFacts:
    name = "own"

    def __call__(self, generated, reference):
        return 0.0


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ([FrechetDistance(), FrechetDistance()], "two of them have one name"),
        ([NoFacts()], "lacks the attribute needs_labels"),
    ],
)
def test_metrics_that_cannot_be_told_apart_or_used_are_refused(metrics, reason):
    with pytest.raises(ConfigError, match=f"features.metrics=.* {reason}"):
        Evaluation(digits(), Identity, metrics)


def test_a_network_of_another_shape_is_refused():
    class Flat(nn.Module):
        def forward(self, x, *_):
            return x.mean((2, 3), keepdim=True)

    with pytest.raises(ValueError, match=r"Flat must return \(2, 1, 8, 8\); got \(2, 1, 1, 1\)"):
        Preconditioned(Flat(), EDM())(torch.zeros(2, 1, 8, 8), 1.0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("distance", r"a distance of 8 images must have shape \(8,\); SquaredL2 has \(\)"),
        ("teacher", "calls a teacher: declare needs_teacher = True"),
        ("target", r"target and online output must have one shape; got \(8, 1, 1, 1\) and \(8, 2, 1, 1\)"),
        ("loss", r"ImprovedConsistencyTraining.loss must have shape \(8,\), one number for each image; got \(\)"),
        ("optimizers", "a method has one optimiser, that of optimizer=NAME; override parameter_groups"),
    ],
)
def test_wrong_parts_stop_the_first_step(part, message, tmp_path, monkeypatch, capsys):
    from consistency_models.losses.distances import SquaredL2
    from consistency_models.methods.ict import ImprovedConsistencyTraining

    def of_another_shape(self, step):
        return step.x[:, :1]

    def of_the_batch(self, step, online, target):
        return (online - target).square().mean()

    def own_optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    wrong = {
        "target": (ImprovedConsistencyTraining, "target", of_another_shape),
        "loss": (ImprovedConsistencyTraining, "loss", of_the_batch),
        "optimizers": (ImprovedConsistencyTraining, "configure_optimizers", own_optimizer),
        "distance": (SquaredL2, "forward", lambda self, x, y: (x - y).square().mean()),
        "teacher": (ImprovedConsistencyTraining, "target", lambda self, step: self.teacher(step.x_t, step.levels.high)),
    }
    monkeypatch.setattr(*wrong[part])
    assert run(tmp_path, *SHORT, "loss=l2", "weighting=uniform") == Exit.UNEXPECTED
    with pytest.raises(ValueError, match=message):
        raise ValueError(capsys.readouterr().err)


def test_a_part_has_a_learning_rate_of_its_own(tmp_path, monkeypatch):
    def groups(self):
        first, *others = self.trainable
        return [{"params": [first], "lr": 1e-5}, {"params": others}]

    monkeypatch.setattr(Method, "parameter_groups", groups)
    assert run(tmp_path, *SHORT, "optimizer.lr=1e-3", "learning_rate=constant") == Exit.DONE
    saved = read(tmp_path / "checkpoints/last.ckpt")["optimizer"]["param_groups"]
    assert len(saved[0]["params"]) == 1
    assert saved[0]["lr"] == pytest.approx(0.01 * saved[1]["lr"])


def test_a_network_that_would_ignore_the_classes_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("consistency_models.app.run.build_model", lambda config: Preconditioned(nn.Identity(), EDM()))
    assert run(tmp_path, *SHORT, "data=digits", "data.conditional=true", "network.model_channels=8") == Exit.BAD_INPUT
    assert "Identity has no classes in its attribute num_classes, so it would ignore" in capsys.readouterr().err


@pytest.mark.parametrize("profile", [{"names": ["a", "b"]}, {}])
def test_an_average_without_a_decay_is_refused(profile):
    with pytest.raises(ConfigError, match="ema=SimpleNamespace is not allowed: its names are"):
        WeightEMA(SimpleNamespace(**profile, decays=lambda step, batch_size: [0.9]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "must return an ImageSet, or another Source, of consistency_models.data; got nothing"),
        ([1, 2], "got a list"),
        (
            ImageSet("own", torch.zeros(3, 1, 4, 6, dtype=torch.uint8)),
            "images of 4x6 pixels; networks take square",
        ),
    ],
)
def test_a_source_that_cannot_be_used_is_refused(source, message):
    with pytest.raises(DataError, match=message):
        check_facts(source)


def test_pictures_that_fail_cost_no_step(tmp_path, monkeypatch):
    class Pictures(StepCallback):
        pauses, works = True, False

        def after_step(self, trainer, method, batch, step):
            if step == 2 and not self.works:
                raise RuntimeError("no picture")

    sys.modules["own_parts"].Pictures = Pictures
    steps, own = (*SHORT, "callbacks.checkpoint.every_n_steps=100"), {"pictures": {"_target_": "own_parts.Pictures"}}
    assert run(tmp_path / "whole", *steps) == Exit.DONE
    assert run(tmp_path / "run", *steps, callbacks=own) == Exit.UNEXPECTED
    monkeypatch.setattr(Pictures, "works", True)
    assert run(tmp_path / "run", *steps, f"ckpt_path={tmp_path / 'run'}", callbacks=own) == Exit.DONE
    with open(tmp_path / "run/metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    whole, resumed = (read(tmp_path / name / "checkpoints/last.ckpt")["model"] for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_misspelled_hook_or_fact_is_told():
    with pytest.warns(UserWarning, match="Mine.need_teacher has no meaning for Method: did you mean needs_teacher?"):
        type("Mine", (Method,), {"need_teacher": True})
    with warnings.catch_warnings(action="error"):
        type("Good", (Method,), {"needs_teacher": True, "tangent": None, "rate": 0.1, "_targets": []})


def test_a_single_name_of_a_package_may_be_trusted():
    assert is_trusted("own_parts.Scaled", "own_parts")
    assert not is_trusted("o.Scaled", "own_parts")


def test_the_command_that_scores_a_run_names_the_packages_to_trust(tmp_path, capsys):
    chosen = ("features=identity", "features.extractor._target_=own_parts.Scaled", "+features.extractor.scale=2.0")
    assert run(tmp_path, *SHORT, *chosen) == Exit.DONE
    assert "score it  CONSISTENCY_MODELS_TRUST=own_parts python eval.py run=" in capsys.readouterr().out
