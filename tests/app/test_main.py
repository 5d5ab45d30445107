"""main(): what it prints and which exit code it gives, without training anything."""

import re
import shlex
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from consistency_models.app import commands
from consistency_models.app.folder import RunFolder
from consistency_models.app.main import main
from consistency_models.errors import Exit, pasteable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """`command(task, *arguments)`: exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROJECT_ROOT", str(ROOT))

    def run(task, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{task}.py", *arguments])
        try:
            code = main(task, ROOT)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_every_problem_is_one_line(command, tmp_path):
    code, out, err = command("train", "network=smal", "optimizer.lr=0", "trainer.max_step=3")
    assert (code, out) == (2, "")
    assert [line.split(":")[0] for line in err.splitlines()] == ["error"] * 2
    assert list(tmp_path.iterdir()) == []


def test_no_good_checkpoint_has_its_own_code(command, tmp_path):
    (tmp_path / "cut_off.ckpt").write_bytes(b"PK")
    assert command("train", f"ckpt_path={tmp_path}/cut_off.ckpt")[0] == 4
    assert command("eval", f"run={tmp_path}/cut_off.ckpt")[0] == 4


def test_a_run_folder_that_cannot_be_made(command, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = command("train", f"hydra.run.dir={tmp_path}/file/run")
    assert code == 5
    assert f"run folder={tmp_path}/file/run is not allowed: {tmp_path}/file is a file. Allowed: a folder that" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"])
@pytest.mark.parametrize("value", ["x", "", "-1"])
def test_a_rank_that_is_no_number(command, monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(name, value)
    for task in ("train", "eval"):
        code, _, err = command(task, "seed=x")  # never trains
        assert code == 2
        reason = "torchrun and srun set this variable to a number"
        message = f"{name}={value} is not allowed: {reason}. Allowed: a whole number >= 0"
        assert err == f"error: {message}. Remove it with: unset {name}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_whose_log_cannot_be_written(command, tmp_path):
    (tmp_path / "run/train.log").mkdir(parents=True)
    code, _, err = command("train", f"hydra.run.dir={tmp_path}/run")
    assert code == 5
    assert err == (
        f"error: run folder={tmp_path}/run is not allowed: {tmp_path}/run/train.log is a folder. Allowed: a folder "
        f"whose train.log can be written. Move {tmp_path}/run/train.log away, or choose another run folder\n"
    )


@pytest.mark.parametrize("task", ["train", "eval"])
def test_a_working_folder_that_was_deleted(command, task, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PWD", str(gone))
    gone.rmdir()
    code, _, err = command(task)
    assert code == 2
    assert err == (
        f"error: working folder={gone} is not allowed: it was deleted. Allowed: a folder that exists. "
        "Change to another folder\n"
    )


def test_two_processes_do_not_train_in_one_folder(command, tmp_path, monkeypatch):
    """`ckpt_path=last` takes up what did not finish: also a run that still goes on."""
    monkeypatch.setattr("consistency_models.app.folder.PATIENCE", 0)
    run = RunFolder(tmp_path / "run")
    run.mark("RUNNING")
    with run.claimed():
        code, _, err = command("train", f"hydra.run.dir={tmp_path}/run")
    assert code == 2
    assert err == (
        f"error: run folder={tmp_path}/run is not allowed: another process trains in it. "
        "Allowed: a folder of no other process. Wait for it, or stop it\n"
    )
    assert run.state == "RUNNING"
    assert not (tmp_path / "run/config.yaml").exists()
    with run.claimed() as free:
        assert free


def test_a_signal_to_a_process_that_waits_for_the_folder_leaves_the_other_running(command, tmp_path, monkeypatch):
    monkeypatch.setattr("consistency_models.app.folder.PATIENCE", 0)
    run = RunFolder(tmp_path / "run")
    run.begin()
    monkeypatch.setattr("consistency_models.app.outcome.report", lambda *_: signal.raise_signal(signal.SIGTERM))
    with run.claimed():
        assert command("train", f"hydra.run.dir={tmp_path}/run")[0] == Exit.STOPPED
    assert run.state == "RUNNING"


@pytest.mark.parametrize("more", [(), ("train=false", "test=true")])
def test_an_artifact_that_cannot_be_had_is_one_line(command, tmp_path, monkeypatch, more):
    monkeypatch.setattr("wandb.Api", Mock(side_effect=ValueError("not logged in")))
    code, _, err = command("train", "ckpt_path=wandb:me/cm/model:v0", f"hydra.run.dir={tmp_path}/run", *more)
    assert code == 2
    assert err == (
        "error: ckpt_path=wandb:me/cm/model:v0 is not allowed: not logged in. "
        "Allowed: an artifact that W&B hands out. Log in with wandb login\n"
    )
    assert more or (tmp_path / "run/FAILED").read_text().endswith(err)
    assert not more or not (tmp_path / "run/FAILED").exists()  # a run that is only scored stays what it is


def test_help_says_what_to_type(command):
    code, out, _ = command("train", "--help")
    assert code == 0
    assert "python train.py ckpt_path=last" in out
    options = ", ".join(sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml")))
    assert "  model            the method; default ict\n" in out
    assert options in " ".join(out.split())
    assert "max_steps: " not in out  # not the whole configuration
    code, out, _ = command("eval", "--help")
    assert code == 0
    assert "python eval.py run=FOLDER" in out
    assert "; default ???" not in out


@pytest.mark.parametrize("task", ["train", "eval"])
def test_help_describes_every_group_that_can_be_chosen(command, task):
    """The comments of the defaults list are the descriptions, so a new group without one fails here."""
    defaults = yaml.safe_load((ROOT / f"conf/{task}.yaml").read_text())["defaults"]
    groups = {key.removeprefix("optional ") for entry in defaults if isinstance(entry, dict) for key in entry}
    quiet = {"hydra", "override hydra/job_logging"} | ({"augment", "network", "paths"} if task == "eval" else set())
    _, out, _ = command(task, "--help")
    told = {line.split()[0] for line in out.splitlines() if re.match(r"  \w+ {2,}\w", line)}
    assert groups - quiet <= told


def test_help_lists_options_of_a_further_folder(command, tmp_path):
    (tmp_path / "mine/loss").mkdir(parents=True)
    (tmp_path / "mine/loss/own.yaml").write_text("_target_: mine.Loss\n")
    _, out, _ = command("train", "--help", f"--config-dir={tmp_path}/mine")
    assert ", norm, own, pseudo_huber" in out


@pytest.mark.parametrize(
    ("started", "train"),
    [("train.py", "python train.py"), ("/somewhere/bin/consistency-train", "consistency-train")],
)
def test_advice_names_the_command_that_was_started(monkeypatch, capsys, started, train):
    monkeypatch.setattr("sys.argv", [started, "--help"])
    assert main("train", ROOT) == 0
    assert f"    {train} ckpt_path=last " in capsys.readouterr().out


def test_advice_names_the_further_folder(monkeypatch):
    for words in (["--config-dir", "my conf"], ["--config-dir=my conf"], ["-cd", "my conf"]):
        monkeypatch.setattr("sys.argv", ["train.py", *words, "model=mine"])
        assert commands.command("train") == "python train.py --config-dir 'my conf'"
    assert commands.command("eval") == "python eval.py"


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--info", "defaults"], ["--version"], ["--hydra-help"]])
def test_what_hydra_answers_itself(command, arguments):
    code, out, _ = command("train", *arguments)
    assert code in (0, None)
    assert out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--config-path=/tmp"],
            "--config-path=/tmp is not allowed. Allowed: not given. Add configurations with --config-dir",
        ),
        (["--config-dir=/nowhere"], "--config-dir=/nowhere is not allowed. Allowed: a folder that exists"),
        (["--config-name=trian"], "Allowed: files that can be put together"),
        (["--experimental-rerun=x.pickle"], "--experimental-rerun=x.pickle is not allowed. Allowed: not given"),
        (["hydra.searchpath=5"], "hydra.searchpath must be a list of strings"),
        (["--model=ict"], "Allowed: KEY=VALUE without dashes, and the flags of --hydra-help. Did you mean model=ict?"),
        (["--run=FOLDER"], "error: --run=FOLDER is not allowed. Allowed: KEY=VALUE without dashes, and the flags of"),
        (["--experiment=a"], "Did you mean experiment=a?"),
        (["--model", "ict"], "error: --model= is not allowed. Allowed: KEY=VALUE without dashes, and the flags of"),
        (  # what zsh makes of a command and its comment
            ["model=ict", "#", "the", "published", "recipe"],
            "error: #=the published recipe is not allowed: the shell hands comments to commands. Allowed: KEY=VALUE in "
            "Hydra's grammar. Leave the comment out, or type `setopt interactive_comments` in zsh",
        ),
    ],
)
def test_flags_that_are_refused(command, arguments, told):
    code, _, err = command("train", *arguments)
    assert code == 2
    assert told in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([f"ckpt_path={'a' * 300}"], "File name too long"),
        (["data=mixture", "hydra.run.dir=/proc/none"], "run folder=/proc/none is not allowed: [Errno 2] No such file"),
        (["-m", "seed=1,2", "data=mixture", "hydra.sweep.dir=/proc/none"], "run folder=/proc/none is not allowed: [Er"),
    ],
)
def test_a_path_that_the_system_refuses(command, arguments, told):
    code, _, err = command("train", *arguments)
    assert code == Exit.STORAGE
    assert err.startswith("error: ")
    assert told in err
    assert len(err.splitlines()) == 1


def test_a_further_folder_of_configurations(command, tmp_path):
    (tmp_path / "mine/loss").mkdir(parents=True)
    (tmp_path / "mine/loss/own.yaml").write_text("_target_: consistency_models.losses.distances.L9\n")
    code, _, err = command("train", "--config-dir=mine", "loss=own")
    assert code == 2
    assert err.startswith("error: loss._target_=consistency_models.losses.distances.L9 is not allowed. Allowed: ")


def test_a_plan_finds_the_options_of_a_further_folder(command, tmp_path):
    (tmp_path / "mine/loss").mkdir(parents=True)
    (tmp_path / "mine/loss/own.yaml").write_text("_target_: consistency_models.losses.distances.SquaredL2\n")
    code, out, err = command("train", f"hydra.searchpath=[file://{tmp_path}/mine]", "loss=own", "plan=true")
    assert code == 0, err
    assert "parameters" in out


@pytest.mark.parametrize(
    "value", ["runs/a", "a b", "ü", "a'b", 'a"b', "a\\b", "a\\", 'a\\"b', "a,b=[c]{d}(e)", "~/x", "$x"]
)
def test_a_command_that_is_printed_can_be_pasted(value):
    (word,) = shlex.split(pasteable("ckpt_path", value))
    assert OverridesParser.create().parse_override(word).value() == value
