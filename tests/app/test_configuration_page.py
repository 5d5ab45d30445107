"""docs/configuration.md shows what the commands print."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from consistency_models.app.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```\n\$ python train.py (.*)\n((?:.*\n)*?)```", PAGE)


@pytest.mark.parametrize(("arguments", "output"), SHOWN)
def test_output_is_what_the_page_shows(arguments, output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROJECT_ROOT", str(ROOT))
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(arguments)])
    assert main("train", ROOT) == 0
    pattern = "(?:.*\n)*".join(re.escape(part) for part in output.split("…\n"))  # … stands for lines left out
    assert re.fullmatch(pattern, capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


def test_the_order_is_that_of_the_defaults_list():
    order = [
        name for row in re.findall(r"^\| \d+ \| (.*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    listed = yaml.safe_load((ROOT / "conf/train.yaml").read_text())["defaults"]
    groups = [key.removeprefix("optional ") for entry in listed if isinstance(entry, dict) for key in entry]
    assert order == [group for group in groups if group != "hydra"]
