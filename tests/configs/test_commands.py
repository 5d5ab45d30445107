"""Refused commands, some in processes: exit code 2 (4 without a good checkpoint), one line a problem, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

from consistency_models.app.main import main

COMMANDS = [  # script, arguments, exit code, first line
    ("train.py", ["modle=ict"], 2, "error: modle=ict is not allowed. Allowed: groups ("),
    ("train.py", ["model=icct"], 2, "error: model=icct is not allowed. Allowed: alphaflow, "),
    ("train.py", ["trainer.max_step=5"], 2, "error: trainer.max_step=5 is not allowed. Allowed: keys of trainer: "),
    (
        "train.py",
        ["data.batch_size=abc"],
        2,
        "error: data.batch_size=abc is not allowed. Allowed: a whole number >= 1",
    ),
    ("train.py", ["model=cd"], 2, "error: teacher=none is not allowed: model=cd distils a teacher. Allowed: run, "),
    ("train.py", ["schedule.sigma_min=90"], 2, "error: schedule.sigma_min=90 is not allowed. Allowed: less than "),
    ("train.py", ["seed=0,1", "loss=l2,l9", "--multirun"], 2, "error: loss=l9 is not allowed. Allowed: "),
    ("train.py", ["ckpt_path=last"], 2, "error: ckpt_path=last is not allowed: none is in "),
    ("train.py", ["ckpt_path={text}"], 4, "error: ckpt_path="),
    ("train.py", ["seed=1", "name=["], 2, "error: name=[ is not allowed. Allowed: KEY=VALUE"),
    ("eval.py", ["run=/nowhere"], 2, "error: run=/nowhere is not allowed: / has no nowhere. Allowed: "),
]


def command(script, arguments, folder, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_refused(exit_code, output, errors, expected, line, folder):
    assert exit_code == expected
    assert output == ""
    assert errors.startswith(line)
    assert all(one.startswith("error: ") for one in errors.splitlines())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("script", "arguments", "code", "line"), COMMANDS, ids=[" ".join(c[1]) for c in COMMANDS])
def test_refused(script, arguments, code, line, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *(part for argument in arguments for part in files.split(argument))])
    assert_refused(main(Path(script).stem, ROOT), *capsys.readouterr(), code, line, tmp_path)


PROCESSES = [case for case in COMMANDS if case[1][0] in ("modle=ict", "ckpt_path={text}", "run=/nowhere")]


@pytest.mark.parametrize(("script", "arguments", "code", "line"), PROCESSES, ids=[" ".join(c[1]) for c in PROCESSES])
def test_refused_by_a_process(script, arguments, code, line, files, tmp_path):
    """Each script, and each exit code."""
    done = command(script, [part for argument in arguments for part in files.split(argument)], tmp_path)
    assert_refused(done.returncode, done.stdout, done.stderr, code, line, tmp_path)


def test_nothing_heavy_is_imported_to_check_a_command(tmp_path):
    """Neither for a good one nor for a bad one."""
    code = f"""
import sys
from pathlib import Path
from hydra._internal.utils import get_args_parser
import consistency_models.app.main
from consistency_models.app.checks import check_command
for line in (["model=ct", "seed=1,2", "--multirun"], ["model=cd"]):
    try:
        print(check_command("train", Path({str(ROOT)!r}) / "conf", get_args_parser().parse_args(line)))
    except ValueError as error:
        print(error)
print([name for name in ("torch", "lightning", "numpy", "torchvision", "wandb", "sklearn") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PROJECT_ROOT": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    good, bad, heavy = done.stdout.splitlines()
    assert good == "['--multirun', 'model=ct', 'seed=1,2']"
    assert bad.startswith("teacher=none is not allowed: model=cd distils a teacher. Allowed: run")
    assert heavy == "[]"
    assert list(tmp_path.iterdir()) == []
