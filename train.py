"""Train a model:  python train.py model=ict data=cifar10   (python train.py --help lists the groups).

Hydra composes the configuration from conf/. The package `consistency_models` runs the training.
"""

import sys

try:
    from pathlib import Path

    from consistency_models.app.main import main
except KeyboardInterrupt:  # Ctrl-C during the imports
    sys.exit(75)

if __name__ == "__main__":
    sys.exit(main("train", Path(__file__).resolve().parent))
