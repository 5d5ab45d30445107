"""Interpretation of the folders of a data set: a single outer folder, training and test sets, or classes."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from consistency_models.data.decoding import SUFFIXES
from consistency_models.data.files import Files
from consistency_models.errors import DataError

__all__ = ["classes_of", "image_names", "log_left_out", "ordered", "sets_of", "split_sets"]

log = logging.getLogger(__name__)

T = TypeVar("T")

ENDING = r"(ing)?[ _-]?(set|split|data|images?|imgs?)?[ _-]?\d{0,4}"
TRAIN = re.compile(rf"(train|trn){ENDING}", re.IGNORECASE)
HELD_OUT = (
    re.compile(rf"(test|tst){ENDING}", re.IGNORECASE),
    re.compile(rf"(val|valid|validation|dev|eval|evaluation|held[ _-]?out|hold[ _-]?out){ENDING}", re.IGNORECASE),
)
"""Patterns of folder names of test sets; the first pattern has priority."""
JSON_BYTES, JSON_BYTES_EACH = 1 << 20, 256  # size limit of dataset.json: a constant, and a part for each image


def image_names(files: Files) -> list[str]:
    """Names of the image files, selected by suffix."""
    return [name for name in files.stamps if name.lower().endswith(SUFFIXES)]


def sets_of(files: Files, whole: Sequence[str] = ("dataset.json",)) -> tuple[Files, Files | None]:
    """Return the training set and, if there is a folder for it, the test set. The chosen folders are logged.

    A folder that contains exactly one folder and nothing else is skipped. Folders `train` and `test` or `val` are the
    sets, in upper or lower case and with the usual synonyms. `test` has priority over `val`, which is then not used. A
    folder `train` without a folder for a test set is a class.

    Args:
        files: of the data set.
        whole: files of labels whose names of images start at their own folder, which is therefore not divided.

    Raises:
        DataError: several folders, or none, can be the training set; or sets lie within class folders.
    """
    files = _unwrapped(files, whole)
    full = sorted({name.split("/")[0] for name in image_names(files) if "/" in name})
    train = [folder for folder in full if TRAIN.fullmatch(folder)]
    held_out = [folder for kind in HELD_OUT for folder in full if kind.fullmatch(folder)]
    _refuse_inner_sets(files)
    if len(full) > 1 and len(held_out) == len(full):
        raise DataError(
            f"{files.origin} holds {', '.join(full)} and no folder train: name one train, or set data.root to one"
        )
    if not train or not held_out:
        return files, None
    if len(train) > 1:
        raise DataError(f"{files.origin} holds {', '.join(train)}; one training set is allowed: move the others away")
    if labels := [name for name in whole if name in files.stamps]:
        raise DataError(
            f"{files.origin}/{labels[0]} lies beside {train[0]} and {held_out[0]}; each set needs one of its own: "
            "split it, or set data.root to one of the folders"
        )
    sets = [_unwrapped(files.below(folder), whole, keep_class=True) for folder in (train[0], *held_out)]
    labelled = [_has_classes(each) for each in sets]
    chosen = next((k for k, has in enumerate(labelled) if k and has == labelled[0]), 1)
    unused = [folder for folder in full if folder not in (train[0], held_out[chosen - 1])]
    left = f"; not used: {', '.join(unused)}" if unused else ""
    log.info("%s: %s is the training set, %s the test set%s", files.origin, train[0], held_out[chosen - 1], left)
    return sets[0], sets[chosen]


def split_sets(containers: Sequence[T], name_of: Callable[[T], str]) -> tuple[list[T], list[T]]:
    """Return the containers of the training set and of the test set, by the words of their names.

    In train-00000-of-00040 and bedroom_val_lmdb, words are separated by -, _ and dots. `test` has priority over `val`,
    which is then not used. Without containers of both sets, all containers are the training set.
    """
    words = [[word for word in re.split(r"[-_.]", name_of(each)) if word] for each in containers]
    train = [each for each, parts in zip(containers, words) if any(map(TRAIN.fullmatch, parts))]
    for kind in HELD_OUT:
        held_out = [each for each, parts in zip(containers, words) if any(map(kind.fullmatch, parts))]
        if train and held_out:
            names = ", ".join(map(name_of, train[:2])), ", ".join(map(name_of, held_out[:2]))
            log.info("%s … is the training set, %s … the test set", *names)
            return train, held_out
    return list(containers), []


def _unwrapped(files: Files, whole: Sequence[str], keep_class: bool = False) -> Files:
    """Descend into single outer folders without a file of labels (`whole`) beside.

    With `keep_class` a single folder of images is a class.
    """
    while True:
        top = {folder for folder in files.folders if "/" not in folder}
        names = image_names(files)
        full = {name.split("/")[0] for name in names}
        trains = [folder for folder in full if TRAIN.fullmatch(folder)]
        lone = next(iter(top)) if len(top) == 1 else trains[0] if len(full) == 1 and trains else None
        if lone is None or lone not in full or any("/" not in name for name in names):
            return files
        if any(name in files.stamps for name in whole):
            return files
        if keep_class and any(name.count("/") == 1 for name in names):
            return files
        log.info("%s holds images in one folder only: %s is taken as data.root", files.origin, lone)
        files = files.below(lone)


def _has_classes(files: Files) -> bool:
    return "dataset.json" in files.stamps or any("/" in name for name in image_names(files))


def _refuse_inner_sets(files: Files) -> None:
    """Raise if every class folder holds sets, because the model would train on the test images."""
    inner = {tuple(name.split("/")[:2]) for name in image_names(files) if name.count("/") > 1}
    train = sorted(pair for pair in inner if TRAIN.fullmatch(pair[1]))
    held_out = sorted(pair for pair in inner if any(kind.fullmatch(pair[1]) for kind in HELD_OUT))
    both = {pair[0] for pair in train} & {pair[0] for pair in held_out}
    if both and "dataset.json" not in files.stamps:
        (folder, name), (_, other) = train[0], held_out[0]
        raise DataError(
            f"{files.origin}/{folder} holds {name} and {other}; sets are allowed only outside class folders: "
            f"move the images to {name}/{folder} and {other}/{folder}"
        )


def log_left_out(files: Files) -> None:
    """Log the number of files that are no images, by suffix, and the files that were left out for other reasons."""
    others = [name for name in files.stamps.keys() - set(image_names(files)) if not name.endswith("dataset.json")]
    if others:
        kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in others)
        counts = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common())
        log.info("%s: %d files are passed over (%s), first %s", files.origin, len(others), counts, min(others))
    for reason in sorted(set(files.left_out.values())):
        names = sorted(name for name, why in files.left_out.items() if why == reason)
        log.info("%s: %d left out (%s), first %s", files.origin, len(names), reason, names[0])


def classes_of(files: Files, names: list[str]) -> list[str] | list[int] | None:
    """Return the class of each image: the name of its first folder, or its number in dataset.json; None if unlabelled.

    Raises:
        DataError: a class is empty, images lie beside class folders, or dataset.json lacks the class of an image.
    """
    if "dataset.json" in files.stamps:
        return _classes_of_json(files, names)
    folders = {folder for folder in files.folders if "/" not in folder}
    if not folders:
        return None
    beside = [name for name in names if "/" not in name]
    if beside:
        raise DataError(
            f"{files.origin}/{beside[0]} lies beside class folders ({min(folders)} …); all images must lie in class "
            "folders, or none: move it"
        )
    classes = [name.split("/")[0] for name in names]
    empty = folders - set(classes)
    if empty:
        raise DataError(
            f"{files.origin}/{min(empty)} holds no image; a class needs at least 1 "
            f"({', '.join(SUFFIXES)} are looked for): add images or remove the folder"
        )
    return classes


def ordered(names: set[str]) -> list[str]:
    """Sort class names as numbers if all names are digits, otherwise as text."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _classes_of_json(files: Files, names: list[str]) -> list[int] | None:
    where, limit = f"{files.origin}/dataset.json", JSON_BYTES + JSON_BYTES_EACH * len(names)
    try:
        content = files.read("dataset.json")
        if len(content) > limit:
            raise ValueError(f"{len(content):,} bytes; {limit:,} are allowed for {len(names)} images")
        pairs = json.loads(content)["labels"]
        labels = None if pairs is None else {name.replace("\\", "/"): label for name, label in pairs}
    except Exception as error:  # damaged archives and nested brackets raise many exception types
        raise DataError(
            f'{where} is not of the form {{"labels": [[file, class], …]}} ({error!r}): '
            "repair it, or remove it to take classes from folders"
        ) from error
    if labels is None:
        return None
    if len(labels) < len(pairs):
        (name, count), *_ = Counter(name.replace("\\", "/") for name, _ in pairs).most_common(1)
        raise DataError(f"{where} gives {name[:100]} {count} classes; every image has one: repair it")
    for name in names:
        label = labels.get(name)
        if type(label) is not int or not 0 <= label < 1 << 20:
            raise DataError(
                f"{where} gives {name} the class {str(label)[:100]}; every image needs a whole number "
                "from 0 on: repair it, or remove it to take classes from folders"
            )
    return [labels[name] for name in names]
