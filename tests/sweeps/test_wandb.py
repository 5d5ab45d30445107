"""What W&B is told: read back from the offline files, without a server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
import yaml
from jobs import ROOT, command
from packaging.version import Version

from consistency_models.app import dashboard, wandb_sweep
from consistency_models.app.checks import Composer, check

TINY = (
    *("data=mixture", "data.batch_size=16", "trainer=cpu", "trainer.max_steps=4", "evaluation.n=20"),
    *(
        "evaluation.ode_points=8",
        "callbacks.samples.every_n_steps=2",
        "callbacks.validation.every_n_steps=2",
        "callbacks.metrics.every_n_steps=1",
    ),
    *("callbacks.progress=null", "callbacks.checkpoint.every_n_steps=2", "callbacks.samples.points=20"),
)


def records(folder):
    """The records of the offline run in a run folder, as `wandb leet inspect` reads them, by type."""
    if Version(wandb.__version__) < Version("0.31"):
        pytest.skip("wandb reads its offline runs back as JSON since 0.31")
    (run,) = folder.glob("wandb/offline-run-*")
    line = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    found = {}
    for record in map(json.loads, done.stdout.splitlines()):
        found.setdefault(record["type"], []).append(record)
    return found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wandb")
    arguments = ["-m", "loss=l2,pseudo_huber", "seed=0,1", "tags=[mine]", *TINY]
    code, output = command(folder, "train.py", *arguments, WANDB_MODE="offline")
    assert code == 0, output
    (file,) = folder.glob("runs/*/*/jobs.csv")
    return file.parent


@pytest.fixture(scope="module")
def run(sweep):
    return records(sweep / "3")


def test_a_run_is_called_what_it_differs_in(sweep, run):
    told = run["run"][0]["run"]
    assert told["display_name"] == "loss=pseudo_huber seed=1"
    assert told["run_group"] == f"{sweep.parent.name}/{sweep.name}"
    assert told["job_type"] == "train"
    assert told["tags"] == ["mine", "ict", "mixture"]
    assert told["run_id"] == (sweep / "3/wandb_id").read_text()
    others = {records(sweep / job)["run"][0]["run"]["run_group"] for job in "012"}
    assert others == {told["run_group"]}


def test_its_configuration_is_nested_resolved_and_has_the_cell(sweep, run):
    config = run["run"][0]["run"]["config"]["update"]
    expected = yaml.safe_load((sweep / "3/config.yaml").read_text())
    assert {key: config[key] for key in expected} == expected
    assert config["cell"] == "loss=pseudo_huber"
    assert "${" not in json.dumps(expected)


def test_figures_pictures_and_axes(run):
    rows = [record["history"]["item"] for record in run["history"]]
    assert {"train/loss", "val/sw20_identity_train_1step", "curriculum/N"} <= set().union(*rows)
    for row in rows:
        if "trainer/global_step" in row and "images_seen" in row:
            assert row["images_seen"] == 16 * row["trainer/global_step"]
    kinds = [row["samples/1step._type"] for row in rows if "samples/1step._type" in row]
    assert kinds == ["images/separated"] * 2
    metrics = [record["metric"] for record in run["metric"]]
    axis = {each.get("name") or each.get("glob_name"): each for each in metrics}
    assert axis["val/sw*"]["step_metric"] == "images_seen"
    assert axis["train/*"]["step_metric"] == "trainer/global_step"
    assert axis["val/sw*"]["summary"] == {"last": True, "min": True}


@pytest.mark.parametrize(
    "line", ["sweeps=ict_distance", "sweeps=dcm_equal_calls", "model=ct,ict seed=0,1 data=mixture"]
)
def test_a_wandb_sweep_runs_the_same_jobs(line, tmp_path, monkeypatch):
    """What W&B's agent would type for each cell passes the checks, and gives the cells of the multirun."""
    import itertools

    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load(yaml.safe_dump(wandb_sweep.sweep_of(line.split(), ROOT, None, "minimize")))
    assert sweep["method"] == "grid"
    assert sweep["command"][:3] == ["${env}", "${interpreter}", "${program}"]
    composer = Composer("train", ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    typed = set()
    for cell in itertools.product(*(axis["values"] for axis in sweep["parameters"].values())):
        arguments = {"args": {name: {"value": value} for name, value in zip(sweep["parameters"], cell)}}
        swept = create_sweep_command_args(arguments)["args_no_hyphens"]
        words = [w for word in sweep["command"][3:] for w in (swept if word == "${args_no_hyphens}" else [word])]
        check("train", composer, words)
        typed.add(frozenset(words) - {"hydra.mode=RUN"})
    overrides = composer.parse(line.split())
    config = composer.compose([each for each in overrides if not each.is_sweep_override()])
    cells = {frozenset(str(each.input_line) for each in cell) for cell in composer.cells(overrides, config)}
    assert typed == cells


def test_an_old_name_of_a_key_is_replaced(capsys):
    sweep = wandb_sweep.sweep_of(["data=mixture", "callbacks.metrics.every=10", "seed=0,1"], ROOT, None, "minimize")
    assert "callbacks.metrics.every_n_steps=10" in sweep["command"]
    assert "is called callbacks.metrics.every_n_steps=10 now" in capsys.readouterr().err


def test_an_interval_makes_it_a_search():
    line = ["model=ict", "data=mixture", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "loss=l1,l2"]
    sweep = wandb_sweep.sweep_of(line, ROOT, "val/sw2000_identity_train_1step", "minimize")
    assert sweep["method"] == "bayes"
    assert sweep["parameters"]["optimizer.lr"] == {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}
    assert sweep["metric"]["name"].startswith("val/")


def test_the_dashboard_is_a_view_of_what_is_logged(run, capsys):
    """Serialised without a login; every regular expression of a panel finds figures that runs log."""
    import re

    assert dashboard.main(["me/consistency-models", "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    panels = [panel for section in sections for panel in section["panels"]]
    items = set().union(*(record["history"]["item"] for record in run["history"]))
    logged = {name.partition(".")[0] for name in items}
    for panel in panels:
        config = panel["config"]
        if panel["viewType"] == "Run History Line Plot":
            assert config["xAxis"] in logged
            expected = "curriculum/ema" if "ema" in config["metricRegex"] else None  # iCT has no slow target
            assert expected or any(re.fullmatch(config["metricRegex"], name) for name in logged), config
            assert config["groupBy"] == "cell.value"
        if panel["viewType"] == "Media Browser" and "samples/1step" in config["mediaKeys"]:
            assert set(config["mediaKeys"]) <= logged
    assert dashboard.main(["nobody"]) == 2


def test_a_dashboard_without_a_login_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert dashboard.main(["me/consistency-models"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: me/consistency-models: W&B says: ")


class Server:
    """In place of W&B's: one artifact."""

    def __init__(self, files):
        self.files, self.digest, self.asked = files, "d1g/est", []

    def artifact(self, name):
        self.asked.append(name)
        return self

    def download(self, root):
        for name in self.files:
            (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(root) / name).write_bytes(b"x")
        return root


def test_an_artifact_stands_in_for_a_path(tmp_path, monkeypatch):
    from consistency_models.app.artifacts import resolve_artifacts
    from consistency_models.errors import ConfigError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    server = Server(["last.ckpt", "best.ckpt"])
    monkeypatch.setattr("wandb.Api", lambda: server)
    settings = {"ckpt_path": None, "teacher": {"path": "wandb:me/cm/model-1:latest"}, "init": {"path": "runs/x"}}
    found = resolve_artifacts(settings)
    assert server.asked == ["me/cm/model-1:latest"]
    assert found["teacher"]["path"].endswith("/best.ckpt")
    assert Path(found["teacher"]["path"]).exists()
    assert (found["ckpt_path"], found["init"]["path"]) == (None, "runs/x")
    server.files, server.digest = ["notes.txt"], "other"
    with pytest.raises(ConfigError, match=r"this one has 0\. Allowed: an artifact with one checkpoint"):
        resolve_artifacts({"ckpt_path": "wandb:me/cm/model-1:v0"})


def test_checkpoints_are_uploaded_where_that_is_asked_for(tmp_path):
    switches = (
        "logger.wandb.upload=true",
        "callbacks.samples=null",
        "callbacks.validation=null",
        f"hydra.run.dir={tmp_path}",
    )
    arguments = (*TINY[:4], "callbacks.progress=null", *switches)
    code, output = command(tmp_path, "train.py", *arguments, WANDB_MODE="offline")
    assert code == 0, output
    text = json.dumps(records(tmp_path))
    assert "last.ckpt" in text
    assert f"model-{(tmp_path / 'wandb_id').read_text()}" in text
