"""Train a model:  python train.py model=ict data=cifar10   (python train.py --help lists the groups).

Hydra composes the configuration from conf/; what is trained, and how, is in the package `consistency_models`.
"""

import sys
from pathlib import Path

from consistency_models.app.main import main

if __name__ == "__main__":
    sys.exit(main("train", Path(__file__).resolve().parent))
