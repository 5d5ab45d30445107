"""The site is built offline without a warning, and its reference has every public name and every key."""

import importlib
import re
import socket

import pytest
from jobs import ROOT

pytest.importorskip("material", reason="the site needs the extra docs: pip install -e '.[docs]'")
pytest.importorskip("mkdocstrings", reason="the site needs the extra docs: pip install -e '.[docs]'")
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOMS = ("data", "evaluation", "export", "losses", "methods", "networks", "noise", "optim", "pretrained", "sampling")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as by `mkdocs build --strict`, without network."""

    def refused(*_):
        raise AssertionError("the build of the site opens a connection")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refused)
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def test_no_page_fetches_a_script_a_style_or_a_picture(site):
    fetched = (
        r"<(?:script|img)[^>]* src=[\"']?(?:https?:)?//|<link[^>]*rel=[\"']?stylesheet[^>]* href=[\"']?(?:https?:)?//"
    )
    for page in site.rglob("*.html"):
        assert not re.search(fetched, page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_described(site, room):
    page = (site / f"reference/api/{room}.html").read_text(encoding="utf-8")
    names = importlib.import_module(f"consistency_models.{room}").__all__
    described = [name.rpartition(".")[2] for name in re.findall(rf'id="consistency_models\.{room}\.([\w.]+)"', page)]
    assert set(names) <= set(described)


def test_equations_keep_their_characters(site):
    page = (site / "reference/api/noise.html").read_text(encoding="utf-8")
    assert "c_skip = σ_d²/(σ² + σ_d²),  c_out = σ·σ_d/√(σ² + σ_d²)" in page.replace("&nbsp;", " ")


def test_every_option_and_every_key_is_described(site):
    for file in [*(ROOT / "conf").glob("*/*.yaml"), *(ROOT / "sweeps").glob("*.yaml")]:
        group = "sweeps" if file.parent == ROOT / "sweeps" else file.parent.name
        page = (site / f"reference/configuration/{group}.html").read_text(encoding="utf-8")
        section = page.partition(f'id="{group}{file.stem}"')[2].partition("<h2")[0]
        assert f"<code>{file.relative_to(ROOT)}</code>" in section, file
        rows = re.findall(r"<tr>\s*<td><code>(.*?)</code></td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>", section)
        short = [key for key, _, meaning in rows if len(meaning.split()) < 2]
        assert not short, f"{file}: {short}: no comment and no docstring, or less than two words"


def test_an_axis_of_a_sweep_has_the_meaning_of_its_group_or_key(site):
    page = (site / "reference/configuration/sweeps.html").read_text(encoding="utf-8")
    rows = re.findall(r"<td><code>sweep\.(\w+)\.([\w.+]+)</code></td>\s*<td>.*?</td>\s*<td>(.*?)</td>", page)
    meanings = {(size, axis): meaning for size, axis, meaning in rows}
    for size in ("small", "digits", "paper"):
        assert meanings[size, "loss"] == "the distance d(online, target)"
        assert meanings[size, "model"] == "the method"
        assert meanings[size, "seed"] == "the seed of all random numbers: weights, images, levels, noise"
    assert meanings["paper", "data.batch_size"].startswith("images of one optimiser step")


def test_a_key_has_its_default_and_its_meaning(site):
    page = (site / "reference/configuration/loss.html").read_text(encoding="utf-8")
    section = page.partition('id="losspseudo_huber"')[2]
    (row,) = re.findall(r"<td><code>loss\.c</code></td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>", section)[:1]
    assert row[0] == "<code>null</code>"
    assert row[1]


def test_the_home_page_is_the_readme(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "One equation, every method" in page
    assert 'href="methods.html"' in page
