"""Pages of the reference about conf/ and sweeps/: one page a group, one section an option, one row a key.

The meaning of a key is the comment of its line, or of the lines above. Without a comment, it is the description of the
argument in the docstring of the `_target_`, or the meaning of the same key in another file. Keys of `recipe` have the
meaning of the key that reads them, axes of sweeps that of the group or key that they vary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import griffe
import yaml
from docstrings import PlainText

__all__ = ["Pages"]

COMMENT = re.compile(r"(?:^|\s)# ?(.*)$")
SPECIAL = ("recipe", "experiment", "budget")  # their comments tell why a value differs, not what a key means
INTRO = {
    "train": "The configuration of `python train.py`: its groups in the order of merging, and its own keys.",
    "eval": "The configuration of `python eval.py`: its groups and its own keys.",
    "sweep": "The base of the files in sweeps/.",
}


@dataclass
class Key:
    """One line of a file: the whole key, its value as written, the comment, and the `_target_` around it.

    The value of a mapping is empty: its keys have lines of their own.
    """

    name: str
    value: str
    meaning: str
    target: str | None = None


class Pages:
    """The pages, from the files of a checkout.

    Args:
        root: folder with conf/, sweeps/ and src/.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        loader = griffe.GriffeLoader(
            search_paths=[root / "src"],
            extensions=griffe.load_extensions(PlainText()),
            docstring_parser=griffe.Parser.google,
            docstring_options={"warnings": False},  # mkdocstrings prints them
        )
        self.package = loader.load("consistency_models")
        loader.resolve_aliases()
        folders = (root / "conf").glob("*/*.yaml")
        options = [key for file in sorted(folders) if file.parent.name not in SPECIAL for key in _read(file)[1]]
        primary = [key for name in reversed(INTRO) for key in _read(root / f"conf/{name}.yaml")[1]]  # train is the last
        keys = [*options, *primary]
        described = {key.name: text for key in keys if (text := self._argument(key))}
        self.meanings = _comments(options) | described | _comments(primary)
        readers = {one: key.name for key in keys for one in re.findall(r"oc\.select:(recipe\.\w+)", key.value)}
        self.readers = {one: f"`{name}`" + self._colon(name) for one, name in readers.items()}

    def groups(self) -> list[str]:
        """The names of the pages: the primary configurations, then all groups."""
        folders = sorted(path.name for path in (self.root / "conf").iterdir() if any(path.glob("*.yaml")))
        return [*INTRO, *folders, "sweeps"]

    def page(self, group: str) -> str:
        """The Markdown of one page."""
        if group in INTRO:
            file = self.root / f"conf/{group}.yaml"
            return "\n".join([f"# {group}.yaml", "", INTRO[group], "", *self._section(file)])
        folder = self.root / "sweeps" if group == "sweeps" else self.root / "conf" / group
        files = sorted(folder.glob("*.yaml"))
        lines = [f"# {group}", ""]
        if meaning := self._meaning_of_group(group):
            lines += [f"{meaning[0].upper()}{meaning[1:]}.", ""]
        for file in files:
            lines += [f"## {group}={file.stem}", "", *self._section(file)]
        return "\n".join(lines)

    def _meaning_of_group(self, group: str) -> str:
        for task in ("train", "eval"):
            text = (self.root / f"conf/{task}.yaml").read_text(encoding="utf-8")
            if found := re.search(rf"^  - (?:optional )?{re.escape(group)}: [^#\n]*# (.+)$", text, re.MULTILINE):
                return found[1]
        return ""

    def _section(self, file: Path) -> Iterator[str]:
        header, keys = _read(file)
        yield from _paragraphs(header)
        yield f"Source: `{file.relative_to(self.root)}`"
        yield ""
        chosen = [key for key in keys if key.name.endswith("defaults")]
        if chosen:
            yield from ("| chooses | |", "|---|---|")
            yield from (f"| `{_cell(key.value)}` | {_text(key.meaning)} |" for key in chosen)
            yield ""
        if rest := [key for key in keys if key.value and key not in chosen]:
            yield from ("| key | default | meaning |", "|---|---|---|")
            for key in rest:
                meaning = _text(key.meaning) or self._argument(key) or self._elsewhere(key)
                yield f"| `{key.name}` | `{_cell(key.value)}` | {meaning} |"
            yield ""

    def _colon(self, name: str) -> str:
        return f": {self.meanings[name]}" if name in self.meanings else ""

    def _elsewhere(self, key: Key) -> str:
        """The meaning of the key in other files."""
        axis = re.sub(r"^sweep\.(small|digits|paper)\.\+*", "", key.name)
        if meaning := self.readers.get(axis) or _text(self._meaning_of_group(axis)) or self.meanings.get(axis):
            return meaning
        parents = (key.name.rsplit(".", n)[0] for n in range(1, key.name.count(".")))
        return next((self.meanings[name] for name in parents if name in self.meanings), "")

    def _argument(self, key: Key) -> str:
        """The description of an argument in the docstring of its class, or of the class that it inherits from."""
        argument = key.name.rpartition(".")[2]
        if argument == "_target_":
            docstring = self._found(key.value)
            return _text(docstring.docstring.value.partition("\n")[0]) if docstring and docstring.docstring else ""
        found = self._found(key.target)
        while found is not None:
            for section in found.docstring.parsed if found.docstring else ():
                if section.kind is griffe.DocstringSectionKind.parameters:
                    for one in section.value:
                        if argument in one.name.replace(" ", "").split(","):
                            return _text(" ".join(one.description.split()))
            bases = found.resolved_bases if found.is_class else []
            found = bases[0] if bases else None
        return ""

    def _found(self, target: str | None) -> griffe.Object | None:
        if not target or not target.startswith("consistency_models."):
            return None
        try:
            found = self.package[target.removeprefix("consistency_models.")]
            return found.final_target if found.is_alias else found
        except KeyError:
            return None


def _comments(keys: list[Key]) -> dict[str, str]:
    return {key.name: _text(key.meaning) for key in keys if key.meaning}


def _read(file: Path) -> tuple[list[str], list[Key]]:
    """The comments at the head of a file, and its keys."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    header = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    group = package[1] if package else file.parent.name
    prefix = "" if group in ("_global_", "conf") else f"{group}."
    return [line for line in header if "@package" not in line], list(_keys(yaml.compose(text), lines, prefix, None))


def _keys(node: yaml.Node, lines: list[str], prefix: str, target: str | None) -> Iterator[Key]:
    """All leaves of a mapping, in the order of the file."""
    own = next((value.value for key, value in node.value if key.value == "_target_"), target)
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield Key(name, "", _comment(lines, key), own)
            yield from _keys(value, lines, f"{name}.", own)
        elif name.endswith("defaults") and isinstance(value, yaml.SequenceNode):
            for one in value.value:
                text = one.value if isinstance(one, yaml.ScalarNode) else _option(one)
                yield Key(name, text, _comment(lines, one))
        elif key.value != "_partial_":  # of Hydra
            yield Key(name, _written(lines, value), _comment(lines, key), own)


def _option(node: yaml.MappingNode) -> str:
    """`override /loss: l2` of a list of defaults as `loss=l2`."""
    ((key, value),) = node.value
    return f"{key.value.removeprefix('override ').removeprefix('optional ').lstrip('/')}={value.value}"


def _written(lines: list[str], node: yaml.Node) -> str:
    """The text of a node in the file."""
    first, last = node.start_mark, node.end_mark
    if first.line == last.line:
        return lines[first.line][first.column : last.column].strip()
    return str(yaml.safe_load(yaml.serialize(node)))  # of several lines


def _comment(lines: list[str], node: yaml.Node) -> str:
    """The comment at the end of the node's line, with its continuation, or the comment lines above."""
    number = node.start_mark.line
    found = [COMMENT.search(lines[number])]
    if found[0]:
        column = found[0].start()
        for line in lines[number + 1 :]:
            if not re.match(r"\s*#", line) or line.index("#") < column:
                break
            found.append(COMMENT.search(line))
        return " ".join(one[1] for one in found if one)
    above = []
    while number > 0 and re.match(r"\s+#", lines[number - 1]):
        number -= 1
        above.insert(0, lines[number].strip("# "))
    return " ".join(above)


def _paragraphs(comments: list[str]) -> Iterator[str]:
    """Comment lines as Markdown: indented lines are code, the others are text."""
    code = False
    for line in comments:
        text = line.removeprefix("#").removeprefix(" ")
        if text.startswith("  ") != code:
            code = not code
            yield ""
        yield f"  {text}" if code else _text(text)
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _text(text: str) -> str:
    """A sentence of a comment as Markdown: nothing in it is markup, except code in backquotes."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        one if one.startswith("`") else re.sub(r"([\\*_|\[\]])", r"\\\1", one).replace("<", "&lt;") for one in parts
    )
