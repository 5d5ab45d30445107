"""The commands and the Python code of the documentation."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# docs/results/sweeps.md is a report of benchmarks/published.py; tests/sweeps checks every file that its commands name.
PAGES = [
    *(path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists()),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path != ROOT / "docs/results/sweeps.md"),
    *sorted((ROOT / "examples").rglob("*.md")),
]
FENCE = re.compile(r"^(<!-- not run: [^>]*-->\n+)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python|sbatch|pip) [^`…]+)`")
INDENTED = re.compile(r"^    ((?:python|sbatch|pip) .*)$", re.MULTILINE)
HEREDOC = re.compile(r"<<'END'\n(.*?)^END$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?:^|\s)#.*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and whether the page says that no test runs it."""

    language: str
    text: str
    not_run: bool


def blocks(page):
    """The fenced blocks of a page."""
    return [Block(m[2], m[3], bool(m[1])) for m in FENCE.finditer(page.read_text(encoding="utf-8"))]


def commands(page):
    """The command lines of a page that a test checks: those of bash blocks, of indented lines and in the text."""
    for block in blocks(page):
        if block.language == "bash" and not block.not_run:
            yield from split(block.text)
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for line in [*INDENTED.findall(text), *(" ".join(one.split()) for one in INLINE.findall(text))]:
        yield from split(line)


def split(script):
    """The commands of a bash script, each as a list of words. The text of a here-document is the last word."""
    documents = HEREDOC.findall(script)
    text = COMMENT.sub("", HEREDOC.sub("@document", script).replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words = []
    for word in [*lexer, "\n"]:
        if word and set(word) <= set("&|;\n"):
            if words:
                yield words
            words = []
        else:
            words.append(documents.pop(0) if word == "@document" else word)
