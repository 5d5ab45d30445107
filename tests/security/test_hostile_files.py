"""Hostile nodes in checkpoints, exports and run folders, by every way in: refused, and nothing has happened."""

import json
import os
import re

import pytest
import torch
import yaml
from app.evals import evaluate
from configs.commands import CONF
from jobs import TINY, run
from security.hostile import SMALL, checkpoint_with, folder_with, nodes

import consistency_models
from consistency_models.app.checks import check
from consistency_models.app.checks.composing import Composer
from consistency_models.errors import CheckpointError, ConfigError, Exit
from consistency_models.storage.checkpoints import read, write
from consistency_models.storage.loading import PARTS, read_safetensors

NODES = sorted(nodes(__import__("pathlib").Path(".")))


@pytest.fixture(params=NODES)
def node(request, nothing_happens):
    return nodes(nothing_happens)[request.param]


@pytest.mark.parametrize("part", PARTS)
def test_load(node, part, trained, tmp_path):
    bad = checkpoint_with(trained / "checkpoints/last.ckpt", tmp_path / "bad.ckpt", part, node)
    for path in (bad, checkpoint_with(bad, tmp_path / "folder/checkpoints/last.ckpt", part, node).parents[1]):
        with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
            consistency_models.load(path)


def test_an_export(node, trained, tmp_path):
    from consistency_models.export import to_safetensors

    to_safetensors(consistency_models.load(trained), tmp_path / "good.safetensors")
    import safetensors.torch

    content = read_safetensors(tmp_path / "good.safetensors")
    content["config"]["network"] = node
    header = {"schema": 1, "config": content["config"], "origin": {}}
    said = {"consistency_models": json.dumps(header)}
    (tmp_path / "bad.safetensors").write_bytes(safetensors.torch.save(content["model"], said))
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        consistency_models.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("part", ["data", "features"])
def test_eval(node, part, trained, tmp_path, capsys):
    bad = checkpoint_with(trained / "checkpoints/last.ckpt", tmp_path / "bad.ckpt", part, node)
    assert evaluate(bad, "n=4", "steps=[1]") == Exit.NO_GOOD_CHECKPOINT
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("way", ["teacher", "init"])
def test_a_teacher_and_initial_weights(node, way, trained, tmp_path, capsys):
    bad = checkpoint_with(trained / "checkpoints/last.ckpt", tmp_path / "bad.ckpt", "network", node)
    model = ("model=cd",) if way == "teacher" else ()
    one_step = (*SMALL, "trainer.max_steps=1", *model)
    assert run(tmp_path / "new", *one_step, f"{way}=run", f"{way}.path={bad}") == Exit.NO_GOOD_CHECKPOINT
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_that_starts_from_a_file_does_not_look_at_its_configuration(node, trained, tmp_path):
    bad = checkpoint_with(trained / "checkpoints/last.ckpt", tmp_path / "bad.ckpt", "network", node)
    assert run(tmp_path / "new", *SMALL, "trainer.max_steps=3", f"ckpt_path={bad}") == Exit.DONE


@pytest.fixture(scope="module")
def composer(as_in_main):
    return Composer("train", CONF)


def asks(node):
    """Overrides that ask for the object, written as on a command line and as a mapping."""
    text = json.dumps(node).replace('"_target_"', "_target_").replace('"', "'")
    text = re.sub(r"'(\w+)': ", r"\1: ", text)
    yield [f"network={text}"]
    yield [f"+anything={text}", "network=${anything}"]
    yield [f"callbacks.samples={text}"]
    if isinstance(node.get("_target_"), str):
        yield [f"network._target_={node['_target_']}"]
        yield [f"optimizer._target_='{node['_target_']}'"]


def test_a_folder_that_a_run_goes_on_in(node, trained, tmp_path, composer):
    for number, lines in enumerate(asks(node)):
        folder = folder_with(trained, tmp_path / str(number), lines)
        with pytest.raises(ConfigError):
            check("train", composer, [f"ckpt_path={folder}"])


HARMLESS = [
    ["seed=3", "trainer.max_steps=9", "model=ct", "+data.resident=false", "tags=[a,b]"],
    ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps"],
    ["loss._target_=consistency_models.losses.distances.PseudoHuber"],
    ["weighting={_target_:consistency_models.losses.weightings.SNR}"],
    ["name=digits_${seed}", "network.embedding={_target_:consistency_models.networks.layers.FourierEmbedding}"],
]


@pytest.mark.parametrize("lines", HARMLESS)
def test_a_folder_of_the_user_s_own_goes_on(lines, trained, tmp_path, composer):
    folder = folder_with(trained, tmp_path / "run", lines)
    handed = check("train", composer, [f"ckpt_path={folder}", "trainer.max_steps=50"])
    assert [line for line in lines if not line.startswith("trainer.max_steps")] == [
        line for line in handed if line in lines
    ]


ELSEWHERE = [
    "callbacks.samples.folder=/somewhere",
    "callbacks.checkpoint={_target_:consistency_models.losses.L1,folder:/somewhere}",
    "+data.source.cache_dir=/somewhere",
    "+data.source.download=true",
    "logger.wandb.entity=somebody",
    "+trainer.profiler=advanced",
    "+trainer.default_root_dir=/somewhere",
]


@pytest.mark.parametrize("line", ELSEWHERE)
def test_what_would_be_written_or_sent_elsewhere_is_left_out(line, trained, tmp_path, composer, capsys):
    folder = folder_with(trained, tmp_path / "run", ["seed=3", line])
    handed = check("train", composer, [f"ckpt_path={folder}", "trainer.max_steps=50"])
    assert handed[0] == "seed=3"
    assert line not in handed
    assert f"{line} is left out" in capsys.readouterr().err


REFUSED = [
    "hydra.launcher._target_=os.system",
    "hydra.searchpath=[file:///somewhere]",
    "hydra/launcher=basic",
    "hydra.run.dir=/somewhere",
    "hydra.job_logging.handlers.file.filename=/somewhere",
    "data@network=digits",
    "name=${oc.env:CANARY}",
    "+x.y=${oc.env:CANARY}",
    "tags=['${oc.env:CANARY}']",
    "name=${oc.decode:${seed}}",
    "name=\"${oc.env:'CANARY'}\"",
    "network._target_=${name}",
    "+a=" + "[" * 5000 + "]" * 5000,
    "+a=" + "x" * 20_000,
    "seed=1,2",
    "seed=range(1,1000000000)",
]


@pytest.mark.parametrize("line", REFUSED, ids=[line[:40] for line in REFUSED])
def test_what_a_folder_cannot_ask_for(line, trained, tmp_path, composer, nothing_happens):
    folder = folder_with(trained, tmp_path / "run", ["seed=3", line])
    with pytest.raises(ConfigError):
        check("train", composer, [f"ckpt_path={folder}", "trainer.max_steps=50"])


def test_what_is_typed_again_is_the_user_s_own_choice(trained, tmp_path, composer):
    line = "callbacks.samples.folder=/somewhere"
    folder = folder_with(trained, tmp_path / "run", [line])
    assert line in check("train", composer, [f"ckpt_path={folder}", "trainer.max_steps=50", line])


def test_a_package_that_is_trusted_may_be_named_by_a_folder(trained, tmp_path, composer, monkeypatch):
    (tmp_path / "folders_package.py").write_text("class Distance:\n    def __init__(self, c=None):\n        pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = folder_with(trained, tmp_path / "run", ["loss={_target_:folders_package.Distance}"])
    command = [f"ckpt_path={folder}", "trainer.max_steps=50"]
    with pytest.raises(ConfigError, match="CONSISTENCY_MODELS_TRUST=folders_package"):
        check("train", composer, command)
    monkeypatch.setenv("CONSISTENCY_MODELS_TRUST", "folders_package")
    assert check("train", composer, command)[0] == "loss={_target_:folders_package.Distance}"


def laughs(depth):
    """YAML of a few lines that stands for 9^depth items."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
@pytest.mark.parametrize(
    "text",
    [laughs(40), "[" * 100_000, "x: " * 100_000, "!!python/object/apply:os.system [touch EXPLODED]", "- \udcff", "\0"],
    ids=["anchors", "nested", "long", "tag", "surrogate", "zero"],
)
def test_yaml_that_never_ends(name, text, trained, tmp_path, composer, nothing_happens):
    folder = folder_with(trained, tmp_path / "run", ["seed=3"])
    (folder / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match="ckpt_path"):
        check("train", composer, [f"ckpt_path={folder}"])


@pytest.mark.parametrize("name", ["train.log", "checkpoints/previous.ckpt", "samples", "evaluation", "metrics.csv"])
def test_a_folder_with_a_link_that_leads_out_of_it(name, trained, tmp_path, composer):
    folder = folder_with(trained, tmp_path / "run", ["seed=3"])
    private = tmp_path / "private"
    private.write_text("untouched")
    (folder / name).symlink_to(private)
    with pytest.raises(ConfigError, match=f"{name} is one"):
        check("train", composer, [f"ckpt_path={folder}"])
    (folder / name).unlink()
    (folder / name).symlink_to("overrides.yaml")  # inside
    (folder / "wandb").mkdir()
    (folder / "wandb/debug.log").symlink_to(private)  # W&B's own
    assert check("train", composer, [f"ckpt_path={folder}", "trainer.max_steps=50"])


def test_eval_does_not_write_through_links(trained, tmp_path, capsys):
    folder = folder_with(trained, tmp_path / "run", [])
    private = tmp_path / "private"
    private.write_text("untouched")
    (folder / "evaluation").mkdir()
    (folder / "evaluation/samples.png").symlink_to(private)
    assert evaluate(folder, "n=4", "steps=[1]") == Exit.BAD_INPUT
    assert private.read_text() == "untouched"
    (folder / "evaluation/samples.png").unlink()
    (folder / "evaluation").rmdir()
    (folder / "evaluation").symlink_to(tmp_path)
    assert evaluate(folder, "n=4", "steps=[1]") == Exit.BAD_INPUT
    assert "is one" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["checkpoints/last.ckpt", "overrides.yaml", "config.yaml"])
def test_a_pipe_is_not_waited_for(where, trained, tmp_path, composer):
    folder = folder_with(trained, tmp_path / "run", [])
    (folder / where).unlink()
    os.mkfifo(folder / where)
    with pytest.raises(ConfigError):
        check("train", composer, [f"ckpt_path={folder}"])
    if "last" in where:
        with pytest.raises(CheckpointError, match="not a regular file"):
            consistency_models.load(folder)


GROWN = [
    ("network.depth", 10**9),
    ("network.width", 30_000),
    ("network.width", 10**12),
    ("network.num_classes", 10**9),
    ("network.image_size", 10**6),
    ("preconditioning", {"_target_": "consistency_models.noise.preconditioning.IDDPM", "steps": 10**9}),
    ("data.image_size", 10**6),
    ("data.channels", -1),
    ("evaluation.steps", [10**9]),
    ("evaluation.steps", []),
    ("evaluation.steps", "12"),
    ("sampler.segments", 10**9),
]


@pytest.fixture(scope="session")
def points(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    assert run(folder, *TINY, "data=mixture", "network.width=16", "network.depth=1", "trainer.max_steps=1") == Exit.DONE
    return folder / "checkpoints/last.ckpt"


@pytest.mark.parametrize(("key", "value"), GROWN)
def test_a_checkpoint_that_says_it_is_larger_than_it_is(key, value, points, tmp_path):
    content = read(points)
    node, *_, last = content["config"], *key.split(".")
    for part in key.split(".")[:-1]:
        node = node[part]
    node[last] = value
    write(content, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        consistency_models.load(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("blocks", ["num_blocks", "channel_mult", "model_channels"])
def test_a_network_that_would_be_built_without_end(blocks, trained, tmp_path):
    content = read(trained / "checkpoints/last.ckpt")
    content["config"]["network"][blocks] = [1] * 10_000 if blocks == "channel_mult" else 10**9
    write(content, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        consistency_models.load(tmp_path / "bad.ckpt")


def test_tensors_and_lists_that_are_larger_than_the_file(points, tmp_path):
    for bad in (torch.zeros(1).expand(10**6, 10**6), torch.zeros(2, 2).to_sparse(), torch.empty(10**9, device="meta")):
        content = read(points)
        content["optimizer"]["state"] = {0: bad}
        write(content, tmp_path / "bad.ckpt")
        with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
            read(tmp_path / "bad.ckpt")
    items = ["x"]
    for _ in range(40):
        items = [items] * 9
    content = read(points) | {"config": None}
    torch.save(content | {"config": {"network": items}}, tmp_path / "file")
    sign(tmp_path / "file", tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="more than 1,000,000 items"):
        consistency_models.load(tmp_path / "bad.ckpt")


def sign(source, target):
    """A file of torch.save with its digest at the end, as `write` would write it."""
    import hashlib

    data = bytearray(source.read_bytes())
    data[-2:] = (71).to_bytes(2, "little")
    target.write_bytes(bytes(data) + b"sha256:" + hashlib.sha256(data).hexdigest().encode())


def test_a_compressed_checkpoint(points, tmp_path):
    import zipfile

    with zipfile.ZipFile(points) as old, zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    sign(tmp_path / "file", tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="is compressed"):
        read(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", {}),
        ("optimizer", {"param_groups": 4}),
        ("trainer", {"loops": 1}),
        ("ema", {"0.995": 1}),
    ],
)
def test_a_state_that_cannot_be_gone_on_with_is_one_line(key, value, trained, tmp_path, capsys):
    content = read(trained / "checkpoints/last.ckpt")
    content[key] = value
    write(content, tmp_path / "bad.ckpt")
    code = run(tmp_path / "new", *SMALL, "trainer.max_steps=3", f"ckpt_path={tmp_path / 'bad.ckpt'}")
    assert code == Exit.NO_GOOD_CHECKPOINT
    err = capsys.readouterr().err
    assert "error: " in err
    assert "Traceback" not in err


def test_overrides_of_a_run_are_written_without_aliases(tmp_path):
    from consistency_models.app.folder import RunFolder

    shared = [0.9, 0.99]
    RunFolder(tmp_path).write_config({"a": shared, "b": shared}, ["a=1"])
    assert "*" not in (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"a": shared, "b": shared}
