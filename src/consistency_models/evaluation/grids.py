"""Pictures of samples: grids of images, comparisons on the same noise, film strips, and scatter plots of points."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from consistency_models.evaluation.features import to_bytes, to_float
from consistency_models.text import printable

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["load_grid", "save_comparison", "save_film", "save_grid", "save_scatter"]

LAYOUT = "layout"  # text of a PNG: where its images are
MOST_PIXELS = 50_000_000  # of a picture that is read

GAP, BETWEEN, TEXT, TITLE, HEAD, MARGIN = 4, 16, 15, 18, 12, 16  # pixels
FRAME, LAST_FRAME = 200, 2000  # milliseconds
INK, QUIET, PAPER = (32, 33, 36), (95, 99, 104), (255, 255, 255)


def save_grid(
    path: str | Path,
    images: Tensor,
    columns: int = 10,
    title: str | None = None,
    row_labels: Sequence[str] | None = None,
    scale: int | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Save a PNG of the images, row by row. Each pixel becomes a square of `scale` pixels.

    Args:
        path: file to write; its folder is created.
        images: (n, C, H, W) with C 1 or 3, uint8 or float in [-1, 1]; values outside are clamped.
        columns: images in a row.
        title: line above the images.
        row_labels: caption before each row.
        scale: by default the image height becomes 43 to 84 pixels, and at least its own size.
        names: text above each image; omitted if the row above has the same names.

    Raises:
        ValueError: images are not of this shape, columns or scale is below 1, or row_labels do not fit the rows.
    """
    rows = _rows(images, columns, scale)
    captions = [""] * len(rows) if row_labels is None else row_labels
    if len(captions) != len(rows):
        raise ValueError(f"row_labels must be one for each of the {len(rows)} rows; got {len(captions)}")
    _save(path, *_draw([list(zip(captions, rows, _by_row(names, columns, len(rows))))], title))


def save_comparison(
    path: str | Path,
    images: Mapping[str, Tensor],
    columns: int = 10,
    title: str | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Save a PNG of several samplings of the same noise: image k of each set is above image k of the next set.

    Args:
        path: file to write; its folder is created.
        images: caption -> (n, C, H, W), with the same n and shape for each set; see `save_grid`.
        columns, title, names: see `save_grid`.

    Raises:
        ValueError: see `save_grid`; or the sets differ in shape.
    """
    if len({each.shape for each in images.values()}) != 1:
        shapes = ", ".join(f"{caption}: {tuple(each.shape)}" for caption, each in images.items())
        raise ValueError(f"the images to compare must be at least one set, all of one shape; got {shapes or 'none'}")
    groups = list(zip(*(_rows(each, columns) for each in images.values())))
    heads = _by_row(names, columns, len(groups))
    drawn = [[(*row, head) for row in zip(images, group)] for group, head in zip(groups, heads)]
    _save(path, *_draw(drawn, title))


def save_film(path: str | Path, frames: Mapping[str, Tensor], columns: int = 10) -> None:
    """Save an animated GIF, a grid of images in each frame. The last frame stays two seconds, the others 0.2 seconds.

    Grey values are exact; an RGB frame is reduced to 256 colours.

    Args:
        path: file to write; its folder is created.
        frames: title -> (n, C, H, W), with the same shape for each frame; see `save_grid`.
        columns: see `save_grid`.

    Raises:
        ValueError: see `save_grid`; or there is no frame.
    """
    from PIL import Image, ImageOps

    if not frames:
        raise ValueError("a film needs at least one frame")
    grids = {title: _rows(images, columns) for title, images in frames.items()}
    drawn = [_draw([[("", row, ()) for row in rows]], title)[0] for title, rows in grids.items()]
    width = max(picture.width for picture in drawn)  # a long title makes a frame wider
    drawn = [ImageOps.expand(picture, (0, 0, width - picture.width, 0), PAPER) for picture in drawn]
    if {images.shape[1] for images in frames.values()} == {1}:
        first, *rest = (picture.convert("L") for picture in drawn)
    else:
        first, *rest = (picture.quantize(256, dither=Image.Dither.NONE) for picture in drawn)
    durations = [FRAME] * len(rest) + [LAST_FRAME]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def load_grid(path: str | Path, n: int) -> dict[str, list[Image.Image]]:
    """Read images from a picture of `save_grid` or `save_comparison`: caption -> the first n images, as drawn.

    Args:
        path: a PNG file, also of an untrusted run.
        n: number of images for each caption.

    Returns:
        Empty for a picture without a layout, and for a damaged picture.
    """
    from PIL import Image

    found: dict[str, list[Image.Image]] = {}
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            layout = json.loads(picture.info[LAYOUT])
            if picture.width * picture.height > MOST_PIXELS:
                return {}
            width, height = layout["size"]
            left_over = picture.width * picture.height  # rows of a false layout may overlap
            for caption, x, y, count in layout["rows"][:1000]:
                images = found.setdefault(str(caption)[:100], [])
                for column in range(min(count, n - len(images))):
                    left = x + column * (width + GAP)
                    if not (0 < width <= picture.width - left and 0 < height <= picture.height - y and min(x, y) >= 0):
                        return {}
                    left_over -= width * height
                    if left_over < 0:
                        return {}
                    images.append(picture.crop((left, y, left + width, y + height)).convert("RGB"))
    except Exception:  # Pillow raises errors of many types for damaged files
        return {}
    return {caption: images for caption, images in found.items() if images}


def save_scatter(path: str | Path, points: Mapping[str, Tensor], title: str | None = None) -> None:
    """Save a PNG of clouds of points side by side, on the same axes.

    Args:
        path: file to write; its folder is created.
        points: caption -> (n, d) or (n, d, 1, 1), d >= 2; the first two coordinates are drawn. The first cloud, the
            data, sets the range; the captions show the share of points outside the range.
        title: line above the clouds.

    Raises:
        ValueError: there is no cloud, or a cloud has another shape.
    """
    from matplotlib.figure import Figure

    clouds = {caption: each.detach().flatten(1).double().cpu() for caption, each in points.items()}
    if not clouds or min(each.shape[1] for each in clouds.values()) < 2:
        raise ValueError("points must be at least one cloud (n, d) with d >= 2")
    lowest, highest = next(iter(clouds.values()))[:, :2].aminmax(dim=0)
    centre, reach = (lowest + highest) / 2, 0.6 * (highest - lowest).max()
    (left, bottom), (right, top) = (centre - reach).tolist(), (centre + reach).tolist()
    figure = Figure(figsize=(3.2 * len(clouds), 3.5 + 0.3 * (title is not None)), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(clouds), sharex=True, sharey=True, squeeze=False)[0]
    for i, (axis, (caption, cloud)) in enumerate(zip(axes, clouds.items())):
        xy = cloud[:, :2]
        outside = (xy.sub(centre).abs() > reach).any(1).double().mean().item()
        axis.scatter(*xy.T.numpy(), s=max(1.0, 60 / len(xy) ** 0.4), color=f"C{min(i, 1)}", alpha=0.45, linewidths=0)
        axis.set_title(caption + (f"  ({outside:.1%} outside)" if outside else ""), fontsize=10, color="#202124")
        axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
        axis.tick_params(labelsize=7, colors="#5f6368", length=2)
        axis.spines[:].set_color("#dadce0")
    if title is not None:
        figure.suptitle(title, fontsize=11, color="#202124")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _rows(images: Tensor, columns: int, scale: int | None = None) -> list[list[Image.Image]]:
    """Convert images to rows of pictures, enlarged without smoothing."""
    from PIL import Image

    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be of shape (n, 1 or 3, H, W) with n > 0; got {tuple(images.shape)}")
    height, width = images.shape[2:]
    scale = max(1, round(64 / height)) if scale is None else scale
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1; got {columns} and {scale}")
    size = (width * scale, height * scale)
    pixels = to_bytes(to_float(images.detach())).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    pictures = [Image.fromarray(each).resize(size, Image.Resampling.NEAREST) for each in pixels]
    return [pictures[first : first + columns] for first in range(0, len(pictures), columns)]


def _by_row(names: Sequence[str] | None, columns: int, rows: int) -> list[Sequence[str]]:
    return [() if names is None else names[row * columns : (row + 1) * columns] for row in range(rows)]


Row = tuple[str, list["Image.Image"], Sequence[str]]


def _save(path: str | Path, picture: Image.Image, layout: dict[str, Any]) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(LAYOUT, json.dumps(layout))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, pnginfo=text)


def _draw(groups: list[list[Row]], title: str | None) -> tuple[Image.Image, dict[str, Any]]:
    """Draw rows with captions, and return the picture and its layout for `load_grid`.

    The space between groups is larger than the space between the rows of a group.
    """
    from PIL import Image, ImageDraw, ImageFont

    text, large = ImageFont.load_default(TEXT), ImageFont.load_default(TITLE)
    captions, rows, heads = zip(*(row for group in groups for row in group))
    small = _names_font() if any(heads) else None
    heads = [above if k == 0 or above != heads[k - 1] else () for k, above in enumerate(heads)]
    width, height = rows[0][0].size
    left = MARGIN + (int(max(map(text.getlength, captions))) + MARGIN if any(captions) else 0)
    right = left + len(rows[0]) * (width + GAP) - GAP
    right = max(right, MARGIN + int(large.getlength(title or "")))
    top = MARGIN + (2 * TITLE if title else 0)
    bottom = top + len(rows) * (height + GAP) - GAP + (len(groups) - 1) * BETWEEN
    bottom += (HEAD + GAP) * sum(map(bool, heads))
    canvas = Image.new("RGB", (right + MARGIN, bottom + MARGIN), PAPER)
    draw, layout = ImageDraw.Draw(canvas), []
    draw.text((MARGIN, MARGIN), title or "", fill=INK, font=large)
    y, above = top, iter(heads)
    for group in groups:
        for caption, row, _ in group:
            if names := next(above):
                for column, name in enumerate(names):
                    text_above = _fitting(name, width, small.getlength)
                    draw.text((left + column * (width + GAP), y), text_above, fill=QUIET, font=small)
                y += HEAD + GAP
            draw.text((MARGIN, y + height / 2), caption, fill=QUIET, font=text, anchor="lm")
            layout.append((caption, left, y, len(row)))
            for column, picture in enumerate(row):
                canvas.paste(picture, (left + column * (width + GAP), y))
            y += height + GAP
        y += BETWEEN
    return canvas, {"size": (width, height), "rows": layout}


def _fitting(name: str, width: int, length: Callable[[str], float]) -> str:
    """Truncate a name to the width of an image."""
    name = printable(name[:100])
    return next(name[:end] for end in range(len(name), -1, -1) if length(name[:end]) <= width)


def _names_font() -> ImageFont.FreeTypeFont:
    """Load Matplotlib's font; Pillow's default font has only English letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), HEAD)
