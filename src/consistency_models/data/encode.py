"""python -m consistency_models.data.encode PIPELINE IMAGES OUT: encode a folder of images for data=latents.

PIPELINE is a folder of diffusers: a StableDiffusionPipeline, a StableDiffusionXLPipeline, or an AutoencoderKL alone.
IMAGES is a folder or a zip of images. Captions are NAME.txt beside NAME.png, or metadata.jsonl with a line
{"file_name": "a.png", "text": "…"} for each image. Without captions the sub-folders of IMAGES are the classes. OUT is
the folder to write. The same command continues an encoding that was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from consistency_models.data.captions import Work, listed
from consistency_models.data.decoding import Decoder
from consistency_models.data.encoders import Encoders
from consistency_models.data.growing_array import GrowingArray
from consistency_models.devices import chosen_device
from consistency_models.errors import DataError, Exit, command

__all__ = ["encode"]

log = logging.getLogger(__name__)

SAVE_SECONDS = 10.0  # between two records of the progress
ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
SUMS = "SHA256SUMS"


def encode(
    pipeline: str | Path,
    images: str | Path,
    out: str | Path,
    size: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    bad_images: Literal["error", "skip"] = "error",
) -> dict[str, int]:
    """Encode a folder of images, with their captions or classes.

        OUT/latents.npy   (n, 2·C, h, w) float16, mean and standard deviation of the VAE's posterior
            labels.npy    (n,) int64, with classes
            text.npy      (m, L, width) float16, of the m distinct captions;  caption.npy  (n,) int64, their indices
            pooled.npy    (m, width) float16, and sizes.npy (n, 6) int64, of Stable Diffusion XL
            empty.npy     (L, width) and empty_pooled.npy (width,), the condition without text
            captions.json, meta.json, SHA256SUMS

    The files are written to `OUT.part`, which is renamed to OUT when everything is on the disk.

    Args:
        pipeline: see `Encoders`.
        images: a folder or zip of images.
        out: the folder to write.
        size: pixels of the short side, before a centre crop; None: all images are square and of one size.
        batch_size: images in one call of the VAE, and captions in one call of the text encoders.
        device: auto selects a GPU if there is one.
        bad_images: "skip" leaves out images that cannot be decoded or have no caption, and counts them.

    Returns:
        The number of encoded images, of distinct captions, of skipped images, and of captions that were cut off.

    Raises:
        ConfigError: this machine has no such device.
        DataError: `batch_size` is below 1, the pipeline, an image or a caption cannot be used, a latent is not finite,
            or `out` exists.
        OSError: `out` cannot be written.
    """
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty: choose another folder, or remove it")
    if batch_size < 1:
        raise DataError(f"--batch-size {batch_size} must be 1 or more: take 8")
    encoders = Encoders(pipeline, chosen_device(device, "--device"))
    work, skipped = listed(images, encoders.takes_text, bad_images == "skip")
    if size is not None and (size < 1 or size % encoders.factor):
        near = max(size // encoders.factor, 1) * encoders.factor
        raise DataError(f"--size {size} must be a multiple of {encoders.factor}, the factor of the VAE: take {near}")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    try:
        with FileLock(f"{part}.lock", timeout=0):
            counts = _Encoding(encoders, work, part, size, batch_size, bad_images == "skip").run(skipped)
            if out.is_dir():
                out.rmdir()
            os.replace(part, out)
    except Timeout as error:
        raise DataError(f"{part} is being written by another process: wait for it, or choose another folder") from error
    Path(f"{part}.lock").unlink(missing_ok=True)
    return counts


class _Encoding:
    """One encoding, which continues where the last process stopped.

    `progress.json` in the folder counts what is surely on the disk. Rows beyond are removed.
    """

    def __init__(
        self, encoders: Encoders, work: Work, folder: Path, size: int | None, batch_size: int, skip: bool
    ) -> None:
        self.encoders, self.work, self.folder = encoders, work, folder
        self.size, self.batch_size, self.skip = size, batch_size, skip
        self.decoder = Decoder(size)
        self.saved = time.monotonic()
        stamps = [(name, work.files.stamps[name]) for name in work.names]
        content = [encoders.kind, encoders.digests, size, skip, stamps, work.texts, work.caption, work.label]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.state: dict[str, Any] = {"of": digest, "texts": 0, "images": 0, "rows": 0, "skipped": [], "truncated": 0}
        self.state["arrays"] = {}  # counter, shape of a row, and type of the values of each array
        try:
            saved = json.loads((folder / "progress.json").read_bytes())
        except (OSError, ValueError):
            saved = {}
        if saved.get("of") == digest:
            self.state = saved
            log.info("%s: continuing after %d of %d images", folder, saved["images"], len(work.names))
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        encoders.truncated = self.state["truncated"]
        self.arrays = {
            name: GrowingArray(folder / f"{name}.npy", shape, dtype, self.state[counter])
            for name, (counter, shape, dtype) in self.state["arrays"].items()
        }

    def run(self, without_caption: list[str]) -> dict[str, int]:
        """Encode everything, and return the counts."""
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
            texts, state = self.work.texts, self.state
            task = progress.add_task("captions", total=len(texts), completed=state["texts"], visible=bool(texts))
            for start in range(state["texts"], len(texts), self.batch_size):
                encoded = self.encoders.texts(texts[start : start + self.batch_size])
                self._append(encoded, "texts")
                state["texts"] += len(encoded["text"])
                self._save()
                progress.update(task, completed=state["texts"])
            task = progress.add_task("images", total=len(self.work.names), completed=state["images"])
            with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
                for start in range(state["images"], len(self.work.names), self.batch_size):
                    self._encode(self.work.names[start : start + self.batch_size], pool)
                    self._save()
                    progress.update(task, completed=state["images"])
        return self._complete(without_caption)

    def _encode(self, names: list[str], pool: ThreadPoolExecutor) -> None:
        decoded = dict(zip(names, pool.map(self._decode, names)))
        kept = {name: found for name, found in decoded.items() if found is not None}
        self.state["skipped"] += [name for name in names if name not in kept]
        if kept:
            pixels = [image for image, _ in kept.values()]
            self._check_sizes(list(kept), [image.shape[-1] for image in pixels])
            latents = self.encoders.images(torch.from_numpy(np.stack(pixels)))
            for name, latent in zip(kept, latents):
                if not latent.isfinite().all():
                    raise DataError(
                        f"{self.work.files.origin}/{name}: the latent is not finite; the VAE's weights do not work in "
                        "float32: take the original weights instead of weights that were converted to float16"
                    )
            rows = {"latents": latents}
            if "text_encoder_2" in self.encoders.digests:
                rows["sizes"] = torch.tensor([sizes for _, sizes in kept.values()])
            self._append(rows, "rows")
        self.state["rows"] += len(kept)
        self.state["images"] += len(names)

    def _check_sizes(self, names: list[str], sizes: list[int]) -> None:
        first = self.state.setdefault("size", sizes[0])
        for name, size in zip(names, sizes):
            if size != first:
                raise DataError(
                    f"{self.work.files.origin}/{name} is {size}x{size}, but the first image is {first}x{first}; all "
                    "images must have one size: give --size"
                )
        if first % self.encoders.factor:
            raise DataError(
                f"the images have {first}x{first} pixels: give --size, a multiple of {self.encoders.factor}"
            )

    def _decode(self, name: str) -> tuple[np.ndarray, list[int]] | None:
        """Pixels (3, H, W), and original height and width, top and left of the crop, and target height and width."""
        try:
            content = self.work.files.read(name)
            pixels = self.decoder(content)
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size if image.getexif().get(0x0112) not in ROTATED else image.size[::-1]
        except Exception as error:  # Pillow raises many kinds of errors for truncated files
            if self.skip:
                return None
            fix = "repair or remove the file, or leave it out with --bad-images skip"
            raise DataError(f"{self.work.files.origin}/{name} cannot be used ({error!s:.200}): {fix}") from error
        size, short = pixels.shape[-1], min(width, height)
        top, left = (round((side * size / short - size) / 2) for side in (height, width))
        return pixels, [height, width, top, left, size, size]

    def _append(self, rows: dict[str, Tensor], counter: str) -> None:
        for name, values in rows.items():
            if name not in self.arrays:
                dtype, shape = "<f2" if values.is_floating_point() else "<i8", list(values.shape[1:])
                self.state["arrays"][name] = [counter, shape, dtype]
                self.arrays[name] = GrowingArray(self.folder / f"{name}.npy", shape, dtype)
            self.arrays[name].append(values)

    def _save(self) -> None:
        """Record the progress, if the last record is old."""
        if time.monotonic() - self.saved < SAVE_SECONDS:
            return
        for array in self.arrays.values():
            array.sync()
        self.state["truncated"] = self.encoders.truncated
        new = self.folder / "progress.new"
        new.write_text(json.dumps(self.state))
        os.replace(new, self.folder / "progress.json")
        self.saved = time.monotonic()

    def _complete(self, without_caption: list[str]) -> dict[str, int]:
        work, state, folder = self.work, self.state, self.folder
        if not state["rows"]:
            raise DataError(f"{work.files.origin}: none of {len(work.names)} images can be used")
        for array in self.arrays.values():
            array.finish()
        skipped = set(state["skipped"])
        names = [name for name in work.names if name not in skipped]
        for name, numbers in (("caption", work.caption), ("labels", work.label)):
            if numbers:
                np.save(folder / f"{name}.npy", np.array([numbers[each] for each in names], np.int64))
        if work.texts:
            for name, value in self.encoders.empty().items():
                np.save(folder / {"text": "empty.npy", "pooled": "empty_pooled.npy"}[name], value.numpy())
            (folder / "captions.json").write_text(json.dumps(work.texts, ensure_ascii=False))
        counts = {
            "images": state["rows"],
            "captions": len(work.texts),
            "skipped": len(skipped) + len(without_caption),
            "truncated": self.encoders.truncated,
        }
        about = {
            "schema": 1,
            "pipeline": self.encoders.kind,
            "sha256": self.encoders.digests,
            "shift": self.encoders.shift,
            "scale": self.encoders.scale,
            "size": state["size"],
            "classes": len(work.classes) or max(work.label.values(), default=-1) + 1,
            "class_names": work.classes,
            **counts,
        }
        (folder / "meta.json").write_text(json.dumps(about, indent=1, ensure_ascii=False))
        sums = []
        for path in sorted(path for path in folder.iterdir() if path.name not in (SUMS, "progress.json")):
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
                sums.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
        (folder / SUMS).write_text("".join(sums))
        (folder / "progress.json").unlink(missing_ok=True)  # last: a process that is stopped before this continues here
        return counts


@command
def main() -> Exit:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m consistency_models.data.encode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", help="a folder of diffusers, with safetensors files")
    parser.add_argument("images", help="a folder or zip of images")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument("--size", type=int, help="pixels of the short side, before a centre crop")
    parser.add_argument("--batch-size", type=int, default=8, help="images in one call of the VAE")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument(
        "--bad-images",
        choices=("error", "skip"),
        default="error",
        help="images that cannot be decoded or lack a caption",
    )
    given = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    counts = encode(**given)
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    print(f"written to {given['out']}: {said}\ntrain with: python train.py data=latents data.root={given['out']} …")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
