"""python -m consistency_models.pretrained FILE OUT.ckpt: write an official checkpoint in this project's own form."""

from __future__ import annotations

import argparse
import sys

from consistency_models.checkpoints import write
from consistency_models.pretrained.convert import checkpoint_of
from consistency_models.pretrained.errors import CheckpointError


def main() -> int:
    """Convert the file on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m consistency_models.pretrained", description=__doc__)
    parser.add_argument("file", help="an official checkpoint: *.pkl of EDM, EDM2 or ECT, *.pt of OpenAI")
    parser.add_argument("out", help="the checkpoint to write, which consistency_models.load and eval.py take")
    arguments = parser.parse_args()
    try:
        write(checkpoint_of(arguments.file), arguments.out)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 5 if isinstance(error, OSError) else 4  # as train.py and eval.py
    return 0


if __name__ == "__main__":
    sys.exit(main())
