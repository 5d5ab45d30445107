"""The images of an encoding, with captions (a text file beside each, or one metadata.jsonl for all) or classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from consistency_models.data.files import Files
from consistency_models.data.layout import classes_of, image_names, log_left_out, ordered, sets_of
from consistency_models.errors import DataError

__all__ = ["Work", "captions_of", "listed"]

log = logging.getLogger(__name__)

METADATA = "metadata.jsonl"
FORM = '{"file_name": "a.png", "text": "…"}'


@dataclass(frozen=True)
class Work:
    """The images to encode, with the caption or class of each.

    Args:
        files: the folder or zip of the images.
        names: names of the image files.
        texts: the distinct captions.
        caption: name of an image -> index of its caption; empty without captions.
        label: name of an image -> number of its class; empty without classes.
        classes: names of the classes; empty if classes only have numbers.
    """

    files: Files
    names: list[str]
    texts: list[str]
    caption: dict[str, int]
    label: dict[str, int]
    classes: list[str]


def listed(images: str | Path, takes_text: bool, skip: bool) -> tuple[Work, list[str]]:
    """List the images of a folder or zip, and the names of images without a caption that are left out.

    Args:
        images: the folder or zip.
        takes_text: whether captions are looked for. Without captions the sub-folders are classes.
        skip: leave out images without a caption.

    Raises:
        DataError: there are no images, an image has no caption, or there are neither captions nor classes.
    """
    files = Files.open(images)
    files, test = sets_of(files, ("dataset.json", METADATA) if takes_text else ("dataset.json",))
    if test is not None:
        log.warning("%s is not encoded: encode it as a folder of its own", test.origin)
    names = image_names(files)
    if not names:
        raise DataError(f"{files.origin} holds no image")
    captions = captions_of(files, names) if takes_text else None
    if captions is None:
        log_left_out(files)
    if captions is not None:
        without = [name for name in names if name not in captions]
        if without and not skip:
            fix = f"write {without[0].rpartition('.')[0]}.txt"
            if METADATA in files.stamps:
                fix = f"add a line {FORM.replace('a.png', without[0])} to {METADATA}"
            raise DataError(
                f"{files.origin}: {len(without)} of {len(names)} images have no caption, first {without[0]}: {fix}, or "
                "leave these images out with --bad-images skip"
            )
        names = [name for name in names if name in captions]
        if not names:
            raise DataError(f"{files.origin}: none of {len(without)} images has a caption")
        texts = list(dict.fromkeys(captions[name] for name in names))
        place = {text: k for k, text in enumerate(texts)}
        return Work(files, names, texts, {name: place[captions[name]] for name in names}, {}, []), without
    classes = classes_of(files, names)
    if classes is None:
        if takes_text:
            raise DataError(
                f"{files.origin} holds neither captions nor classes: write NAME.txt beside each image, or "
                "metadata.jsonl, or sort the images into a folder for each class"
            )
        return Work(files, names, [], {}, {}, []), []
    known = ordered(set(map(str, classes)))
    number = {name: int(kind) if isinstance(kind, int) else known.index(kind) for name, kind in zip(names, classes)}
    return Work(files, names, [], {}, number, [] if isinstance(classes[0], int) else known), []


def captions_of(files: Files, names: Sequence[str]) -> dict[str, str] | None:
    """Return the caption of each image that has one, by the name of its file; None if no image has a caption.

    A file `metadata.jsonl` has one line {"file_name", "text"} for each image, as in the library datasets. Without it,
    the caption of `a.png` is the text of `a.txt`, without surrounding white space.

    Raises:
        DataError: a file is no UTF-8, or a line of metadata.jsonl has another form.
    """
    if METADATA in files.stamps:
        return _of_metadata(files, names)
    beside = {name: PurePosixPath(name).with_suffix(".txt").as_posix() for name in names}
    found = {name: text for name, text in beside.items() if text in files.stamps}
    return {name: _text(files, text).strip() for name, text in found.items()} or None


def _of_metadata(files: Files, names: Sequence[str]) -> dict[str, str]:
    captions = {}
    for number, line in enumerate(_text(files, METADATA).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, caption = entry["file_name"], entry["text"]
            if not (isinstance(name, str) and isinstance(caption, str)):
                raise TypeError("file_name and text must be texts")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(
                f"{files.origin}/{METADATA}, line {number}: {error!r:.200}; each line must have the form {FORM}"
            ) from error
        captions[PurePosixPath(name).as_posix()] = caption.strip()
    known = set(names)
    return {name: caption for name, caption in captions.items() if name in known}


def _text(files: Files, name: str) -> str:
    try:
        return files.read(name).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{files.origin}/{name} cannot be read as UTF-8 ({error}): repair or remove the file"
        ) from error
