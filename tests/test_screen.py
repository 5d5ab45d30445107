"""A command whose output nobody reads: a closed pipe, a closed terminal, a full disk."""

import io
import os
import runpy
import sys

import pytest
from jobs import ROOT, TINY, forked

from consistency_models.app.folder import RunFolder
from consistency_models.errors import Exit, command
from consistency_models.screen import optional_output

LINE = [argument for argument in TINY if argument != "callbacks.progress=null"]
LINE += ["data=mixture", "data.batch_size=16", "network.width=8", "trainer.max_steps=20"]


def unread(output, place, *arguments):
    """Exit code of train.py with an output that cannot be written."""
    process = forked(_main, output, place, arguments)
    process.join(200)
    process.kill()
    return process.exitcode


def _main(output, place, arguments):
    os.chdir(place)
    if output == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(output, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(writer, stream.fileno())
    sys.argv = ["train.py", *LINE, *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def test_a_training_into_a_closed_pipe(tmp_path):
    assert unread("closed", tmp_path, f"hydra.run.dir={tmp_path}/run") == Exit.DONE
    assert RunFolder(tmp_path / "run").state == "DONE"
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    assert f"run folder {tmp_path}/run\n" in (tmp_path / "run/train.log").read_text()


def test_the_jobs_of_a_multirun_on_a_full_disk(tmp_path):
    sweep = ("--multirun", "optimizer.lr=1e-3,1e30", f"hydra.sweep.dir={tmp_path}/sweep")
    assert unread("/dev/full", tmp_path, *sweep) == Exit.NOT_FINITE
    assert [RunFolder(tmp_path / f"sweep/{job}").state for job in "01"] == ["DONE", "FAILED"]
    assert "\nerror: " in (tmp_path / "sweep/1/FAILED").read_text()


def test_streams_that_the_shell_has_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with optional_output():
        print("unread")
        sys.stdout.write("unread")
    assert sys.stdout is None


def test_an_object_of_a_notebook_stays(monkeypatch):
    class Cell(io.StringIO):
        def fileno(self):
            return 1

    monkeypatch.setattr(sys, "stdout", Cell())
    with optional_output():
        print("shown")
    assert sys.stdout.getvalue() == "shown\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_an_answer_into_a_full_disk_is_an_error(tmp_path):
    assert unread("/dev/full", tmp_path, "--cfg", "job") != Exit.DONE


def test_a_report_into_a_closed_pipe_is_written(monkeypatch, tmp_path):
    @command
    def report():
        print("unread", flush=True)
        (tmp_path / "written").touch()
        return Exit.DONE

    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert report() == Exit.DONE
    assert (tmp_path / "written").exists()


def test_characters_that_the_locale_lacks_are_escaped(monkeypatch, tmp_path):
    with open(tmp_path / "output", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with optional_output():
            print("1 ± 2")
    assert (tmp_path / "output").read_text() == "1 \\xb1 2\n"


def test_ctrl_c_ends_a_command_in_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert command(interrupted)() == Exit.STOPPED
    assert capsys.readouterr().err == "stopped by SIGINT\n"
