"""python -m consistency_models.export RUN OUT --format F: export a trained or official model to another format.

safetensors   one file with weights and configuration; consistency_models.load reads it
onnx          the generator of one step: noise (and classes) to images, for any batch size
hub           a folder for the Hugging Face Hub: model card, weights, configuration, samples
diffusers     a folder for diffusers: ConsistencyModelPipeline (network=openai_adm), or the pipeline of the teacher
              (network=diffusers), or adapters for load_lora_weights (network=diffusers_lora)
checkpoint    a checkpoint of this project, for eval.py, teacher=run and load
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from consistency_models import export
from consistency_models.errors import ConfigError, Exit, command
from consistency_models.files import is_checkpoint
from consistency_models.storage.loading import checkpoint_file, load

FOLDERS = ("hub", "diffusers")
FORMATS = ("safetensors", "onnx", "hub", "diffusers", "checkpoint")


@command
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
    parser.add_argument("--pipeline", help="of --format diffusers: the pipeline to copy VAE and text encoders from")
    parser.add_argument("--merge", action="store_true", help="of --format diffusers: add adapters to the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace files of OUT; a checkpoint is never replaced")
    given = parser.parse_args()
    options = {"hub": ("license",), "diffusers": ("pipeline", "merge")}
    extra = {key: getattr(given, key) for key in options.get(given.format, ())}
    for kind, keys in options.items():
        for key in keys:
            if getattr(given, key) and kind != given.format:
                reason = f"--format={given.format} has no use for it"
                raise ConfigError(f"--{key}", getattr(given, key), f"with --format {kind}", reason=reason)
    run, out = given.run.removeprefix("run="), Path(given.out)
    kind = "folder" if given.format in FOLDERS else "file"
    if out.exists() and not (out.is_dir() if kind == "folder" else out.is_file()):
        raise ConfigError("OUT", out, f"a {kind} with --format {given.format}", "choose another name")
    if out.is_file() and (is_checkpoint(out) or out.samefile(checkpoint_file(run))):
        raise ConfigError("OUT", out, "a new file", "choose another name", reason="it would replace a checkpoint")
    if (out.is_file() or (out.is_dir() and any(out.iterdir()))) and not given.overwrite:
        reason = "it exists" if out.is_file() else "it has files, which those of the export could replace"
        raise ConfigError("OUT", out, "a new name, or an empty folder", "or add --overwrite", reason=reason)
    generator = load(run, given.weights)
    getattr(export, f"to_{given.format}")(generator, given.out, **extra)
    print(f"written to {given.out}")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
