"""Relations between keys and groups: each function yields the problems of one relation.

All take the resolved configuration, which has passed the rules for single keys, and the option that each group has.
"""

from consistency_models.app.checks.relations.choices import Choices
from consistency_models.app.checks.relations.images import augment, data, features
from consistency_models.app.checks.relations.levels import (
    curriculum,
    levels,
    preconditioning,
    ranges,
    schedule,
    steps,
    table,
)
from consistency_models.app.checks.relations.networks import method, network, text, two_times
from consistency_models.app.checks.relations.running import checkpoint, folder_name, outputs, solver, trainer
from consistency_models.app.checks.relations.scoring import sample_sets, scored_run, ways
from consistency_models.app.checks.relations.teachers import guidance, init, needs_teacher, teacher

__all__ = ["EVAL", "TRAIN", "Choices", "needs_teacher"]

TRAIN = (
    *(
        teacher,
        guidance,
        text,
        two_times,
        preconditioning,
        init,
        ranges,
        levels,
        schedule,
        table,
        method,
        steps,
        curriculum,
        network,
    ),
    *(data, augment, features, trainer, outputs, folder_name, solver, checkpoint),
)
EVAL = (folder_name, scored_run, sample_sets, ways, ranges)
