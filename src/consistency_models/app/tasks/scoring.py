"""The evaluation of eval.py. Its features are divided over the processes that sample; the scores do not change."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from consistency_models.app import build
from consistency_models.app.tasks.sample_workers import Producer
from consistency_models.data_spec import listed
from consistency_models.errors import ConfigError
from consistency_models.evaluation import Evaluation
from consistency_models.sampling.generator import Generator

__all__ = ["evaluation_of", "features_divided"]


def evaluation_of(config: dict[str, Any], generator: Generator) -> Evaluation:
    """Build the evaluation, with the data of the command line or of the run, whose texts `generator` takes by default.

    Raises:
        ConfigError: no data are given, or the data have another shape or other classes than the model.
    """
    data = build.chosen_data(config, generator.config)
    chosen = {"data": data, "features": config.get("features") or generator.config.get("features", {})}
    for group, add in (("data", "data=cifar10 data.root=FOLDER"), ("features", "features=classifier")):
        if "_target_" not in chosen[group]:
            raise ConfigError(
                group, None, "a choice on the command line", f"add {add}", reason=f"{config['run']} names none"
            )
    source = build.build_source(chosen, may_fetch=data is config.get("data"))
    shape, classes = tuple(source.images.shape[1:]), source.num_classes
    if shape != generator.shape or generator.num_classes not in (0, classes):
        allowed = (
            f"images of shape {generator.shape} in {generator.num_classes or 'no'} classes, as {config['run']} makes"
        )
        raise ConfigError("data", chosen["data"]["name"], allowed, reason=f"these are {shape} in {classes}")
    names = generator.class_names
    if names and source.class_names not in (names, ()):
        allowed = f"images of the classes {listed(names)}, as {config['run']} makes"
        raise ConfigError("data", chosen["data"]["name"], allowed, reason=f"these are {listed(source.class_names)}")
    generator.prompts = build.prompts_of(data, source)
    return build.build_evaluation(chosen, source)


@contextmanager
def features_divided(evaluation: Evaluation, producer: Producer, config: dict[str, Any]) -> Iterator[None]:
    """Extract features in the processes of `producer`, if it has several.

    Each process reads its share of the real images itself, and receives batches of generated images. The batches are
    those of one process, so features differ by rounding at most.
    """
    ranks = len(producer.devices)
    if ranks == 1:
        yield
        return
    _ = evaluation.extractor  # trained or fetched once, not by every process
    alone = evaluation.extract_all, evaluation.collect_shares
    evaluation.extract_all = lambda batches: map(
        torch.from_numpy, producer.map(_features, ((config, batch.numpy()) for batch in batches))
    )
    evaluation.collect_shares = lambda: [
        pickle.loads(share) for share in producer.map(_share, ((config, rank, ranks) for rank in range(ranks)))
    ]
    try:
        yield
    finally:
        evaluation.extract_all, evaluation.collect_shares = alone


_evaluation: Evaluation | None = None


def _features(generator: Generator, config: dict[str, Any], batch: np.ndarray) -> np.ndarray:
    return _of_worker(generator, config).extract(torch.from_numpy(batch)).cpu().numpy()


def _share(generator: Generator, config: dict[str, Any], rank: int, ranks: int) -> bytes:
    # Pickled here: multiprocessing would send each of the many tensors by a file of its own.
    return pickle.dumps(_of_worker(generator, config).share(rank, ranks))


def _of_worker(generator: Generator, config: dict[str, Any]) -> Evaluation:
    """The evaluation of this process."""
    global _evaluation
    if _evaluation is None:
        logging.disable(logging.WARNING)  # the first process has shown all warnings
        with warnings.catch_warnings(action="ignore"):
            _evaluation = evaluation_of(config, generator)
    return _evaluation
