"""HTML report of a comparison, a single file with embedded images and scripts. The file needs no network."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from consistency_models.evaluation.grids import load_grid
from consistency_models.evaluation.runs import Cell
from consistency_models.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Table", "save_page"]

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Columns and rows of text."""

NOISES = 10  # images of the same noise that are shown for each run
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; margin: 2em auto; padding: 0 1em; max-width: 1400px }
h1, h2 { font-weight: 500 }  h2 { margin-top: 2em }  h3 { font-weight: 500; margin: 1em 0 0 }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1em 0 }
td, th { border-bottom: 1px solid #dadce0; padding: .35em .8em; text-align: left; white-space: nowrap }
th, summary { font-weight: 500; color: #5f6368 }  summary { cursor: pointer }
th button { all: unset; cursor: pointer }  th button:focus-visible { outline: 2px solid }
th[aria-sort=ascending] button::after { content: " ▲" }  th[aria-sort=descending] button::after { content: " ▼" }
img { max-width: 100% }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 1.5em }
.noise td { padding: 2px; border: 0 }
.noise th { padding: 0 .8em 0 0; border: 0; position: sticky; left: 0; background: #fff }
.noise img { display: block; max-width: none; width: calc(var(--width) * var(--zoom, 1)); image-rendering: pixelated }
figure { margin: 0 0 1em }  figcaption { color: #5f6368; overflow-wrap: anywhere }
"""
SCRIPT = """
const missing = text => text === "" || text === "nan";
const number = text => text === "inf" ? Infinity : parseFloat(text);
const isNumber = text => missing(text) || /^([-+]?[0-9.]+(e[-+]?[0-9]+)?( ± .*)?|inf)$/.test(text);
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [row.cells[column].textContent, row]);
      const order = rows.every(([text]) => isNumber(text))
        ? (a, b) => number(a) - number(b) || 0 : (a, b) => a.localeCompare(b, "en", { numeric: true });
      rows.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : sign * order(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
document.getElementById("zoom")?.addEventListener("input", event =>
  document.documentElement.style.setProperty("--zoom", event.target.value));
"""
HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{HASH}'"


def save_page(
    path: str | Path,
    results: Table,
    note: str,
    choices: Table,
    following: Table,
    figures: Sequence[str | Path],
    cells: Sequence[Cell],
) -> None:
    """Write the report.

    A click on a column of the results sorts them. The policy of the page allows no script but its own, so that code in
    the name of a run cannot run.

    Args:
        path: file to write.
        results: the results.
        note: a line below the results.
        choices: overrides of the command lines in which the cells differ.
        following: all other keys in which the cells differ; collapsed if there are choices.
        figures: PNG files.
        cells: cells of the comparison; the report shows samples of the first seed of each.
    """
    html = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>Comparison</title><style>{STYLE}</style>",
        f"<h1>{len(cells)} settings, {sum(len(cell.runs) for cell in cells)} runs</h1>",
        f"<h2>Results, best first</h2>{_table(results, 'sortable')}<p>{escape(note)}</p>",
    ]
    if choices[1] or following[1]:
        html += [f"<h2>Keys in which they differ</h2>{_table(choices) if choices[1] else ''}"]
    if following[1]:
        summary = f"Keys that follow from the choices ({len(following[1])})" if choices[1] else "Keys"
        state = "" if choices[1] else " open"
        html += [f"<details{state}><summary>{summary}</summary>{_table(following)}</details>"]
    html += ["<h2>Figures</h2>", *(_image(figure, Path(figure).stem) for figure in figures)] if figures else []
    pictures = [(cell.name, cell.runs[0].picture) for cell in cells if cell.runs[0].picture is not None]
    html += [*_same_noise(pictures), *_films(cells), *_samples(pictures), f"<script>{SCRIPT}</script>"]
    write_atomically(Path(path), "\n".join(html) + "\n")


def _same_noise(pictures: Sequence[tuple[str, Path]]) -> Iterator[str]:
    """Images of the same noise, one row for each cell, for each step count."""
    grids = [(name, load_grid(picture, NOISES)) for name, picture in pictures]
    captions = dict.fromkeys(caption for _, grid in grids for caption in grid)
    if not captions:
        return
    yield "<h2>The same noise, of the first seed</h2>"
    yield "<label>size <input id='zoom' type='range' min='1' max='6' step='1' value='1'></label>"
    for caption in captions:
        yield f"<h3>{escape(caption)}</h3><table class='noise'>"
        for name, grid in grids:
            if caption in grid:
                images = "".join(f"<td>{_pixels(image)}</td>" for image in grid[caption])
                yield f"<tr><th>{escape(name)}</th>{images}</tr>"
        yield "</table>"


def _films(cells: Sequence[Cell]) -> Iterator[str]:
    films = [(cell.name, cell.runs[0].film) for cell in cells if cell.runs[0].film is not None]
    if films:
        yield "<h2>Samples over the training, of the first seed</h2>"
        yield from (_figure(film, name, "gif") for name, film in films)


def _samples(pictures: Sequence[tuple[str, Path]]) -> Iterator[str]:
    if pictures:
        samples = "".join(_figure(picture, name) for name, picture in pictures)
        yield f"<h2>Samples, of the first seed</h2><div class='samples'>{samples}</div>"


def _figure(path: Path, name: str, kind: str = "png") -> str:
    return f"<figure>{_image(path, name, kind)}<figcaption>{escape(name)}</figcaption></figure>"


def _image(path: str | Path, name: str, kind: str = "png") -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return f"<img alt='{escape(name, quote=True)}' src='data:image/{kind};base64,{data}'>"


def _pixels(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f"<img alt='' style='--width: {image.width}px' src='data:image/png;base64,{data}'>"


def _table(table: Table, kind: str = "") -> str:
    columns, rows = table
    title = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table class='{kind}'><thead><tr>{title}</tr></thead>\n<tbody>{lines}</tbody></table>"
