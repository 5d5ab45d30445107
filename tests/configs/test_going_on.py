"""`ckpt_path`: which run goes on, and with which settings."""

import os

import pytest
import yaml

from consistency_models.app.checks import check
from consistency_models.app.checks.problems import ConfigErrors, problem
from consistency_models.errors import ConfigError, Exit

CHECKPOINT = b"PK" + b"sha256:" + b"0" * 64


@pytest.fixture
def run_folder(tmp_path, monkeypatch, composer):
    """`run_folder(name, state, overrides)`: a run folder as far as it is looked at from outside."""
    monkeypatch.chdir(tmp_path)

    def make(path="runs/ict_digits/1", state="STOPPED", overrides=("seed=3", "trainer.max_steps=100"), good=True):
        folder = tmp_path / path
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/last.ckpt").write_bytes(CHECKPOINT if good else b"PK")
        (folder / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
        config = {"trainer": {"max_steps": 100, "max_images": None}, "data": {"batch_size": 64}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / state).write_text("")
        return folder

    return make


@pytest.fixture
def handed(composer):
    return lambda *overrides: check("train", composer, list(overrides))


def ends(folder):
    return [f"ckpt_path='{folder}'", f"hydra.run.dir='{folder}'", "hydra.mode=RUN"]


def test_a_folder_goes_on_with_its_own_settings(run_folder, handed):
    folder = run_folder()
    assert handed("ckpt_path=runs/ict_digits/1") == ["seed=3", "trainer.max_steps=100", *ends(folder)]
    assert handed(f"ckpt_path={folder}/") == ["seed=3", "trainer.max_steps=100", *ends(folder)]


def test_what_is_typed_now_replaces_what_was_typed_then(run_folder, handed):
    folder = run_folder(overrides=["model=ct", "seed=3", "ckpt_path=x"])
    got = handed("trainer.max_steps=200", f"ckpt_path={folder}", "model=ict")
    assert got == ["seed=3", "trainer.max_steps=200", "model=ict", *ends(folder)]


@pytest.mark.parametrize(
    ("root", "expected"),
    [("{folder}", "data.root='{folder}'"), ("images", "data.root=images"), ("{folder}/${{name}}", "data.root=images")],
    ids=["absolute", "of an earlier version", "an interpolation"],
)
def test_the_data_are_where_the_run_had_them(run_folder, handed, tmp_path, root, expected):
    (tmp_path / "images").mkdir()
    overrides = ["data=image_folder", "data.image_size=8", "data.root=images", "network=small", "features=identity"]
    folder = run_folder(overrides=overrides)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"]["root"] = root.format(folder=tmp_path)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert handed(f"ckpt_path={folder}")[2] == expected.format(folder=tmp_path)
    assert handed(f"ckpt_path={folder}", f"data.root={tmp_path}")[4] == f"data.root={tmp_path}"


def test_a_job_of_a_sweep_goes_on_alone(run_folder, handed):
    folder = run_folder(overrides=["seed=1"])
    assert handed(f"ckpt_path={folder}", "hydra.mode=MULTIRUN")[-1] == "hydra.mode=RUN"


def test_a_path_with_odd_characters(run_folder, handed, composer):
    folder = run_folder("runs/a=b, c's [d]/1")
    got = handed("ckpt_path=" + ends(folder)[0].split("=", 1)[1].replace("c's", "c\\'s"))
    assert composer.parse(got[-3:])[0].value() == str(folder)
    assert composer.parse(got[-3:])[1].value() == str(folder)


def test_last_is_the_newest_unfinished_run_of_this_name(run_folder, handed):
    old, new = run_folder("runs/ict_digits/1"), run_folder("runs/ict_digits/2")
    done, other = run_folder("runs/ict_digits/3", "DONE"), run_folder("runs/ct_digits/4")
    for age, folder in enumerate([done, other, new, old]):
        os.utime(folder / "config.yaml", (1e9 - age, 1e9 - age))
    assert handed("ckpt_path=last")[-3:] == ends(new)
    assert handed("ckpt_path=last", "model=ct")[-3:] == ends(other)
    assert handed("ckpt_path=last", "name=ct_digits")[-3:] == ends(other)


def test_last_in_a_given_folder(run_folder, handed):
    folder = run_folder("mine")
    assert handed("ckpt_path=last", "hydra.run.dir=mine")[-3:] == ends(folder)
    with pytest.raises(ConfigError, match="Leave ckpt_path out the first time"):
        handed("ckpt_path=last", "hydra.run.dir=yours")


def test_last_without_a_run_says_what_was_looked_for(run_folder, handed):
    run_folder("runs/ct_digits/1")
    run_folder("runs/cd_digits/1", "DONE")
    with pytest.raises(
        ConfigError, match=r"none is in runs/ict_digits/\*/\. .*\. Unfinished runs have name=ct_digits"
    ) as e:
        handed("ckpt_path=last")
    assert e.value.code == Exit.BAD_INPUT


def test_a_file_starts_a_run_of_its_own(run_folder, handed):
    folder = run_folder()
    assert handed(f"ckpt_path={folder}/checkpoints/last.ckpt") == [f"ckpt_path={folder}/checkpoints/last.ckpt"]


@pytest.mark.parametrize(
    ("asked", "said"), [("ckpt_path={}/checkpoints/cut.ckpt", "at its end"), ("init=run init.path={}", "no good")]
)
def test_a_file_that_is_cut_off_is_refused_with_the_newest_good_one(run_folder, handed, asked, said):
    folder = run_folder(good=False) / "checkpoints"
    (folder / "cut.ckpt").write_bytes(CHECKPOINT[:-1])
    with pytest.raises(ConfigError, match=f"{said}.*There is none in {folder}") as caught:
        handed(*asked.format(folder.parent).split())
    assert caught.value.code == Exit.NO_GOOD_CHECKPOINT
    for age, name in ((9, "older.ckpt"), (1, "newer.ckpt")):
        (folder / name).write_bytes(CHECKPOINT)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    with pytest.raises(ConfigError, match=f"{said}.*The newest that has one is beside it: .*path={folder}/newer.ckpt"):
        handed(*asked.format(folder.parent).split())


@pytest.mark.parametrize("what", ["", "/checkpoints/last.ckpt"])
def test_no_good_checkpoint(run_folder, handed, what):
    folder = run_folder(good=False)
    with pytest.raises(ConfigError) as caught:
        handed(f"ckpt_path={folder}{what}")
    assert caught.value.code == Exit.NO_GOOD_CHECKPOINT


def test_a_run_that_is_done_goes_on_only_with_more_steps(run_folder, handed):
    folder = run_folder(state="DONE")
    with pytest.raises(ConfigError, match=r"Allowed: a run with steps left\. .* trainer.max_steps=200"):
        handed(f"ckpt_path={folder}")
    assert handed(f"ckpt_path={folder}", "trainer.max_steps=200")[-3:] == ends(folder)


def test_a_run_that_is_done_can_be_scored(run_folder, handed):
    folder = run_folder(state="DONE")
    assert handed(f"ckpt_path={folder}", "train=false", "test=true")[-3:] == ends(folder)


def test_it_goes_on_in_its_own_folder(run_folder, handed):
    folder = run_folder()
    assert handed(f"ckpt_path={folder}", f"hydra.run.dir={folder}")[-3:] == ends(folder)
    with pytest.raises(ConfigError, match=r"hydra.run.dir=yours is not allowed: .* Allowed: left out with ckpt_path="):
        handed(f"ckpt_path={folder}", "hydra.run.dir=yours")


def test_a_folder_inside_a_run(run_folder, handed):
    folder = run_folder()
    with pytest.raises(ConfigError, match=f"Did you mean ckpt_path={folder}\\?"):
        handed(f"ckpt_path={folder}/checkpoints")


def test_an_option_of_a_further_folder(run_folder, handed):
    folder = run_folder(overrides=["model=mine", "seed=3"])
    with pytest.raises(ConfigError, match=r"model=mine is not allowed: .*/overrides.yaml has it.*the --config-dir, or"):
        handed(f"ckpt_path={folder}")
    with pytest.raises(ConfigError, match=r"model=icd is not allowed\. Allowed: .* Did you mean model="):
        handed(f"ckpt_path={folder}", "model=icd")


@pytest.mark.parametrize("text", ["{", "5", "- {}\n", "\x00"])
def test_damaged_overrides(run_folder, handed, text):
    folder = run_folder()
    (folder / "overrides.yaml").write_text(text)
    with pytest.raises(ConfigError):
        handed(f"ckpt_path={folder}")


def test_a_run_is_not_overwritten(run_folder, handed):
    folder = run_folder()
    with pytest.raises(ConfigError, match=r"run folder=.*its checkpoints would be overwritten"):
        handed(f"hydra.run.dir={folder}")


def test_the_exit_code_of_several_problems_is_the_first_one_s():
    bad, lost = problem("a", 1, "b"), problem("a", 1, "c", code=Exit.NO_GOOD_CHECKPOINT)
    assert ConfigErrors([lost, bad]).code == Exit.NO_GOOD_CHECKPOINT
    assert (
        str(ConfigErrors([bad, lost, bad])) == "a=1 is not allowed. Allowed: b\nerror: a=1 is not allowed. Allowed: c"
    )


def test_a_run_needs_a_folder_whose_path_is_text(run_folder, composer, eval_composer, tmp_path, monkeypatch):
    """W&B and the files of a run write it."""
    run_folder("run")
    odd = tmp_path / os.fsdecode(b"r\xffn")
    odd.mkdir()
    (tmp_path / "run").rename(odd / "run")
    monkeypatch.chdir(odd)
    for task, line, key in (("train", "seed=1", "run folder"), ("eval", "run=run", "run")):
        with pytest.raises(ConfigErrors, match=rf"{key}='{tmp_path}.*udcff.* is not allowed. Allowed: .* is UTF-8"):
            check(task, composer if task == "train" else eval_composer, [line])
