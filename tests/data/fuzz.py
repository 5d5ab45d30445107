"""Feeds `image_folder` mutated zips, dataset.json files and caches while watching every audit event of the interpreter.

    python tests/data/fuzz.py KIND --seed 0 --cases 2000        # zip, json or cache

A process of its own, because an audit hook cannot be taken away again. Prints how the cases ended as JSON; exit
status 1 and the offending case if one touched anything outside of its folder, ended in anything but images or a
DataError, took more than 1 GB or 60 seconds.
"""

import argparse
import codecs
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
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from consistency_models.data import DataError, decoded_cache, image_folder

HARMLESS = (
    "builtins.id",
    "array.__new__",
    "_thread.",
    "fcntl.",
    "mmap.",
    "time.sleep",
    "sys._getframe",
    "signal.",
    "resource.",
)
NUMBERS = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1]
KINDS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "gif": "GIF", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM"}
KINDS |= {"jp2": "JPEG2000", "avif": "AVIF"}
PARTS = (
    "cat/",
    "dog/",
    "train/",
    "val/",
    "../",
    "/",
    "\\",
    "a" * 300,
    "é",
    ".",
    "__MACOSX/",
    "dataset.json",
    "0",
)
WORDS = ("[", "]", "{", "}", '"labels"', "null", ":", ",", "1e999", "-1", "9" * 5000, '"00000/0.png"', "NaN", "true")
GIGABYTE = 1 << 30


def encoded(rng, kind):
    shape = rng.choice([(8, 8), (8, 8, 3), (5, 9, 3), (8, 8, 4)])
    pixels = np.frombuffer(rng.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.convert("RGB" if kind in ("JPEG", "PPM", "BMP", "JPEG2000") else image.mode).save(buffer, kind)
    return buffer.getvalue()


def mutated(rng, data):
    """Bytes with some flipped, lost, doubled, or with a number of two or four bytes instead."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at, kind, length = rng.randrange(len(data) + 1), rng.randrange(5), rng.randrange(1, 30)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        if kind == 1:
            del data[at : at + length]
        if kind == 2:
            data[at:at] = data[at : at + length]
        if kind == 3:
            size = rng.choice([2, 4])
            data[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, rng.choice(["little", "big"]))
        if kind == 4:
            del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def zipped(rng):
    """A zip of damaged images, or a damaged zip, or one with strange names."""
    buffer, damage = io.BytesIO(), rng.choice(["images", "zip", "names"])
    with zipfile.ZipFile(buffer, "w") as archive:
        for k in range(rng.randrange(1, 6)):
            suffix, kind = rng.choice(list(KINDS.items()))
            content = encoded(rng, kind)
            name = f"{rng.choice(['cat', 'dog'])}/{k}.{suffix}"
            if damage == "images":
                content = mutated(rng, content)
            if damage == "names":
                name = "".join(rng.choices(PARTS, k=rng.randrange(1, 5))) + f"{k}.{suffix}"
            methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
            archive.writestr(name, content, rng.choices(methods, [5, 5, 1, 1])[0])
    return mutated(rng, buffer.getvalue()) if damage == "zip" else buffer.getvalue()


def strange(rng, depth=0):
    """Any JSON value, most often of the form of labels."""
    name = f"00000/{rng.randrange(3)}.png"
    simple = [None, True, -1, 0, 3, 2**70, 0.5, "", name, "\\".join(name.split("/"))]
    nested = [[name, rng.randrange(3)], [[f"00000/{k}.png", k] for k in range(3)]]
    if depth < 3:
        nested += [[strange(rng, depth + 1) for _ in range(rng.randrange(4))], {"labels": strange(rng, depth + 1)}]
    return rng.choice(simple + nested)


def labels(rng):
    """The bytes of a dataset.json."""
    good = json.dumps({"labels": [[f"00000/{k}.png", k] for k in range(3)]}).encode()
    return rng.choice(
        [
            lambda: mutated(rng, good),
            lambda: json.dumps({"labels": [[f"00000/{k}.png", rng.choice(NUMBERS)] for k in range(3)]}).encode(),
            lambda: json.dumps({"labels": strange(rng)}).encode(),
            lambda: json.dumps(strange(rng)).encode(),
            lambda: "".join(rng.choices(WORDS, k=rng.randrange(1, 40))).encode(),
            lambda: b"[" * rng.choice([10, 100_000]),
            lambda: b'{"labels":[' + b"[]," * 3_000_000 + b"[]]}",
        ][: 7 if rng.random() < 0.02 else 6]
    )()


class Case:
    """One kind of input in a folder of its own: `write(rng)` makes the next, `read(rng)` feeds it."""

    def __init__(self, kind, folder):
        self.kind, self.folder, self.cache = kind, folder, folder / "cache"
        for k in range(3):
            path = folder / "images" / "00000" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(random.Random(k), "PNG"))
        self.options = {"image_size": 8, "cache_dir": self.cache if kind == "cache" else None}
        self.good = image_folder(folder / "images", **self.options).images.clone()
        self.kept = {path: path.read_bytes() for path in self.cache.glob("*/*")}

    def write(self, rng):
        if self.kind == "zip":
            (self.folder / "case.zip").write_bytes(zipped(rng))
        if self.kind == "json":
            (self.folder / "images" / "dataset.json").write_bytes(labels(rng))
        if self.kind == "cache":
            shutil.rmtree(self.cache)
            for path, content in self.kept.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            path = rng.choice(list(self.kept))
            path.write_bytes(mutated(rng, self.kept[path]))
            self.is_changed = rng.random() < 0.5
            if self.is_changed:  # so that the arrays themselves are looked at
                with contextlib.suppress(Exception):
                    images, kept = (np.load(path.parent / name) for name in decoded_cache.FILES[:2])
                    sums = decoded_cache._digests(decoded_cache._hash(images), kept)
                    (path.parent / "digests.json").write_text(json.dumps(sums))

    def read(self, rng):
        root = self.folder / ("case.zip" if self.kind == "zip" else "images")
        images = image_folder(root, bad_images=rng.choice(["error", "skip"]), **self.options).images
        if self.kind == "cache" and not self.is_changed and not torch.equal(images, self.good):
            raise AssertionError("other images")
        return int(images.sum())  # maps what is mapped


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["zip", "json", "cache"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=200)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    warnings.simplefilter("ignore")
    logging.disable()
    folder = Path(tempfile.mkdtemp())
    case, events, endings = Case(options.kind, folder), [], collections.Counter()
    for codec in ("utf_16_be", "utf_16_le", "utf_32_be", "utf_32_le", "utf_16", "utf_32", "cp437"):
        codecs.lookup(codec)
    for _ in range(5):  # what is imported on first use, is imported now
        with zipfile.ZipFile(folder / "first.zip", "w") as archive:
            for suffix, kind in KINDS.items():
                archive.writestr(f"0.{suffix}", encoded(rng, kind))
        image_folder(folder / "first.zip", 8)
        image_folder(folder / "images", 8, cache_dir=folder / "first")
        with contextlib.suppress(DataError):
            case.write(rng)
            case.read(rng)
        (folder / "images" / "dataset.json").unlink(missing_ok=True)

    def hook(event, arguments):
        is_parsed = event == "compile" and arguments[1] == "<unknown>"  # numpy's headers, by ast.literal_eval
        is_shown = event == "open" and arguments[0] == "<string>"  # Python 3.13 looks for the line of a warning
        if watching and not is_parsed and not is_shown and not event.startswith(HARMLESS):
            first = arguments[0] if arguments else None
            is_below_open_folder = event in ("os.remove", "os.rmdir") and arguments[-1] >= 0  # shutil.rmtree
            inside = is_below_open_folder or type(first) is int
            inside = inside or os.path.abspath(os.fsdecode(first or "/")).startswith(str(folder))
            if not inside or not event.startswith(("open", "os.", "shutil.", "glob.", "pathlib.")):
                events.append((event, str(arguments)[:200]))

    watching = False
    sys.addaudithook(hook)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("hung")))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * GIGABYTE,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(options.cases):
        case.write(rng)
        watching, ending = True, "read"
        signal.alarm(60)
        try:
            case.read(rng)
        except DataError as error:
            ending = "refused" if "\n" not in str(error) else f"several lines: {error}"
        except BaseException as error:
            ending = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        watching = False
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        ending = ending if grown < GIGABYTE else f"took {grown:,} bytes"
        endings[ending] += 1
        if events or ending not in ("refused", "read"):
            print(json.dumps({"case": number, "ending": ending, "events": events, "folder": str(folder)}))
            sys.exit(1)
    shutil.rmtree(folder)
    print(json.dumps(endings))


main()
