"""A value just outside a bound of an annotation is refused by the constructor and by the command check alike.

The cases are made from the annotations of all that a `_target_` in conf/ and sweeps/ names.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from commands import ROOT
from hydra.utils import get_object

from consistency_models.app.checks.job import wrong
from consistency_models.app.checks.targets import find
from consistency_models.errors import ConfigError, show
from consistency_models.noise.schedules import LogNormal
from consistency_models.values import accepts, members, parts

FILES = sorted([*(ROOT / "conf").glob("*/*.yaml"), *(ROOT / "sweeps").glob("*.yaml")])


def places():
    """Where a `_target_` of this project first stands: target -> (task, path of keys)."""
    found = {}
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        root = () if "@package _global_" in text or file.parent.name == "sweeps" else (file.parent.name,)
        for path, node in nodes(yaml.safe_load(text), root):
            if str(node["_target_"]).startswith("consistency_models."):
                found.setdefault(node["_target_"], ("eval" if "task" in path else "train", path))
    return found


def nodes(tree, path):
    """(path, node) of all mappings with a `_target_`."""
    if isinstance(tree, dict) and "_target_" in tree:
        yield path, tree
    for key, branch in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from nodes(branch, (*path, key))


def outside(kind):
    """Values just outside the bounds of a type."""
    base, metadata = parts(kind)
    for item in metadata:
        match item:
            case Gt(gt=bound) | Lt(lt=bound):
                yield bound if base is int else float(bound)
            case Ge(ge=bound):
                yield bound - 1 if base is int else math.nextafter(bound, -math.inf)
            case Le(le=bound):
                yield bound + 1 if base is int else math.nextafter(bound, math.inf)
            case MinLen(min_length=length) if length:
                yield []
    if len(each := members(base)) > 1:
        for member in each:
            yield from outside(member)
    elif get_origin(base) is Literal:
        yield "no such name"
    elif get_origin(base) in (list, tuple, Sequence) and get_args(base):
        least, most = (
            next((getattr(item, name) for item in metadata if isinstance(item, one)), None)
            for one, name in ((MinLen, "min_length"), (MaxLen, "max_length"))
        )
        for value in outside(get_args(base)[0]):
            yield [value] * (least or 1)
        if most is not None:
            yield [0.5] * (most + 1)


PLACES = places()
CASES = [
    (target, argument, value)
    for target in PLACES
    for argument, kind in (find(target).arguments or {}).items()
    for value in outside(kind)
    if kind is not Any and not accepts(kind, value)
]


def test_there_are_enough():
    assert len({target for target, *_ in CASES}) > 60
    assert len(CASES) > 250


@pytest.mark.parametrize(("target", "argument", "value"), CASES, ids=[f"{t}-{a}-{show(v)[:40]}" for t, a, v in CASES])
def test_refused_at_run_time_and_by_the_command(target, argument, value):
    with pytest.raises(ValueError, match=f"^{argument}="):
        get_object(target)(**{argument: value})
    task, path = PLACES[target]
    tree = {"_target_": target, argument: value}
    for key in reversed(path):
        tree = {key: tree}
    key = ".".join(map(str, (*path, argument)))
    assert [one.key for one in wrong(task, tree, (*path, argument), [])] == [key]


def test_numbers_of_numpy_are_numbers():
    assert LogNormal(np.float64(-1.2), np.float32(1.0)).mean == -1.2
    with pytest.raises(ConfigError, match=r"std=0\.0 is not allowed"):
        LogNormal(-1.2, np.float64(0.0))


@pytest.mark.parametrize(("value", "written"), [(None, "null"), ([1.0, None], "[1.0,null]"), (True, "true")])
def test_a_value_is_written_as_on_the_command_line(value, written):
    assert str(ConfigError("key", value, "null")) == f"key={written} is not allowed. Allowed: null"
