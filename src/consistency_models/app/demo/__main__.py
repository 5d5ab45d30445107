"""python -m consistency_models.app.demo run=FOLDER: a live page of trained runs in a browser.

run=FOLDER       a run folder, a checkpoint, an export or an official file; run=A run=B shows runs side by side, with
                 the same noise
host=127.0.0.1   the address to listen on; 0.0.0.0 lets other computers use the page
port=7860        the port; 0 takes a free one
device=auto      the device of the models: auto, cpu, cuda, cuda:1, mps
weights=NAME     model, or the name of an average; by default the first average
pipeline=FOLDER  of models of latents: the pipeline of diffusers with the VAE and the text encoders; by default the
                 folder that the file names

The page shows samples, the way from noise to image, edits and interpolations. Requires the extra `demo`. Nothing is
fetched or sent: neither this program nor the page opens a connection to another address.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen, MinLen, doc

from consistency_models.app.checks.files import wrong_path
from consistency_models.app.checks.rules import nearest
from consistency_models.app.checks.table import Device
from consistency_models.errors import ConfigError, Exit, command
from consistency_models.values import Text, Weights, checked, kinds_of

__all__ = ["main", "settings_of", "show"]

Port = Annotated[int, Ge(0), Le(65535)]
Runs = Annotated[Sequence[Text], MinLen(1), MaxLen(4), doc("run=FOLDER, one to four times")]


@checked
def show(
    run: Runs,
    host: Text = "127.0.0.1",
    port: Port = 7860,
    device: Device = "auto",
    weights: Weights | None = None,
    pipeline: Text | None = None,
) -> None:
    """Load the runs, and serve their page until a signal ends the process.

    Args:
        run: one to four paths.
        host, port, device, weights, pipeline: see the text of the command.

    Raises:
        ConfigError: a value is not allowed, or the address cannot be listened on.
        CheckpointError: a run cannot be loaded.
        ModuleNotFoundError: the extra `demo` is not installed.
    """
    wanted = [("run", path, "a run folder or a checkpoint file") for path in run]
    wanted += [] if pipeline is None else [("pipeline", pipeline, "the folder of a pipeline")]
    for key, path, what in wanted:
        for problem in wrong_path(key, path, what):
            raise problem
    from consistency_models.app.demo.server import listen, serve

    with listen(host, port) as listening:
        from consistency_models.app.demo.runs import open_runs

        serve(open_runs(run, weights, device, pipeline), listening)


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """Arguments of `show` from KEY=VALUE.

    Raises:
        ConfigError: a word is no KEY=VALUE, or the key is unknown or given twice.
    """
    settings: dict[str, Any] = {"run": []}
    keys = kinds_of(show)
    for word in words:
        key, equals, value = word.partition("=")
        if key not in keys or not equals:
            close = nearest(key, keys) if equals else "run"
            fix = f"did you mean {close}={value or key}?" if close else ""
            raise ConfigError(key, value, f"KEY=VALUE with a key of {', '.join(keys)}", fix)
        if key == "run":
            settings["run"].append(value)
        elif key in settings:
            raise ConfigError(key, value, "one value", reason="the key is given twice")
        else:
            settings[key] = int(value) if key == "port" and value.isdecimal() else value
    return settings


@command
def main(arguments: Sequence[str] | None = None) -> Exit:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m consistency_models.app.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    with suppress(KeyboardInterrupt):  # the end of the server, or while the runs are loaded
        show(**settings_of(given.settings))
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
