"""python -m consistency_models.export RUN OUT --format F: export a trained or official model to another format.

safetensors   one file with weights and configuration; consistency_models.load reads it
onnx          the generator of one step: noise (and classes) to images, for any batch size
hub           a folder for the Hugging Face Hub: model card, weights, configuration, samples
diffusers     a folder for diffusers' ConsistencyModelPipeline (network=openai_adm only)
checkpoint    a checkpoint of this project, for eval.py, teacher=run and load
"""

from __future__ import annotations

import argparse
import sys

from consistency_models import export
from consistency_models.errors import CheckpointError, ConfigError, Exit
from consistency_models.storage.loading import load

FORMATS = ("safetensors", "onnx", "hub", "diffusers", "checkpoint")


def main() -> Exit:
    """Run the export of the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m consistency_models.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="a run folder, a checkpoint, or an official file (run=… is understood, too)")
    parser.add_argument("out", help="the file or folder to write")
    parser.add_argument("--format", choices=FORMATS, default="safetensors")
    parser.add_argument("--weights", help="model, or the name of an average; by default the first average")
    parser.add_argument("--license", help="of the weights, for the card of --format hub: mit, cc-by-nc-sa-4.0, …")
    given = parser.parse_args()
    extra = {"license": given.license} if given.format == "hub" else {}
    try:
        if given.license and not extra:
            reason = f"--format={given.format} writes no model card"
            raise ConfigError("--license", given.license, "a license with --format hub", reason=reason)
        generator = load(given.run.removeprefix("run="), given.weights)
        getattr(export, f"to_{given.format}")(generator, given.out, **extra)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        codes = {CheckpointError: Exit.NO_GOOD_CHECKPOINT, OSError: Exit.STORAGE}
        return next((code for kind, code in codes.items() if isinstance(error, kind)), Exit.BAD_INPUT)
    print(f"written to {given.out}")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
