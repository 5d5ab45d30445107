"""HTML of images: each image is a PNG of its own pixels, which the browser enlarges without smoothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor

__all__ = ["STYLE", "heading", "line", "row", "table"]

SMALL, LARGE = 72, 256  # pixels of the browser: the least size of an image, and the largest

STYLE = """
.cm-row { display: flex; flex-wrap: wrap; gap: 6px; margin: 2px 0 10px }
.cm figure { margin: 0 }
.cm figcaption { font-size: 12px; text-align: center; opacity: .65; overflow: hidden; white-space: nowrap }
.cm img { image-rendering: pixelated; display: block; border-radius: 3px; margin: 0 }
.cm-table { overflow-x: auto }
.cm-table td, .cm-table th { padding: 2px 3px; font-weight: 400; font-size: 12px; text-align: center }
.cm-table th { opacity: .65; white-space: nowrap }
.cm-table th:first-child { text-align: right; padding-right: 8px }
.cm h3 { margin: 0; font-size: 16px; overflow-wrap: anywhere }
.cm p { margin: 8px 0 4px; font-size: 13px; opacity: .65 }
"""


def heading(name: str, about: str) -> str:
    """The name of a run, and a line of text below."""
    return f"<div class='cm'><h3>{escape(name)}</h3><p>{escape(about)}</p></div>"


def line(text: str) -> str:
    """A line of text."""
    return f"<div class='cm'><p>{escape(text)}</p></div>"


def row(images: Tensor, captions: Sequence[str] = ()) -> str:
    """Images (n, 1 or 3, H, W) uint8 in a row that is wrapped, with captions below."""
    figures = "".join(_figure(image, name) for image, name in zip(images, captions or [""] * len(images)))
    return f"<div class='cm cm-row'>{figures}</div>"


def table(head: Sequence[str], rows: dict[str, Tensor]) -> str:
    """Rows of images with a name each, below a head of one text a column.

    Args:
        head: texts of the columns.
        rows: name -> (columns, 1 or 3, H, W) uint8.
    """
    title = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{_figure(image)}</td>' for image in images)}</tr>"
        for name, images in rows.items()
    )
    return f"<div class='cm cm-table'><table><tr><th></th>{title}</tr>{lines}</table></div>"


def _figure(image: Tensor, caption: str = "") -> str:
    pixels = image.permute(1, 2, 0).numpy()
    size = min(LARGE, pixels.shape[0] * -(-SMALL // pixels.shape[0]))
    below = f"<figcaption style='width:{size}px'>{escape(caption)}</figcaption>" if caption else ""
    alt, data = escape(caption, quote=True), base64.b64encode(_png(pixels)).decode()
    return f"<figure><img width={size} height={size} alt='{alt}' src='data:image/png;base64,{data}'>{below}</figure>"


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, format="PNG")
    return file.getvalue()
