"""Time of the Fréchet distance of two sets of features, against torch-fidelity.

    python benchmarks/frechet.py                                   # 10,000 and 10,000 images, 2,048 features
    python benchmarks/frechet.py --images 50000 --features 768

Features are random, correlated and nonnegative, as those of Inception are. The time includes mean and covariance of
both sets. Each round runs both implementations in turn.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import measuring
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from consistency_models.evaluation.feature_set import FeatureSet
from consistency_models.evaluation.metrics import FrechetDistance

COLUMNS = {
    "implementation": "{implementation}",
    "seconds": "{seconds:.3g}",
    "CPU seconds": "{cpu_seconds:.3g}",
    "of torch-fidelity": "{ratio:.2f}",
    "distance": "{distance:.12g}",
}


def random_features(images: int, features: int, seed: int) -> torch.Tensor:
    """Draw features (images, features), float32."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=torch.Generator().manual_seed(0))
    mixing *= torch.exp(-torch.arange(features) / features * 7) / features**0.5
    return (torch.randn(images, features, generator=generator) @ mixing.T + 0.1 * seed).relu_()


def ours(x: torch.Tensor, y: torch.Tensor) -> float:
    """The distance by this project."""
    return FrechetDistance()(FeatureSet(x), FeatureSet(y))


def theirs(x: torch.Tensor, y: torch.Tensor) -> float:
    """The distance by torch-fidelity."""
    statistics = [fid_features_to_statistics(each) for each in (x, y)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="images of each set")
    parser.add_argument("--features", type=int, default=2048)
    args = parser.parse_args(arguments)
    results = measuring.machine(args)
    sets = [random_features(args.images, args.features, seed) for seed in (1, 2)]
    functions = {"torch-fidelity": partial(theirs, *sets), "consistency-models": partial(ours, *sets)}
    distances = {name: function() for name, function in functions.items()}
    runs = {name: partial(measuring.wall_and_cpu, function) for name, function in functions.items()}
    rounds = measuring.interleaved(runs, args.rounds)
    cpu = {name: [seconds for _, seconds in pairs] for name, pairs in rounds.items()}
    results["rows"] = [
        {
            "implementation": name,
            "seconds": measuring.median([wall for wall, _ in rounds[name]]),
            "cpu_seconds": measuring.median(cpu[name]),
            "ratio": measuring.median([own / other for own, other in zip(cpu[name], cpu["torch-fidelity"])]),
            "distance": distances[name],
        }
        for name in functions
    ]
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
