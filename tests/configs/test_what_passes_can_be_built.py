"""What passes the checks is what the classes take: no value gets through on which an object cannot be made."""

import copy
import math

import pytest
from commands import every_option

from consistency_models.app.checks import relations
from consistency_models.app.checks.composing import leaves, resolved
from consistency_models.app.checks.job import wrong

BUILT = ("schedule", "curriculum", "loss", "weighting", "preconditioning", "solver", "sampler", "ema", "learning_rate")
SMALL = ("small", "mlp")
PROBES = (
    *(None, True, "x", -1, 0, 1, 2, 3, 30, 32, 1000, -1.0, 0.0, 1e-300, 1e-6, 0.28, 0.5, 1.0, 1.5, 81.0),
    *(1e300, math.inf, -math.inf, math.nan, [], [0], [1], [0.5], [1, 2], [2, 2], [1, 2, 2, 2], [0.1, 0.2], [1024, 31]),
)
LINES = {
    "methods": [line for line in every_option() if " schedule=" in line or " solver=" in line],
    "recipes": [line for line in every_option() if " weighting=" in line],
    "networks": [f"network={name}" for name in SMALL],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LINES)
def test_what_passes_can_be_built(kind, composer, files):
    from consistency_models.storage.loading import instantiate

    tried, failed = set(), []
    for line in LINES[kind]:
        config = composer.compose(composer.parse(files.split(line)))
        choices = relations.Choices(config.hydra.runtime.choices, composer.contents)
        content, choices["run folder"] = resolved(config)
        choices["goes on"] = "false"
        for group in [*BUILT, "augment", *(["network"] if kind == "networks" else [])]:
            node = content[group]
            if (group, choices[group]) in tried or "_target_" not in node:
                continue
            tried.add((group, choices[group]))
            instantiate(node)
            for path, _ in leaves(node):
                for value in PROBES if path[-1] != "_target_" and "source" not in path else ():
                    changed = {**content, group: copy.deepcopy(node)}
                    place = changed[group]
                    for part in path[:-1]:
                        place = place[part]
                    place[path[-1]] = value
                    huge = group == "network" and value in (1000, [1024, 31])  # would be built all too well
                    if huge or wrong("train", changed, (group, *path), []):
                        continue
                    if any(True for relation in relations.TRAIN for _ in relation(changed, choices)):
                        continue
                    try:
                        made = instantiate(changed[group])
                        if group == "sampler":
                            made(steps=changed["evaluation"]["steps"][0])
                    except Exception as error:
                        failed.append((f"{choices[group]}: {group}.{path}={value}", str(error)))
    assert failed == []
