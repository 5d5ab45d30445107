"""Command lines for the tests of configurations."""

import itertools
import re
import shlex
from pathlib import Path

from jobs import distilling, on_points

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in ("hydra", "task") and any(folder.glob("*.yaml"))
}
OF_TABLES = {"schedule": ("table",), "sampler": ("lcm", "ddim"), "preconditioning": ("lcm", "table")}
"""Options that need one another: the levels of a discrete table."""
ANYWHERE = ("callbacks", "ema", "learning_rate", "logger", "optimizer", "paths", "trainer", "weighting")
"""Groups whose options need nothing of other groups."""


class DummyFiles:
    """A folder for data, a checkpoint file and a run folder, as far as they are looked at from outside."""

    def __init__(self, folder):
        self.names = {
            "root": folder / "images",
            "ckpt": folder / "run" / "checkpoints" / "last.ckpt",
            "run": folder / "run",
            "pickle": folder / "official.pkl",
            "text": folder / "notes.txt",
            "empty": folder / "empty",
            "pipeline": folder / "pipeline",
        }
        self.names["root"].mkdir()
        self.names["ckpt"].parent.mkdir(parents=True)
        self.names["ckpt"].write_bytes(b"PK" + b"sha256:" + b"0" * 64)
        self.names["pickle"].write_bytes(b"not looked at")
        self.names["text"].write_text("no checkpoint")
        self.names["empty"].mkdir()
        self.names["pipeline"].mkdir()
        (self.names["pipeline"] / "model_index.json").write_text("{}")

    def split(self, line):
        """The arguments of a command line in which {root} and the like stand for these files."""
        for name, path in self.names.items():
            line = line.replace(f"{{{name}}}", str(path))
        return shlex.split(line)


def every_option():
    """Command lines in which every option of every group occurs, with partners that it makes sense with."""
    pairs = [tuple(recipe.split("_", 1)) for recipe in GROUPS["recipe"]]
    trained_on = {*GROUPS["budget"], *(data for _, data in pairs if "{root}" not in _of_data(data))}
    trained = sorted({*itertools.product(GROUPS["model"], trained_on), *pairs})
    for i, (model, data) in enumerate(trained):
        yield " ".join([_with_model(model), _of_data(data), *(_turn(group, i) for group in ANYWHERE)])
    networks = [name for name in GROUPS["network"] if not re.search(r"(diffusers|lora|64|128|256)$", name)]
    of_two_times = [name for name in GROUPS["schedule"] if "two_times: true" in _text(_model_of("schedule", name))]
    yield from (f"{_with_model(_model_of('schedule', name))} schedule={name}" for name in of_two_times)
    schedules = [name for name in GROUPS["schedule"] if name not in (*of_two_times, *OF_TABLES["schedule"])]
    lines = max(len(networks), len(schedules), len(GROUPS["loss"]))
    for i in range(lines):
        schedule, network = (names[i % len(names)] for names in (schedules, networks))
        augment = "augment=none" if network.startswith(("edm2", "openai")) else _turn("augment", i)
        name = _model_of("schedule", schedule)
        groups = ("loss", "sampler", *(() if "trigflow" in _text(name) else ("preconditioning",)))
        others, model = " ".join(_turn(group, i) for group in groups), _with_model(name)
        yield f"{model} schedule={schedule} {others} network={network} {augment} data=cifar10 data.root={{root}}"
    yield from (f"model=ict curriculum={name}" for name in GROUPS["curriculum"])
    yield from (f"model=meanflow sampler={name}" for name in GROUPS["sampler"] if name.startswith("flow_map"))
    for network in sorted(set(GROUPS["network"]) - {*networks, "diffusers", "diffusers_lora"}):
        size = re.search(r"\d+$", network)[0]
        yield f"network={network} data=image_folder data.root={{root}} data.image_size={size}"
    yield from (f"{_with_model(_model_of('solver', solver))} solver={solver}" for solver in GROUPS["solver"])
    for i, data in enumerate(GROUPS["data"]):
        debug = "" if data.startswith("mixture") else _turn("debug", i)
        yield f"{_of_data(data)} features=identity {debug}".rstrip()
    yield from (f"init=random teacher=none features={features}" for features in GROUPS["features"])
    yield "model=lcm data=latents data.root={root} data.image_size=8 teacher=diffusers teacher.path={pipeline}"
    yield (
        "model=lcm network=diffusers_lora model.target_ema=null model.w_embedding=null data=latents data.root={root} "
        "data.image_size=8 teacher=diffusers teacher.path={pipeline}"
    )
    yield f"{_with_model('lcm')} schedule=table sampler=ddim preconditioning=table network=small"
    yield "model=ict network=diffusers init=pretrained init.path={pipeline}"
    yield "teacher=exact data=mixture model=cd init=run init.path={ckpt}"
    yield "teacher=run teacher.path={run} model=cd init=teacher"
    yield "teacher=edm teacher.path={pickle} teacher.guidance=2 model=cd init=pretrained init.path={pickle}"
    yield from (f"teacher={kind} teacher.path={{pickle}} model=cd" for kind in ("ect", "openai"))
    yield from map(of_experiment, GROUPS["experiment"])


def of_experiment(experiment):
    """The command line of an experiment, with the paths that it asks for."""
    text = (CONF / f"experiment/{experiment}.yaml").read_text()
    files = {
        "run": "{run}",
        "diffusers": "{pipeline}",
        **dict.fromkeys(("edm", "ect", "openai", "pretrained"), "{pickle}"),
    }
    paths = [
        f"{group}.path={files[option]}"
        for group, option in re.findall(r"override /(teacher|init): (\w+)", text)
        if option in files
    ]
    return " ".join([f"experiment={experiment} data.root={{root}}", *paths])


def written_options():
    """group=option, for every file of a group."""
    return [f"{group}={option}" for group, option in itertools.chain(*([(g, o) for o in GROUPS[g]] for g in GROUPS))]


def _turn(group, i):
    """An option that needs no other one: neither two times nor a table."""
    others = OF_TABLES.get(group, ())
    options = [option for option in GROUPS[group] if not option.startswith("flow_map") and option not in others]
    return f"{group}={options[i % len(options)]}"


def _with_model(model):
    network = " network=mlp" if on_points(model) else ""  # lcm: the network of a folder otherwise
    return f"model={model}{network}" + (" teacher=run teacher.path={run}" if model in distilling() else "")


def _model_of(group, option):
    """A model that has chosen this option; otherwise one that has a use for the group."""
    chosen = [model for model in GROUPS["model"] if f"override /{group}: {option}\n" in _text(model)]
    alike = [model for model in GROUPS["model"] if f"override /{group}: {option.split('_')[0]}_" in _text(model)]
    return next(iter(chosen or alike), "cd" if group == "solver" else "ict")


def _text(model):
    return (
        "\n".join(line.split("#")[0].rstrip() for line in (CONF / f"model/{model}.yaml").read_text().splitlines())
        + "\n"
    )


def _of_data(data):
    text = (CONF / f"data/{data}.yaml").read_text()
    if base := re.search(r"^defaults:\s*(?:- |\[)(?!override)(\w+)", text, re.MULTILINE):  # a data set like another
        return _of_data(base[1]).replace(base[1], data, 1)
    extra = " data.root={root}" if "root: ???" in text else ""
    extra += " 'data.source.urls=\"https://example.org/a-{0..9}.tar\"'" if "urls: ???" in text else ""
    return f"data={data}{extra}" + (" data.image_size=32" if "image_size: ???" in text else "")
