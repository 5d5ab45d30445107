"""HTML report of a comparison, a single file with embedded images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from consistency_models.evaluation.runs import Cell

__all__ = ["save_page"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; margin: 2em auto; padding: 0 1em; max-width: 1400px }
h1, h2 { font-weight: 500 }  h2 { margin-top: 2em }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1em 0 }
td, th { border-bottom: 1px solid #dadce0; padding: .35em .8em; text-align: left; white-space: nowrap }
th { font-weight: 500; color: #5f6368 }
img { max-width: 100% }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 1.5em }
figure { margin: 0 }  figcaption { color: #5f6368; overflow-wrap: anywhere }
"""


def save_page(
    path: str | Path, tables: Mapping[str, str], figures: Sequence[str | Path], cells: Sequence[Cell]
) -> None:
    """Write the report.

    Args:
        path: file to write.
        tables: heading -> tables in Markdown and plain lines.
        figures: PNG files.
        cells: cells of the comparison; the report shows the sample picture of the first seed of each.
    """
    pictures = [(cell.name, cell.runs[0].picture) for cell in cells if cell.runs[0].picture is not None]
    html = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Comparison</title><style>{STYLE}</style>"]
    html += [f"<h1>{len(cells)} settings, {sum(len(cell.runs) for cell in cells)} runs</h1>"]
    for heading, text in tables.items():
        html += [f"<h2>{escape(heading)}</h2>", *_blocks(text)] if text else []
    html += ["<h2>Figures</h2>", *(_image(figure, Path(figure).stem) for figure in figures)] if figures else []
    if pictures:
        samples = "".join(
            f"<figure>{_image(picture, name)}<figcaption>{escape(name)}</figcaption></figure>"
            for name, picture in pictures
        )
        html += ["<h2>Samples, of the first seed</h2>", f"<div class='samples'>{samples}</div>"]
    Path(path).write_text("\n".join(html) + "\n", encoding="utf-8")


def _image(path: str | Path, name: str) -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return f"<img alt='{escape(name, quote=True)}' src='data:image/png;base64,{data}'>"


def _blocks(text: str) -> list[str]:
    """Convert Markdown tables and plain lines to HTML."""
    blocks: list[str] = []
    for block in filter(None, (block.strip() for block in text.split("\n\n"))):
        if not block.startswith("|"):
            blocks.append(f"<p>{escape(block)}</p>")
            continue
        head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        title = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        lines = ("".join(f"<td>{escape(cell)}</td>" for cell in line) for line in body)
        rows = "".join(f"<tr>{line}</tr>" for line in lines)
        blocks.append(f"<table><thead><tr>{title}</tr></thead><tbody>{rows}</tbody></table>")
    return blocks
