"""The wheel, installed beside nothing but its dependencies, trains, samples and sweeps from a folder of its own."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = (
    *("data=mixture", "data.batch_size=16", "trainer=cpu", "logger=csv"),
    *("callbacks.samples=null", "callbacks.validation=null", "callbacks.progress=null"),
)


def checked(command, **options):
    """The output of a command that ends with exit code 0."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the installed build backend: no network."""
    folder = tmp_path_factory.mktemp("dist")
    build = ("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
    checked([sys.executable, "-m", "pip", *build, ROOT])
    (file,) = folder.glob("*.whl")
    return file


class Environment:
    """A virtual environment that sees the dependencies of this one, and neither this repository nor its installation.

    Of a folder that a .pth file names, Python does not read further .pth files, such as those of an editable install.
    """

    def __init__(self, folder, *project):
        venv.create(folder / "venv", symlinks=True)
        (packages,) = folder.glob("venv/lib/python*/site-packages")
        dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--python",
            folder / "venv/bin/python",
            "install",
            "--no-deps",
            "--no-index",
        )
        checked([*pip, *project])
        self.folder = folder

    def run(self, command, *arguments):
        """The output of a command of the environment, given in its folder."""
        environment = {key: os.environ[key] for key in os.environ if key not in ("PYTHONPATH", "PROJECT_ROOT")}
        return checked([self.folder / "venv/bin" / command, *arguments], cwd=self.folder, env=environment)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel."""
    return Environment(tmp_path_factory.mktemp("installed"), wheel)


def test_it_carries_configurations_licences_and_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("conf", "sweeps"):
        here = {f"consistency_models/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.yaml")}
        assert here == {name for name in names if name.startswith(f"consistency_models/{folder}/")}
    assert "consistency_models/py.typed" in names
    assert "hydra_plugins/consistency_models/processes.py" in names
    assert "hydra_plugins/__init__.py" not in names  # a namespace: other distributions have plugins in it, too
    licences = {name.rpartition("/")[2] for name in names if "dist-info/licenses/" in name}
    assert licences == {"LICENSE", "THIRD_PARTY_NOTICES.md"}
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"consistency_models", "hydra_plugins"}


def test_its_version_is_that_of_the_package(wheel):
    from consistency_models import __version__

    assert wheel.name.startswith(f"consistency_models-{__version__}-")


def test_it_trains_and_samples(installed):
    out = installed.run("consistency-train", *TINY, "data=digits", "trainer.max_steps=2")
    (run,) = installed.folder.glob("runs/ict_digits/*")
    assert (run / "DONE").exists()
    assert f"score it  consistency-eval run={run}" in out
    installed.run("consistency-eval", f"run={run}", "task=sample", "n=4", "steps=[1]", "task.format=npz", "device=cpu")
    assert (run / "evaluation/samples_1step.npz").exists()


def test_it_runs_the_cell_of_a_sweep_by_its_launcher(installed):
    cell = ("sweeps=ict_distance", "++recipe={s0: 2, s1: 150}", "loss=l2", "seed=0", "hydra/launcher=processes")
    installed.run("consistency-train", *cell, *TINY, "trainer.max_steps=1")
    (done,) = installed.folder.glob("runs/ict_distance/*/0/DONE")
    assert "consistency-eval run=" in (done.parent / "output.log").read_text()


def test_an_editable_install_has_configurations_and_plugins_of_the_repository(tmp_path):
    editable = Environment(tmp_path, "--no-build-isolation", "--editable", ROOT)
    hydra = ("--cfg", "hydra", "--package", "hydra.launcher", "hydra/launcher=processes", "sweeps=ict_distance")
    for command in (("consistency-train",), ("python", ROOT / "train.py")):
        assert "_target_: hydra_plugins.consistency_models.processes.Processes" in editable.run(*command, *hydra)
    assert not list(tmp_path.glob("venv/**/conf/train.yaml")), "a copy, which would not follow the repository"
    where = "import consistency_models; print(consistency_models.__file__)"
    assert Path(editable.run("python", "-c", where).strip()).is_relative_to(ROOT)
