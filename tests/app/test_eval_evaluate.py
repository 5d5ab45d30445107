"""task=evaluate: the same numbers whatever makes the images, in the form that others read."""

import json
import shutil
import sys

import pytest
import torch
from evals import DIGITS, POINTS, evaluate, trained
from jobs import composed, config_of, forkserver

from consistency_models import load
from consistency_models.app.tasks import sample_workers
from consistency_models.app.tasks.evaluate import eval_config
from consistency_models.errors import Exit
from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.compare import main as compare
from consistency_models.evaluation.compare import read_runs, table

pytestmark = pytest.mark.usefixtures("rough_pictures")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("digits"), *DIGITS)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("points"), *POINTS, "model=cd", "teacher=exact")


def results(folder, *overrides):
    assert evaluate(folder, *overrides) == Exit.DONE
    found = json.loads((folder / "evaluation/evaluation.json").read_text())
    return found, {result["metric"]: result for result in found["results"]}


def values(found):
    return {name: result["value"] for name, result in found.items()}


def test_processes_and_batches_change_nothing(digits, monkeypatch):
    alone = values(results(digits, "steps=[2]", "n=300", "batch_size=64")[1])
    assert values(results(digits, "steps=[2]", "n=300", "batch_size=7")[1]) == pytest.approx(alone, rel=1e-6)
    with monkeypatch.context() as patch:  # neither the real nor the generated images are seen by this process
        patch.setattr(Evaluation, "extract", None)
        patch.setattr(sample_workers, "get_context", lambda _: forkserver())  # test_eval_sample.py spawns
        divided = values(results(digits, "steps=[2]", "n=300", "devices=2")[1])
    assert divided == pytest.approx(alone, rel=1e-6)


def test_half_precision_is_recorded(points):
    content, found = results(points, "steps=[1]", "n=50", "precision=bf16-mixed")
    assert content["precision"] == "bf16-mixed"
    assert "weights 0.995, bf16-mixed, seed 0" in (points / "evaluation/evaluation.md").read_text()
    exact, expected = results(points, "steps=[1]", "n=50")
    assert exact["precision"] == "32-true"
    assert values(found) != values(expected)
    assert values(found) == pytest.approx(values(expected), rel=0.05)


def test_seeds_are_indices_and_repeats_are_sets_of_them(points):
    content, sets = results(points, "steps=[1]", "n=50", "repeats=3")
    assert content["sets"] == ["0-49", "50-99", "100-149"]
    name = "eval/sw50_identity_train_1step"
    each = [values(results(points, "steps=[1]", f"seeds={one}")[1])[name] for one in content["sets"]]
    assert sets[name]["value"] == pytest.approx(sum(each) / 3)
    assert sets[name]["best"] == pytest.approx(min(each))
    assert sets[name]["spread"] > 0
    _, listed = results(points, "steps=[1]", "seeds=[0-49,50-99,100-149]")
    assert values(listed) == values(sets)


def test_what_is_written(points):
    content, found = results(points, "steps=[1,2,4]", "n=40")
    keys = {"metric", "value", "spread", "n", "features", "reference", "reference_digest", "sampler", "steps", "sigmas"}
    assert all(keys | {"nfe", "seconds", "best", "is_distance"} == result.keys() for result in content["results"])
    assert [found[f"eval/energy40_identity_train_{n}step"]["nfe"] for n in (1, 2, 4)] == [1, 2, 4]
    errors = [name for name in found if "ode_error" in name or "self_consistency" in name]
    assert len(errors) == 5  # once: a consistency function is the same in any number of steps
    (curve,) = content["ode_error"]
    assert curve["reference"] == "exact"
    assert len(curve["sigmas"]) == len(curve["rms"]) == len(curve["median"]) == len(curve["self_consistency"]) + 1
    mean_square = sum(x * x for x in curve["rms"]) / len(curve["rms"])
    assert found["eval/ode_error8_exact_1step"]["value"] == pytest.approx(mean_square**0.5)
    written = points / "evaluation"
    assert all((written / name).stat().st_size for name in ("quality.png", "ode_error.png", "samples.png"))
    lines = (written / "evaluation.md").read_text()
    assert all(name in lines for name in found)


def test_levels_in_place_of_steps(points):
    _, found = results(points, "sigmas=[80,24.4,5.84]", "n=20")
    assert found["eval/sw20_identity_train_3step"]["sigmas"] == [80.0, 24.4, 5.84]
    chosen = values(results(points, "sigmas=[80,0.821]", "n=20")[1])
    usual = values(results(points, "steps=[2]", "n=20")[1])
    assert chosen["eval/sw20_identity_train_2step"] == usual["eval/sw20_identity_train_2step"]


def test_a_model_of_segments_has_its_own_steps(tmp_path, capsys):
    folder = trained(tmp_path, *POINTS, "model=mcm", "model.segments=3", "teacher=none", "init=random")
    _, found = results(folder, "n=20")
    own = found["eval/sw20_identity_train_3step"]
    assert (own["sampler"], own["nfe"]) == ("SegmentSampler", 3)
    capsys.readouterr()
    assert evaluate(folder, "n=20", "steps=[2]") == Exit.BAD_INPUT
    line = capsys.readouterr().err
    assert "a model of 3 segments" in line
    assert "sampler=consistency" in line
    assert evaluate(folder, "n=20", "sigmas=[80,1]") == Exit.BAD_INPUT
    assert results(folder, "n=20", "steps=[2]", "sampler=consistency")[1]["eval/sw20_identity_train_2step"]["nfe"] == 2
    _, again = results(folder, "n=20", "sampler=segments")  # segments and spacing are the run's
    assert again["eval/sw20_identity_train_3step"]["sigmas"] == own["sigmas"]
    assert evaluate(folder, "n=20", "sampler=segments", "steps=[2]") == Exit.BAD_INPUT


def test_a_flow_map_is_sampled_at_chosen_levels(tmp_path, capsys):
    folder = trained(tmp_path, *POINTS, "model=imm", "teacher=none", "init=random", "data.batch_size=8")
    found = results(folder, "sigmas=[80,0.7]", "n=20")[1]["eval/sw20_identity_train_2step"]
    assert (found["sampler"], found["sigmas"]) == ("FlowMapSampler", [80.0, 0.7])
    capsys.readouterr()
    assert evaluate(folder, "n=20", "sampler=consistency") == Exit.BAD_INPUT
    assert "Consistency.for_steps is not allowed: the model takes two times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sampler", "told"),
    [
        ("flow_map", "sampler=FlowMapSampler is not allowed: the model has one time"),
        ("ddim", "sampler.scalings=null is not allowed: the run's own sampler has none"),
        ("lcm", "sampler.scalings=null is not allowed: the run's own sampler has none"),
        ("{_target_:consistency_models.sampling.samplers.Heun}", "sampler._partial_=null is not allowed: a sampler is"),
    ],
)
def test_a_sampler_that_does_not_fit_the_model(points, sampler, told, capsys):
    assert evaluate(points, "n=20", f"{'++' * (sampler[0] == '{')}sampler={sampler}") == Exit.BAD_INPUT
    assert told in capsys.readouterr().err


def test_the_ode_is_not_measured_with_a_sampler_that_needs_noise(points):
    ancestral = "{_target_:consistency_models.sampling.samplers.Ancestral,_partial_:true}"
    _, found = results(points, "n=20", "steps=[3]", f"++sampler={ancestral}")
    assert found["eval/sw20_identity_train_3step"]["sampler"] == "Ancestral"
    assert not any("ode_error" in name for name in found)


def test_a_folder_that_cannot_be_written_is_told_before_sampling(points, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("consistency_models.app.tasks.evaluate.sample_sets", None)
    assert evaluate(points, "n=20") == Exit.BAD_INPUT
    assert "which does not permit it. Allowed: a run in a folder that can be written" in capsys.readouterr().err


def test_the_teacher_solves_its_ode(tmp_path):
    folder = trained(tmp_path / "teacher", *POINTS, "model=teacher")
    _, found = results(folder, "n=20", "steps=[18]")
    own = found["eval/sw20_identity_train_18step"]
    assert (own["sampler"], own["nfe"]) == ("Heun", 35)


def test_the_error_of_a_distilled_run_is_measured_while_its_teacher_is_there(tmp_path, caplog):
    teacher = trained(tmp_path / "teacher", *DIGITS, "model=teacher")
    student = trained(tmp_path / "cd", *DIGITS, "model=cd", "teacher=run", f"teacher.path={teacher}", steps=1)
    content, found = results(student, "n=20", "steps=[1]")
    assert found["eval/ode_error8_teacher_1step"]["value"] > 0
    assert content["ode_error"][0]["reference"] == "teacher"
    shutil.rmtree(teacher)
    content, found = results(student, "n=20", "steps=[1]")
    assert content["ode_error"] == []
    assert "does not exist" in caplog.text


def test_wandb_goes_on_with_the_run_and_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = trained(tmp_path / "run", *POINTS, "logger=default")
    (tmp_path / "run/evaluation").mkdir()
    identity = json.loads((folder / "summary.json").read_text())["wandb"]["id"]
    count = lambda: len(list((folder / "wandb").glob(f"offline-run-*-{identity}")))  # noqa: E731
    assert count() == 1
    (folder / "wandb" / "latest-run").unlink()
    results(folder, "n=20", "steps=[1]", "wandb=disabled")
    assert not (folder / "wandb/latest-run").exists()
    results(folder, "n=20", "steps=[1]")
    assert (folder / "wandb/latest-run").exists()
    (folder / "wandb" / "latest-run").unlink()
    monkeypatch.setitem(sys.modules, "wandb", None)
    results(folder, "n=20", "steps=[1]")
    assert not (folder / "wandb/latest-run").exists()


def test_runs_side_by_side(digits, points, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in (digits, points):
        results(folder, "n=20", "steps=[1,2]")
    capsys.readouterr()
    assert compare([str(digits), str(points)]) == 0
    out = capsys.readouterr().out
    assert all("/".join(folder.parts[-2:]) in out for folder in (digits, points))
    assert (tmp_path / "comparison_quality.png").exists()
    assert (tmp_path / "comparison_ode_error.png").exists()
    runs = read_runs([digits, points])
    column = [float(line.split("|")[5].split("±")[0]) for line in table(runs, "energy").splitlines()[2:6]]
    assert column == sorted(column)
    assert compare([str(digits), "--metric", "nonsense"]) == 2
    assert "Allowed: sw20_identity_train" in capsys.readouterr().err
    assert compare([str(tmp_path)]) == 2
    assert f"score the run with eval.py run={tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["mps", "cuda:99", "gpu"])  # no machine of the tests has them
def test_a_device_that_the_machine_does_not_have_is_one_line(device, tmp_path, capsys):
    folder = trained(tmp_path, *POINTS)
    capsys.readouterr()
    assert evaluate(folder, "n=20", f"device={device}") == Exit.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: device={device} is not allowed: ")
    assert line.endswith("Allowed: auto, or a device of this machine")


def test_a_missing_device_is_no_damage_of_the_file(tmp_path):
    with pytest.raises((RuntimeError, AssertionError)):  # AssertionError: torch without CUDA
        load(trained(tmp_path, *POINTS), device="cuda:99")


@pytest.mark.parametrize(("has_cuda", "device"), [(True, "cuda"), (False, "mps")])
def test_the_test_of_a_training_takes_the_kind_of_its_gpu(has_cuda, device, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    config = composed("train", f"paths.output={tmp_path}", "data=mixture", "trainer.accelerator=gpu")
    assert eval_config(config, str(tmp_path))["device"] == device


def test_a_test_after_training_takes_its_settings_from_conf(tmp_path):
    """Every key of eval.py's configuration, with its value there or that of the training."""
    train = config_of(tmp_path, "seed=3")
    found, typed = eval_config(train, "FOLDER"), composed("eval", "run=FOLDER", "paths.output=unused")
    del typed["paths"]
    own = {key: train["evaluation"][key] for key in ("steps", "n", "seed", "batch_size")}
    assert found == typed | own | {"device": found["device"], "show_traceback": train["show_traceback"]}


def test_more_images_than_the_memory_holds_are_one_line(points, capsys):
    assert evaluate(points, "steps=[1]", "seeds=0-999999999999999") == Exit.BAD_INPUT
    error = capsys.readouterr().err.splitlines()[-1]
    assert "images of a set=1000000000000000 is not allowed: 8,000,000 GB of images cannot be allocated" in error


def test_an_evaluation_of_fewer_images_does_not_replace_a_larger_one(points, tmp_path, caplog):
    folder = shutil.copytree(points, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    for n, expected in ((60, set()), (60, set()), (50, {"evaluation-1"}), (40, {"evaluation-1", "evaluation-2"})):
        content, _ = results(folder, "steps=[1]", f"n={n}")
        assert {file.stem for file in (folder / "evaluation").glob("evaluation-*.json")} == expected
    assert content["sets"] == ["0-39"]
    assert evaluate(folder, "steps=[4]", "n=40", "sampler=heun") == Exit.DONE
    assert evaluate(folder, "steps=[4]", "n=40", "sampler=heun", "+sampler.churn=10") == Exit.DONE
    assert (folder / "evaluation/evaluation-4.json").is_file()
    (earlier,) = read_runs([folder / "evaluation/evaluation-1.json"]).values()
    assert earlier.results[0]["metric"].startswith("eval/sw60")
    assert (folder / "evaluation/evaluation-1.md").is_file()
    assert f"other results, and is now {folder}/evaluation/evaluation-2.json" in caplog.text
