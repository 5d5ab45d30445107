"""What other people are shown: a comparison page and a card for the Hub hold no private files, and no code in names."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from security.hostile import folder_with

import consistency_models
from consistency_models import export
from consistency_models.errors import DataError
from consistency_models.evaluation.compare import main as compare
from consistency_models.evaluation.grids import save_comparison
from consistency_models.evaluation.references import Reference

EVIL = "<script>alert(1)</script> [x](javascript:y) ![z](http://a.b/c.png) `code` | cell"
RESULT = {"metric": "eval/fd", "value": 1.0, "spread": None, "sampler": "Heun", "steps": 1, "nfe": 1, "features": "x"}


@pytest.fixture
def scored(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = folder_with(trained, tmp_path / "run", [])
    (folder / "evaluation").mkdir()
    write(folder, [RESULT])
    return folder


def write(folder, results, **changes):
    content = {"schema": 1, "weights": "model", "results": results, **changes}
    (folder / "evaluation/evaluation.json").write_text(json.dumps(content))


def picture(path):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def test_a_link_to_something_private_is_not_embedded(scored, tmp_path):
    picture(tmp_path / "private.png")
    (tmp_path / "private.txt").write_text("a secret of the user's")
    (scored / "samples").mkdir()
    page, shown = tmp_path / "comparison.html", "Samples, of the first seed"
    for name in ("private.png", "private.txt"):
        (scored / "samples/final.png").symlink_to(tmp_path / name)
        assert compare([str(scored)]) == 0
        assert shown not in page.read_text()
        (scored / "samples/final.png").unlink()
    shutil.copy(tmp_path / "private.txt", scored / "samples/final.png")  # no picture
    assert compare([str(scored)]) == 0
    assert shown not in page.read_text()
    picture(scored / "samples/real.png")
    (scored / "samples/final.png").unlink()
    (scored / "samples/final.png").symlink_to("real.png")  # inside the folder
    assert compare([str(scored)]) == 0
    assert shown in page.read_text()


def test_names_in_the_page_are_text(scored, tmp_path):
    """Of folders, overrides, metrics, samplers, weights, and of what a picture says about itself."""
    write(scored, [RESULT | {"metric": EVIL, "sampler": EVIL}], weights=EVIL)
    save_comparison(scored / "samples/final.png", {EVIL: torch.zeros(2, 1, 8, 8)})
    other = shutil.copytree(scored, tmp_path / EVIL.replace("/", "%"))
    (other / "overrides.yaml").write_text(json.dumps([f"loss={EVIL}", f"{EVIL}=1"]))
    write(other, [RESULT], weights="other")
    assert compare([str(scored), str(other)]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("<script") == 1  # that of the page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; [x](javascript:y)") >= 6
    assert "Content-Security-Policy" in page


def test_names_in_the_tables_are_text(scored, tmp_path, capsys):
    evil = f"{EVIL} $\\nothing$ \x1b[31m\n# heading"
    write(scored, [RESULT | {"metric": f"eval/{evil}", "sampler": evil}], weights=evil)
    other = shutil.copytree(scored, tmp_path / "other")
    named = shutil.copytree(scored, tmp_path / "$\\nothing$ \x1b[31m")
    write(named, [RESULT | {"metric": f"eval/{evil}"}], weights="named")
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config | {evil: evil}))
    assert compare([str(scored), str(other), str(named)]) == 0
    assert (tmp_path / "comparison_quality.png").is_file()
    tables = (tmp_path / "comparison.md").read_text()
    assert tables.count("&#60;script&#62;alert(1)") == 7
    for text in (tables, capsys.readouterr().out):
        for markup in ("<script", "[x](", "![z]", "`code`", "http:", "javascript:", "\n# heading", "| cell", "\x1b"):
            assert markup not in text


@pytest.mark.parametrize("name", ["config.yaml", "evaluation/evaluation.json", "metrics.csv"])
def test_a_file_that_is_a_link_to_something_private_is_not_read(name, scored, tmp_path, capsys):
    (tmp_path / "private").write_text("secret: of the user's\n")
    (scored / name).unlink(missing_ok=True)
    (scored / name).symlink_to(tmp_path / "private")
    assert compare([str(scored)]) == 2
    said = capsys.readouterr()
    assert "leads out of" in said.err
    assert "of the user's" not in said.out + said.err


def test_a_sweep_that_names_other_folders(scored, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    for job in (str(scored), "../run", ".."):
        with open(sweep / "jobs.csv", "w", newline="") as file:
            csv.writer(file).writerows([["job", "differs", "status"], [job, "", "DONE"]])
        assert compare([str(sweep)]) == 2
        assert "jobs.csv: expected the jobs.csv of a sweep" in capsys.readouterr().err


STRANGE = [{"metric": 3}, {"sampler": 3}, *({key: "x"} for key in ("value", "spread", "steps", "nfe"))]
STRANGE += [{key: value} for key in RESULT for value in ([], {})]


@pytest.mark.parametrize("result", [*(RESULT | change for change in STRANGE), {}, 3])
def test_damaged_results_are_one_line(result, scored, capsys):
    write(scored, [result])
    assert compare([str(scored)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {scored}/evaluation/evaluation.json: expected")


def test_names_in_the_hub_s_card_are_text(trained, tmp_path):
    generator = consistency_models.load(trained)
    generator.config["model"]["name"] = generator.config["data"]["name"] = EVIL
    generator.weights = f"{EVIL}\n# heading"
    export.to_hub(generator, tmp_path / EVIL.replace("/", "%"))
    body = (tmp_path / EVIL.replace("/", "%") / "README.md").read_text().split("---\n", 2)[2]
    text = "".join(body.split("```")[::2])
    for markup in ("<script", "[x]", "![z]", "`code`", "http:", "javascript:", "\n# heading"):
        assert markup not in text
    assert body.count("```") == 2


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


class Data:
    images = np.zeros((2, 3, 8, 8))


def test_a_reference_that_unpacks_without_bound(tmp_path):
    path = npz(tmp_path / "bomb.npz", arr_0=np.zeros((1_500_000, 8, 8, 3), np.uint8))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"the file unpacks to 288,000,128 bytes.*set features.reference_bytes"):
        Reference.of(Data, str(path))
    assert len(Reference.of(Data, str(path), most_bytes=1 << 29).images) == 1_500_000


def test_a_reference_that_lies_about_its_size(tmp_path):
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8, 3)})
    for method, reason in ((zipfile.ZIP_DEFLATED, "is of shape"), (zipfile.ZIP_BZIP2, "not deflate")):
        with zipfile.ZipFile(tmp_path / "lie.npz", "w", method) as archive:
            archive.writestr("arr_0.npy", header.getvalue())
        with pytest.raises(DataError, match=reason):
            Reference.of(Data, str(tmp_path / "lie.npz"))


def test_a_reference_that_is_a_pipe(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match="not a regular file"):
        Reference.of(Data, str(tmp_path / "pipe.npz"))
