"""Writing of images in the layouts of other projects. A file has its final name only when it is complete."""

from __future__ import annotations

import json
import zipfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from consistency_models.files import replaced

__all__ = ["ARCHIVES", "PNGWriter", "save_png"]

THREADS = 4


class PNGWriter:
    """Writes PNGs in threads, beside the generation of the next images.

        with PNGWriter(advance) as writer:
            for images in …:
                writer.write([(path, pixels), …])

    The content of a file does not depend on the threads. An error or a stop cancels the files that are not begun, and
    completes the others.

    Args:
        advance: called after each file, in the calling thread.

    Raises:
        OSError: a file cannot be written; in the next call of `write`, or at the end.
    """

    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance, self.threads = advance, ThreadPoolExecutor(THREADS)
        self.batches: deque[list[Future]] = deque()

    def __enter__(self) -> PNGWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            while self.batches and error is None:
                self._finish()
        finally:
            self.threads.shutdown(cancel_futures=True)

    def write(self, files: Sequence[tuple[Path, np.ndarray]]) -> None:
        """Begin to write uint8 pixels (H, W, 1 or 3) to files, and wait for the files of the call before the last."""
        for folder in {path.parent for path, _ in files}:
            folder.mkdir(parents=True, exist_ok=True)
        self.batches.append([self.threads.submit(save_png, *file) for file in files])
        if len(self.batches) > 2:
            self._finish()

    def _finish(self) -> None:
        for file in self.batches.popleft():
            file.result()
            self.advance()


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG of uint8 pixels (H, W, 1 or 3). The folder must exist."""
    with replaced(path) as part, open(part, "wb") as file:
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, format="PNG")


def _save_zip(path: Path, folder: Path, names: Sequence[str], labels: Sequence[int] | None) -> None:
    """Write a zip as EDM's dataset_tool.py does: the PNGs, not compressed again, and dataset.json."""
    pairs = None if labels is None else [list(pair) for pair in zip(names, labels)]
    with replaced(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            # ZipInfo has a constant date, so the same images give the same bytes.
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())
        archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": pairs}))


def _save_npz(path: Path, folder: Path, names: Sequence[str], labels: Sequence[int] | None) -> None:
    """Write an npz as OpenAI's image_sample.py does: arr_0 (n, H, W, C) uint8, and arr_1 (n,) int64 for classes."""
    images = np.stack([np.atleast_3d(np.asarray(Image.open(folder / name))) for name in names])
    arrays = [images] if labels is None else [images, np.array(labels, dtype=np.int64)]
    with replaced(path) as part, open(part, "wb") as file:
        np.savez(file, *arrays)


ARCHIVES: dict[str, Callable[[Path, Path, Sequence[str], Sequence[int] | None], None]]
ARCHIVES = {"zip": _save_zip, "npz": _save_npz}
"""`save(path, folder, names, labels)` writes PNGs of a folder to one file; keys are suffixes."""
