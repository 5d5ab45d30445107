"""Every command of the documentation is accepted by the program that it calls, or the page says that no test runs it.

Commands of train.py and eval.py are composed and checked as at their start; other programs parse their arguments.
"""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
import yaml
from documented import PAGES, ROOT, blocks, commands
from hydra._internal.utils import get_args_parser

from consistency_models.app.checks import Composer, check

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
RUNS = ("ict_digits/DATE_TIME", "teacher_digits/DATE_TIME", "NAME/DATE_TIME", "mine")
ENVIRONMENT = re.compile(r"[A-Z_]+=")


class ParsedError(Exception):
    """The program has parsed its arguments."""


@pytest.fixture(scope="module")
def composers(as_in_main):
    """Of each command. Of a multirun only the first and the last job are checked; tests/sweeps checks all."""
    composers = {task: Composer(task, ROOT / "conf") for task in ("train", "eval")}
    cells = composers["train"].cells
    composers["train"].cells = lambda *arguments: (jobs := cells(*arguments))[:: max(len(jobs) - 1, 1)]
    return composers


def leave_run(folder):
    """A run folder, as far as a check looks at it."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/last.ckpt").write_bytes(b"PK" + b"sha256:" + b"0" * 64)
    (folder / "overrides.yaml").write_text("[]")
    config = {"trainer": {"max_steps": 100, "max_images": None}, "data": {"batch_size": 64}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "STOPPED").write_text("")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of a reader: run folders and files, as far as a check looks at them."""
    for name in ("train.py", "eval.py", "benchmarks", "conf", "examples", "slurm", "tests", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in (*(f"runs/{run}" for run in RUNS), "FOLDER"):
        leave_run(tmp_path / name)
    for name in ("PHOTOS", "NEW", "ENCODED", "LATENTS", "IMAGENET", "PIPELINE"):
        (tmp_path / name).mkdir()
    (tmp_path / "PIPELINE/model_index.json").write_text("{}")
    for name in ("FILE", "FILE.pkl"):
        (tmp_path / name).write_bytes(b"not read")
    monkeypatch.chdir(tmp_path)


def checked(task, words, composers):
    """Check a command of train.py or eval.py."""
    given = get_args_parser().parse_args(words)
    if given.help:
        return
    composer = Composer(task, ROOT / "conf", given.config_dir) if given.config_dir else composers[task]
    check(task, composer, given.overrides, given.multirun)
    for override in given.overrides:
        if override.startswith("hydra.run.dir="):
            leave_run(Path(override.partition("=")[2]))


def parsed(words, patch):
    """Start a Python program, and stop it after it has parsed its arguments."""
    real = argparse.ArgumentParser.parse_args

    def stop(parser, arguments=None):
        real(parser, arguments)
        raise ParsedError

    patch.setattr(argparse.ArgumentParser, "parse_args", stop)
    if words[0] == "-m":
        module = importlib.import_module(words[1])
        module = importlib.import_module(f"{words[1]}.__main__") if hasattr(module, "__path__") else module
        patch.setattr(sys, "argv", words[1:])
        start = module.main
    else:
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend(str(Path(words[0]).parent.resolve()))
        start = partial(runpy.run_path, words[0], run_name="__main__")
    with pytest.raises((ParsedError, SystemExit)) as caught:
        start()
    assert getattr(caught.value, "code", 0) == 0, f"{shlex.join(words)}: see the captured output"  # --help exits with 0


def accepted(words, composers, patch):
    """Check one command; raises an error if it cannot be right."""
    words = ["0.1" if word == "SECONDS" else word for word in words]
    match words:
        case ["python", "train.py" | "eval.py" as script, *rest]:
            checked(script.removesuffix(".py"), rest, composers)
        case ["sbatch", *rest]:
            script = next(i for i, word in enumerate(rest) if not word.startswith("-"))
            assert Path(rest[script]).exists(), words
            checked("train", rest[script + 1 :], composers)
        case ["python", "-m", "pytest", *rest]:
            assert all(Path(word).exists() for word in rest if word.startswith("tests/")), words
        case ["python", "-m", "venv", *_] | ["source", _]:
            pass
        case ["mkdir", "-p", path]:
            Path(path).mkdir(parents=True, exist_ok=True)
        case ["cat", ">", path, text]:
            Path(path).write_text(text)
        case ["python", "-" | "-c", script]:
            compile(script, "program", "exec")
        case ["python", *rest]:
            parsed(rest[: rest.index(">")] if ">" in rest else rest, patch)
        case ["pip", "install", *rest]:
            for name in (word for word in rest if word != "-e"):
                found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", name)
                assert found, f"{name}: of another project; mark the block <!-- not run: reason -->"
                assert set((found[1] or "dev").split(",")) <= set(EXTRAS), words
        case ["mkdocs", "serve" | "build", *_] | ["ruff", *_] | ["mypy", *_]:
            pass  # tests/docs/test_site.py and tests/test_types.py run them
        case [setting, *rest] if ENVIRONMENT.match(setting):
            accepted(rest, composers, patch)
        case _:
            raise AssertionError(f"{shlex.join(words)}: unknown; mark the block <!-- not run: reason -->")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_accepted(page, composers, monkeypatch):
    for words in commands(page):
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, value)
            if name == "PYTHONPATH":
                monkeypatch.syspath_prepend(str(Path(value).resolve()))
            continue
        with monkeypatch.context() as patch:
            try:
                accepted(words, composers, patch)
            except (ValueError, SystemExit) as error:
                raise AssertionError(f"{shlex.join(words)}\n{error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_code_compiles_and_its_imports_exist(page):
    for block in blocks(page):
        if block.language == "python":
            tree = ast.parse(block.text)
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), str(page), "exec"), {})


def test_no_command_is_overlooked():
    """A block without a language shows output; what starts with $ there is a command that another test runs."""
    for page in PAGES:
        for block in blocks(page):
            if not block.language:
                asked = [line for line in block.text.splitlines() if re.match(r"(python|pip|sbatch) ", line)]
                assert not asked, f"{page}: {asked}: mark the block as bash"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_of_the_repository(page):
    for target in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{target}: no such file; a reader of the repository has no generated pages"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )
