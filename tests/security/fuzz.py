"""Feeds readers with mutated files of a format, while the interpreter's audit events, time and memory are watched.

    PYTHONPATH=tests python tests/security/fuzz.py FORMAT FOLDER --seed 0 --cases 2000

FOLDER holds a run of two steps on a mixture, `model.safetensors` of it and `reference.npz`. The formats are checkpoint,
export, npz, yaml, compare and resume. Prints how the cases ended as JSON. Exit status 1, with the offending case kept,
if one changed something outside its folder, took longer than 20 seconds or more than 1 GiB, or ended in anything but a
result or the package's own error.
"""

import argparse
import collections
import contextlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from security.formats import FORMATS
from security.watch import watched


class Hang(BaseException):
    """A case that took too long."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=200)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    subject, rng = FORMATS[given.format](given.folder.absolute()), random.Random(given.seed)
    work = Path(tempfile.mkdtemp())
    os.chdir(work)

    def late(*_):
        raise Hang

    signal.signal(signal.SIGALRM, late)
    endings, limited = collections.Counter(), False
    for number in range(-3, given.cases):  # the first ones import what is imported on first use
        place = work / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        subject.make(random.Random(number) if number < 0 else rng, place)
        if number == 0 and sys.platform == "linux" and not limited:  # memory beyond this is refused
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
            limited = True
        ending, shown = "used", io.StringIO()
        signal.alarm(20)
        with watched(place, tempfile.gettempdir() if number < 0 else place) as events:
            try:
                with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
                    subject.use(place)
            except subject.errors as error:
                ending = "refused"
                if "MemoryError" in str(error) or "allocate memory" in str(error):
                    ending = f"out of memory: {error}"
            except Hang:
                ending = "hung"
            except BaseException as error:
                ending = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        if "Traceback" in shown.getvalue():
            ending = f"traceback: {shown.getvalue()}"
        events = [event for event in events if "('git'" not in event[1]]  # the revision, in summary.json
        if (events and number >= 0) or ending not in ("used", "refused"):
            print(json.dumps({"case": number, "ending": ending[:3000], "events": events, "folder": str(work)}))
            sys.exit(1)
        if number >= 0:
            endings[ending] += 1
    os.chdir("/")
    shutil.rmtree(work)
    print(json.dumps(endings))


if __name__ == "__main__":
    main()
