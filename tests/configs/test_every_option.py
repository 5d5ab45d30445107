"""Every option of every group composes and passes; every key is a setting of the table or an argument with a type."""

import re
from typing import Any

import pytest
from commands import CONF, every_option, written_options

from consistency_models.app.checks import Composer
from consistency_models.app.checks.composing import leaves, plain, resolved
from consistency_models.app.checks.job import REQUIRED, _objects
from consistency_models.app.checks.relations import TRAIN as RELATIONS
from consistency_models.app.checks.relations import Choices
from consistency_models.app.checks.table import EVAL, FREE, TRAIN, kind_of
from consistency_models.app.checks.targets import find
from consistency_models.errors import ConfigError

LINES = list(dict.fromkeys(every_option()))
REQUIRED_PATHS = {tuple(key.split(".")[:end]) for key in REQUIRED["train"] for end in range(1, key.count(".") + 2)}


@pytest.fixture(scope="module")
def trees(composer, files):
    """The configuration of each line."""
    return {line: plain(composer.compose(composer.parse(files.split(line)))) for line in LINES}


def keys(tree):
    return {re.sub(r"\.\d+(?=\.|$)", ".*", ".".join(map(str, path))) for path, _ in leaves(tree)}


@pytest.mark.parametrize("line", LINES)
def test_passes(line, passes, files):
    assert passes(line) == files.split(line)


def test_no_option_is_left_out(composer, files):
    written = " ".join(LINES).split()
    bases = {line: composer.compose(composer.parse(files.split(line))) for line in LINES if "experiment=" not in line}
    chosen = {f"{key}={option}" for config in bases.values() for key, option in config.hydra.runtime.choices.items()}
    assert set(written_options()) - chosen - set(written) == set()


def test_every_key_is_a_setting_or_an_argument_with_a_type(trees):
    for tree in trees.values():
        for path, _ in leaves(tree):
            where = list(_objects(tree, path))
            found = find(tree_at(tree, where[-1])["_target_"]) if where else None
            kinds = (found.arguments or {}) if found else {}
            argument = path[len(where[-1])] if where else None
            foreign = found is not None and not tree_at(tree, where[-1])["_target_"].startswith("consistency_models.")
            assert kind_of("train", ".".join(map(str, path))) or argument in kinds or foreign, path
            untyped = argument in kinds and kinds[argument] is Any
            assert not untyped, f"{path} has no type: annotate the argument"


def test_every_setting_of_the_table_is_in_a_configuration(trees):
    found = set().union(*map(keys, trees.values()))
    nodes = {"data.source", "logger.wandb", "teacher._target_", "init._target_"}
    assert TRAIN.keys() - found - nodes == set(), "settings without a key: remove them, or move them to FREE"
    assert not TRAIN.keys() & FREE.keys()


def tree_at(tree, path):
    for part in path:
        tree = tree[part]
    return tree


@pytest.mark.usefixtures("_as_in_main")
def test_the_same_of_eval():
    tree = plain(Composer("eval", CONF).compose([]))
    assert keys(tree) == EVAL.keys()
    assert set(REQUIRED["eval"]) <= EVAL.keys()


def test_every_required_key_is_in_every_configuration(trees):
    for line, tree in trees.items():
        present = {".".join(map(str, path[:end])) for path, _ in leaves(tree) for end in range(1, len(path) + 1)}
        assert set(REQUIRED["train"]) - present == set(), line


def test_never_without_a_key_that_may_be_left_out(composer, files):
    """Files of users lack what ours have: relations between keys ask only for those that every file must have."""
    seen = set()
    for line in LINES:
        config = composer.compose(composer.parse(files.split(line)))
        choices = Choices(config.hydra.runtime.choices, composer.contents)
        content, choices["run folder"] = resolved(config)
        choices["goes on"] = "false"
        paths = {path[:end] for path, _ in leaves(content) for end in range(1, len(path) + 1)}
        for path in paths - REQUIRED_PATHS:
            if (path, choices.get(path[0])) in seen:
                continue
            seen.add((path, choices.get(path[0])))
            rest = without(content, path)
            told = [one for relation in RELATIONS for one in relation(rest, choices)]
            assert all(isinstance(one, ConfigError) for one in told), f"{line} {path}"


def without(tree, path):
    """A tree that lacks one key; the rest of it is not copied."""
    first, *rest = path
    branches = tree if isinstance(tree, dict) else dict(enumerate(tree))
    kept = {key: branch for key, branch in branches.items() if key != first or rest}
    if rest:
        kept[first] = without(branches[first], rest)
    return kept if isinstance(tree, dict) else list(kept.values())


def test_every_object_is_found_with_its_arguments(trees):
    """What is read from source is what Python finds on import."""
    import inspect

    from hydra.utils import get_object

    nodes = {}
    for tree in trees.values():
        for path, _ in leaves(tree):
            nodes |= {target: get_object(target) for target in targets(tree, path)}
    assert len(nodes) > 50
    for target, thing in nodes.items():
        found = find(target)
        assert found.exists, target
        parameters = inspect.signature(thing).parameters.values()
        known = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if found.arguments is not None and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            assert known == set(found.arguments), target


def targets(tree, path):
    for where in _objects(tree, path):
        node = tree
        for part in where:
            node = node[part]
        yield node["_target_"]
