"""Every script runs on the smallest settings, prints its table, and writes what it prints."""

import json
from pathlib import Path
from types import SimpleNamespace

import cifar10_small
import derivative
import features
import frechet
import gpu
import host_reads
import image_files
import jobs
import jpeg_draft
import numpy as np
import pytest
import quality_report
import random_numbers
import rounding
import sample
import sample_peers
import scaling
import startup
import time_to_quality
import torch
import train_step
from case import Case
from jobs import run
from PIL import Image

TINY = ["network.model_channels=8", "network.channel_mult=[1]", "network.num_blocks=1", "data.batch_size=4"]
FAST = ["--rounds", "1", "--threads", "1", "--device", "cpu"]
QUICK = [*FAST, "--steps", "1", "--warm", "1"]


def found_by(script, tmp_path, capsys, *arguments):
    """What a script returns, which must be what it writes and as many lines as it prints."""
    file = tmp_path / "found.json"
    found = script.main([*arguments, "--json", str(file)])
    assert json.loads(file.read_text()) == found
    assert {"command", "date", "device", "threads", "torch"} <= set(found)
    assert capsys.readouterr().out.count("\n|") >= len(found["rows"]) + 2
    return found


def test_a_step_s_parts_are_the_whole_step(tmp_path, capsys):
    found = found_by(train_step, tmp_path, capsys, *QUICK, "--levers", "no_ema", "channels_last", "--overrides", *TINY)
    levers = ["none", "no_ema", "channels_last", "bare loop in Lightning", "bare loop"]
    assert [row["lever"] for row in found["rows"]] == levers
    assert found["rows"][-1]["of_bare_loop"] == 1
    for row in found["rows"]:
        assert sum(row["parts"].values()) == pytest.approx(row["seconds"])
        assert sum(row["shares"].values()) == pytest.approx(1)
        left_out = {"no_ema": "EMA"} | dict.fromkeys(train_step.BARE_LOOPS, "metrics")
        assert all((row["parts"][part] > 0) == (part != left_out.get(row["lever"])) for part in train_step.PARTS)
        assert row["speed_up"] == pytest.approx(found["rows"][0]["seconds"] / row["seconds"])


@pytest.mark.parametrize("model", train_step.MODELS)
def test_the_host_reads_no_number_of_a_step(model):
    flops, reads = Case([f"model={model}", "++recipe.N=3", *TINY], "cpu").audit()
    assert reads == []
    assert flops > 0


@pytest.mark.parametrize(
    "read",
    [
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.cpu,
        torch.nonzero,
        lambda loss: bool(loss > 0),
        lambda loss: loss[loss > 0],
    ],
)
def test_a_read_is_found(read):
    case = Case(["model=ict", *TINY], "cpu")
    loss = case.method.loss
    case.method.loss = lambda *arguments: (read(loss(*arguments).detach().mean()[None]), loss(*arguments))[1]
    assert len(case.audit()[1]) == 1


def test_a_read_within_a_derivative_is_found():
    case = Case(["model=sct", *TINY], "cpu")
    raw = case.method.model.raw
    case.method.model.raw = lambda x, *arguments: (x.mean().item(), raw(x, *arguments))[1]
    assert "_local_scalar_dense" in case.audit()[1]


def test_numbers_of_the_host_may_be_read():
    with host_reads.host_reads(Case(["model=ict", *TINY], "cpu").method, "cpu") as reads:
        torch.rand(3).sum().item()
    assert reads == []


def test_derivatives(tmp_path, capsys):
    found = found_by(derivative, tmp_path, capsys, *FAST, "--overrides", *TINY)
    forward, backward, exact, difference = found["rows"]
    assert forward["forwards"] == 1
    assert backward["forwards"] > 1
    assert exact["error"] < 1e-5 < difference["error"] < 1e-1


def test_sampling(tmp_path, capsys):
    steps = ["--steps", "1", "2", "--batches", "1", "3", "--repeats", "1", "--levers", "bf16+channels_last"]
    found = found_by(sample, tmp_path, capsys, *FAST, *steps, "--overrides", *TINY)
    assert len(found["rows"]) == 8
    for row in found["rows"]:
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])


def test_sampling_beside_others(tmp_path, capsys):
    pytest.importorskip("diffusers")
    size = ["--images", "3", "--batch", "2", "--overrides", "data.image_size=8", "network.attn_resolutions=[]"]
    found = found_by(sample_peers, tmp_path, capsys, *FAST, *size)
    assert [(row["name"], row["files"]) for row in found["rows"][:2]] == [("bare loop", "no"), ("bare loop", "PNG")]
    assert len(found["rows"]) == 8
    assert all(row["cpu_milliseconds"] > 0 for row in found["rows"])


def test_a_process_that_ends_otherwise_than_it_should():
    assert min(startup.process(*startup.TRAIN, "trainer.max_step=1", ends=2)) > 0
    with pytest.raises(RuntimeError, match="ended with 2, not 0"):
        startup.process(*startup.TRAIN, "trainer.max_step=1")


@pytest.mark.slow
def test_starting(tmp_path, capsys):
    found = found_by(startup, tmp_path, capsys, *FAST, "--jobs", "2", "--overrides", *TINY)
    assert len(found["rows"]) == 6
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 for row in found["rows"])


@pytest.mark.slow
def test_two_processes(tmp_path, capsys):
    size = ["--batch", "4", "--steps", "4", "--compute", "0.5"]
    found = found_by(scaling, tmp_path, capsys, *FAST, *size, "--overrides", *TINY[:2])
    assert [row["processes"] for row in found["rows"]] == [1, 2, 8, 64]
    assert found["rows"][0]["efficiency"] == 1


def test_on_paper_the_exchange_hides_behind_the_backward_pass():
    hidden = scaling.step_on_paper(8, compute=1.0, backward=0.5, gradient_bytes=1e9, bandwidth=10e9)
    assert hidden == pytest.approx(1 + 2 * 7 / 8 * scaling.BUCKET / 10e9)  # all but the last bucket
    assert scaling.step_on_paper(8, 1.0, 0.5, 1e10, 10e9) == pytest.approx(1 + 1.75 - 0.5)
    assert scaling.step_on_paper(1, 1.0, 0.5, 1e10, 10e9) == 1


def test_half_precision_rounds_small_differences_away(tmp_path, capsys):
    run(tmp_path / "run", *jobs.TINY, "data=digits", *TINY, "recipe.lr=0.1", "recipe.ema=0", "trainer.max_steps=3")
    fast = ["--n", "8", "--halvings", "8", "--device", "cpu", "--threads", "1"]
    found = found_by(rounding, tmp_path, capsys, str(tmp_path / "run"), *fast)
    errors = {(row["gap"], row["precision"]): row["error"] for row in found["rows"]}
    assert errors[0.5, "bf16"] < 0.1 < errors[2**-8, "bf16"]
    assert all(errors[gap, "float16"] < errors[gap, "bf16"] for gap, _ in errors)


def test_all_that_is_asked_of_a_gpu(tmp_path, capsys):
    overrides = ["data=digits", "network=small", *TINY]
    levers = ["--levers", "bf16", "on_host"]
    found = found_by(gpu, tmp_path, capsys, *QUICK, "--long", "3", *levers, "--overrides", *overrides)
    assert [row["lever"] for row in found["rows"]] == ["none", "bf16", *train_step.BARE_LOOPS]
    assert [row["model"] for row in found["methods"]] == ["sct", "sct", "meanflow", "meanflow"]
    assert found["long"][0]["finite"]
    assert found["long"][0]["steps"] == 3
    assert 0 < found["numerics"][0]["gradient"] < 0.2
    assert set(found["not_measured"]) == {"memory", "on_host", "fp16", "from nothing"}


@pytest.mark.slow
def test_training_from_nothing(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8)
    for k, image in enumerate(images):
        folder = tmp_path / "cifar" / ("train", "test")[k // 100] / str(k % 10)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{k}.png")
    fast = ["network=small", *TINY, "evaluation.n=20", "features=identity"]
    arguments = [*FAST, "--levers", "bf16", "--minutes", "0.0001", "--json", str(tmp_path / "found.json")]
    gpu.from_nothing(
        "bf16", gpu.parser().parse_args([*arguments, "--cifar10", str(tmp_path / "cifar"), "--overrides", *fast])
    )
    rows = [json.loads(line) for line in (tmp_path / "found/results.jsonl").read_text().splitlines()]
    assert {row["choice"] for row in rows} == {*gpu.FROM_NOTHING}


@pytest.mark.slow
def test_quality_against_minutes(tmp_path, capsys, monkeypatch):
    choices = ["model=ict", "model=cd teacher=run teacher.path=TEACHER"]
    small = [*["--points", "2", "--rounds", "1", "--probe", "3", "--overrides"], *TINY, "evaluation.n=20"]
    where = ["--folder", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    run = ["--minutes", "0.001", "--seeds", "0", *where, *small]
    time_to_quality.main([*run, "--choices", *choices])
    assert capsys.readouterr().out.count("| `model=") == 2
    file = tmp_path / "results" / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = {(row["choice"].split()[0], row["minutes"]): row for row in rows}
    assert next(iter(found)) == ("model=ict", 0.001)
    assert sorted(found) == [("model=cd", 0.001), ("model=ict", 0.001), ("model=teacher", 0.0005)]
    assert all(row["after_minutes"] == row["minutes"] and row["step"] == row["of_steps"] for row in found.values())
    assert all(row["fd"]["1"] > 0 for (model, _), row in found.items() if model != "model=teacher")
    seconds = json.loads((tmp_path / "results" / "calibration.json").read_text())["seconds"]
    assert list(seconds) == [*choices, "model=teacher"]
    assert all(value > 0 for value in seconds.values())
    with monkeypatch.context() as patched:  # what has been trained is not trained again
        patched.setattr(time_to_quality.subprocess, "run", None)
        time_to_quality.main([*run, "--choices", *choices])
    assert len(file.read_text().splitlines()) == len(rows)
    assert (tmp_path / "results" / "curves_0.001.png").stat().st_size > 10_000


def test_a_wrong_choice_is_refused_before_the_first_is_trained(capsys):
    with pytest.raises(SystemExit):
        time_to_quality.main(["--choices", "model=ict", "model=ict network.model_channels=48"])
    assert "network.model_channels=48 is not allowed: " in capsys.readouterr().err


def test_a_stage_takes_half_of_the_minutes_of_its_choice():
    tcm = "model=tcm teacher=run teacher.path=ECT"
    assert time_to_quality.with_stages(tcm) == [tcm, time_to_quality.STAGES["ECT"], "model=teacher"]
    assert [time_to_quality.own_minutes(choice, 2) for choice in (tcm, "model=ict")] == [1, 2]


def test_quality_is_reported_over_seeds_and_the_best_comes_first(tmp_path):
    def row(choice, seed, step, **fd):
        fixed = {"minutes": 2.0, "of_steps": 20, "metric": "fd9", "floor": 5.0, "after_minutes": step / 10}
        return fixed | {"choice": choice, "seed": seed, "step": step, "fd": {n[1:]: value for n, value in fd.items()}}

    rows = [row("model=mcm", 0, 20, _2=3.0), row("model=ict", 0, 10, _1=9.0), row("model=ict", 0, 20, _1=6.0, _2=4.0)]
    rows += [row("model=ict", 1, 20, _1=8.0, _2=4.0), row("model=cd", 0, 20, _1=1.0, _2=2.0)]
    heading, _, *table = quality_report.report(tmp_path, rows).splitlines()
    assert heading == "## 2 min, fd9, floor 5"
    assert table[2:] == [
        "| `model=cd` | 20 | 1 | 1 | 2 |",
        "| `model=ict` | 20 | 2 | 7 ± 1.4 | 4 ± 0 |",
        "| `model=mcm` | 20 | 1 |  | 3 |",
    ]
    assert (tmp_path / "curves_2.png").stat().st_size > 10_000


def test_a_draft_changes_a_photograph_little(tmp_path, capsys):
    size = ["--width", "300", "--height", "280", "--image-size", "16"]
    full, draft = found_by(jpeg_draft, tmp_path, capsys, *FAST, *size)["rows"]
    assert full["mean_change"] == 0 < draft["mean_change"] < 2


def test_the_distance_is_that_of_torch_fidelity(tmp_path, capsys):
    found = found_by(frechet, tmp_path, capsys, *FAST, "--images", "300", "--features", "64")
    theirs, ours = (row["distance"] for row in found["rows"])
    assert ours == pytest.approx(theirs, rel=1e-6)  # torch-fidelity takes the means in float32


def test_features_are_the_same_in_every_layout_and_number_of_images(tmp_path, capsys):
    found = found_by(features, tmp_path, capsys, *FAST, "--images", "5")
    ways = [(5, False), (5, True), (4, False), (4, True)]
    assert [(row["call"], row["channels_last"]) for row in found["rows"]] == ways
    assert all(row["change"] < 1e-4 for row in found["rows"])


def test_a_process_draws_its_own_rows(tmp_path, capsys):
    found = found_by(
        random_numbers, tmp_path, capsys, *FAST, *["--batch", "64", "--shape", "1", "8", "8", "--processes", "1", "4"]
    )
    one, four = found["rows"]
    assert one["megabytes"] == one["megabytes_whole"] == 4 * four["megabytes"]


def test_image_files_extrapolate_to_a_large_set(tmp_path, capsys, monkeypatch):
    def run(command, **options):
        if "--measure" not in command:  # a question about the machine
            return real(command, **options)
        part, folder = command[command.index("--measure") + 1 :][:2]
        measured.append(part)
        return SimpleNamespace(stdout=json.dumps(image_files.measure(part, Path(folder), workers=0)))

    measured, real = [], image_files.subprocess.run
    monkeypatch.setattr(image_files.subprocess, "run", run)  # starting a process costs seconds
    monkeypatch.setattr(image_files.time, "sleep", lambda seconds: None)
    found = found_by(image_files, tmp_path, capsys, "--images", "110", "120", "--size", "8", "--threads", "1")
    assert measured == [*image_files.PARTS] * 2
    lines = {row["part"]: row["images"] for row in found["rows"] if row["part"].endswith("(line)")}
    assert lines == dict.fromkeys(["first (line)", "start (line)", "torchvision (line)"], image_files.LARGE)
    assert all(row["seconds"] > 0 for row in found["rows"][: 2 * len(image_files.PARTS)])


@pytest.mark.slow
def test_a_teacher_and_its_student_on_a_cpu(tmp_path, monkeypatch):
    """With 20 images of noise in each set: every stage, then the report of finished stages."""
    pytest.importorskip("efficientnet_lite_pytorch")
    for split in ("train", "test"):
        for name in "abcdefghij":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i}.png")
    tiny = ["network.model_channels=8", "data.batch_size=4"]
    arguments = ["--root", str(tmp_path / "images"), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    arguments += ["--hours", "1e-9", "--n", "8", "--points", "1", "--overrides", *tiny]
    for _ in range(2):
        cifar10_small.main(arguments)
        assert {file.name for file in (tmp_path / "out").iterdir()} == {"samples.png", "curve.png", "table.txt"}
        assert "| student, 1 step | 1 |" in (tmp_path / "out" / "table.txt").read_text()
        monkeypatch.setattr(cifar10_small, "command", None)  # nothing is trained or scored again
