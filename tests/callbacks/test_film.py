"""The film of a run: bounded, the same after a kill, and never the end of a training."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from jobs import TINY, crash, run
from PIL import Image

from consistency_models.app import run as app_run
from consistency_models.app.loggers import MetricsCSV
from consistency_models.callbacks import film
from consistency_models.callbacks.film import FRAMES, Film
from consistency_models.errors import Exit

RUN = (
    *("data=digits", "data.batch_size=8", "network.model_channels=8", "network.num_blocks=1", "evaluation.steps=[1]"),
    *(argument for argument in TINY if argument != "callbacks.samples=null"),
    *("trainer.max_steps=10", "callbacks.samples.rows=1", "callbacks.samples.columns=3"),
    *("callbacks.samples.film_every_n_steps=2", "callbacks.checkpoint.every_n_steps=3"),
)


class Videos(MetricsCSV):
    def log_video(self, key, videos, step):
        self.shown = key, videos, step


def images(n=2, size=8, channels=1, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("total", [1, 3, 50, 1300, 1601, 3200, 40_000])
def test_the_frames_are_few_and_evenly_spaced_and_the_last_is_of_the_end(total, tmp_path):
    film = Film(tmp_path / "film.gif", 50)
    due = [step for step in range(1, total + 1) if film.is_due(step, total)]
    gaps = {after - before for before, after in pairwise(due[:-1])}
    assert due[-1] == total
    assert len(due) <= FRAMES
    assert len(due) > FRAMES // 2 or total < 50 * FRAMES // 2
    assert len(gaps) <= 1


def test_a_training_that_is_extended_keeps_the_frames_that_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "FRAMES", 4)
    short, whole = Film(tmp_path / "a.gif", 1), Film(tmp_path / "b.gif", 1)
    for step in range(1, 5):
        short.add(step, 4, images(seed=step))
    short.load(short.state() | {"5": images(3)})  # of another training
    for step in range(1, 15):
        for each in (short, whole) if step > 4 else (whole,):
            if each.is_due(step, 14):
                each.add(step, 14, images(seed=step))
    assert list(short.frames) == list(whole.frames) == [4, 8, 12, 14]
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_the_film_shows_the_images_and_its_size_is_bounded(tmp_path):
    """The worst case: noise, which no file format compresses, in more pixels than a frame has."""
    noise = Film(tmp_path / "new/film.gif", 1)
    for step in range(1, FRAMES + 1):
        noise.frames[step] = (images(10, 64, 3, step) > 0).to(torch.uint8) * 255
    noise.add(FRAMES, FRAMES, images(10, 96, 3))
    assert sum(frame.numel() for frame in noise.frames.values()) < 4e6
    assert (tmp_path / "new/film.gif").stat().st_size < 4e6
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["film.gif"]
    with Image.open(tmp_path / "new/film.gif") as picture:
        assert picture.n_frames == FRAMES
        picture.seek(1)
        shown = np.asarray(picture.convert("RGB"))
    expected = noise.frames[2][0].permute(1, 2, 0).numpy()
    assert any((shown[y : y + 64, 16 : 16 + 64] == expected).all() for y in range(shown.shape[0] - 63))


def test_killed_and_resumed_it_is_the_same(tmp_path, monkeypatch):
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    logger = Videos(undisturbed / "metrics.csv")
    with monkeypatch.context() as patch:
        patch.setattr(app_run, "build_loggers", lambda *_: [logger])
        assert run(undisturbed, *RUN) == Exit.DONE
    assert logger.shown == ("samples/film", [str(undisturbed / "samples/film.gif")], 10)
    assert run(killed, *RUN, callbacks=crash(8)) == Exit.UNEXPECTED
    assert run(killed, *RUN, f"ckpt_path={killed}") == Exit.DONE
    assert (undisturbed / "samples/film.gif").read_bytes() == (killed / "samples/film.gif").read_bytes()
    with Image.open(killed / "samples/film.gif") as picture:
        assert picture.n_frames == 5


def test_a_film_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(film, "save_film", full)
    assert run(tmp_path, *RUN) == Exit.DONE
    assert (tmp_path / "samples/final.png").exists()
    assert caplog.text.count("film.gif: OSError: [Errno 28] No space left on device") == 5
