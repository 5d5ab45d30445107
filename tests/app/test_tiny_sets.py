"""Sets of fewer than four images: trained on and scored; what cannot be computed is left out, and said beforehand."""

import json

import pytest
import torch
from data.conftest import write
from evals import DIGITS, evaluate, trained
from jobs import TINY, run

from consistency_models.errors import Exit


@pytest.mark.parametrize(
    ("count", "said"), [(1, "no metric is computed"), (2, "no floor is computed"), (3, "no floor is computed")]
)
def test_a_set_without_a_floor(tmp_path, count, said, caplog):
    pixels = torch.randint(0, 256, (count, 8, 8, 3), generator=torch.Generator().manual_seed(0)).numpy()
    root = write(tmp_path / "images", {f"{k}.png": pixels[k] for k in range(count)})
    data = ("data=image_folder", f"data.root={root}", "data.image_size=8", "network=small")
    folder = trained(tmp_path / "run", *DIGITS, *data, "data.source.cache_dir=null")
    assert f"{count} real images: {said}" in caplog.text
    assert json.loads((folder / "summary.json").read_text()).get("floor", {}) == {}
    assert evaluate(folder, "n=4") == Exit.DONE
    report = json.loads((folder / "evaluation/evaluation.json").read_text())
    assert report["floor"] == {}
    assert bool(report["results"]) == (count > 1)


def test_images_without_classes_are_refused_before_the_first_step(tmp_path, capsys):
    """The default features are those of a classifier, which learns the classes."""
    pixels = torch.randint(0, 256, (4, 8, 8, 3), generator=torch.Generator().manual_seed(0)).numpy()
    root = write(tmp_path / "images", {f"{k}.png": pixels[k] for k in range(4)})
    data = ("data=image_folder", f"data.root={root}", "data.image_size=8", "network=small")
    small = ("network.model_channels=8", "data.batch_size=4", "data.source.cache_dir=null", "trainer.max_steps=1")
    assert run(tmp_path / "run", *TINY, *data, *small) == Exit.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: features=classifier is not allowed: the images have no classes to learn. Allowed: ")
    assert line.endswith("Did you mean features=identity?")
    assert not (tmp_path / "run/checkpoints").exists()
