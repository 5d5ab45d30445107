"""The live page: its images are those of `load().sample` and `load().edit`; wrong commands are refused."""

import base64
import io
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress

import numpy as np
import pytest
import torch
from jobs import ROOT, config_of
from PIL import Image

from consistency_models import load
from consistency_models.app.demo import html, views
from consistency_models.app.demo.__main__ import main, settings_of
from consistency_models.app.demo.answers import EDITS, STROKE, Settings, edited, interpolated, sampled
from consistency_models.app.demo.runs import open_runs
from consistency_models.app.demo.server import application, listen
from consistency_models.errors import ConfigError
from consistency_models.evaluation.features import to_bytes
from consistency_models.export.weights import to_checkpoint
from consistency_models.sampling.editing import Colorization, Inpainting, SuperResolution, Unconstrained
from consistency_models.sampling.generator import Generator, ImageNoise
from consistency_models.storage.loading import build_model

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ["zero", "<b>one</b>", *map(str, range(2, 10))]


def made(file, seed, *overrides):
    """A checkpoint of random weights, which make images that depend on noise and class."""
    torch.manual_seed(seed)
    config = config_of(file.parent / "run", *overrides)
    if config["data"]["network_classes"]:
        config["data"]["class_names"] = NAMES
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    generator = Generator(model, (1, 1, 1), None)
    generator.config, generator.origin = config, {"digest": "0" * 64}
    to_checkpoint(generator, file)
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def paths(folder):
    """Two models of digits, one of a single segment."""
    small = "network.model_channels=8"
    return made(folder / "a.ckpt", 0, small), made(folder / "b.ckpt", 1, small, "model=mcm", "model.segments=4")


@pytest.fixture(scope="module")
def runs(paths):
    return open_runs(paths)


@pytest.fixture(scope="module")
def coloured(folder):
    """A run of RGB images without classes."""
    size = ("network=small", "network.model_channels=8", "data.image_size=8", "data.conditional=false")
    return open_runs([made(folder / "rgb.ckpt", 2, "data=cifar10", *size)])[0]


@pytest.mark.parametrize(("condition", "steps"), [(None, 1), (3, 4)])
def test_samples_are_those_of_load(paths, runs, condition, steps):
    labels = None if condition is None else torch.full((5,), condition)
    expected = load(paths[0]).sample(5, steps=steps, seed=7, labels=labels)
    samples = sampled(runs[0], condition, 7, steps, 5)
    assert torch.equal(samples.images, expected)
    assert [call.sigma for call in samples.calls] == pytest.approx(load(paths[0]).make_sampler(steps=steps).sigmas)
    assert torch.equal(samples.calls[-1].denoised.clamp(-1, 1), expected)  # the way ends at the image
    assert len(expected.unique()) > 100  # weights that make images


def test_runs_get_the_same_noise_and_the_steps_that_they_take(runs):
    a, b = (sampled(run, None, 3, 1, 4) for run in runs)
    assert (a.steps, b.steps) == (1, 4)
    assert torch.equal(a.calls[0].x, b.calls[0].x)
    assert torch.allclose(a.calls[0].scaled, ImageNoise(3, [0, 1, 2, 3], (1, 8, 8), "cpu")(), rtol=1e-3)
    assert not torch.equal(a.images, b.images)


def plans(image, brushed):
    """What each edit asks of `Generator.edit`: operator, levels, start."""
    noisy = image + 0.7 * ImageNoise(5, [0, 1, 2], image.shape[1:], "cpu")()
    return {
        "Repaint what is brushed": (Inpainting(~brushed), 6, None),
        "Refine patches": (SuperResolution(4), 6, None),
        "Colour": (Colorization(), 6, None),
        "From a painting": (Unconstrained(), STROKE, None),
        "Add noise and remove it": (Unconstrained(), [0.7], noisy),
    }


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_those_of_load(coloured, edit):
    image, brushed = sampled(coloured, None, 0, 1, 1).images, torch.zeros(8, 8, dtype=torch.bool)
    brushed[2:5, 1:7] = True
    operator, levels, x = plans(image.expand(3, -1, -1, -1), brushed)[edit]
    expected = coloured.generator.edit(image.expand(3, -1, -1, -1), operator, levels, seed=5, x=x)
    settings = Settings(brushed, points=6, patch=4, sigma=0.7)
    done = edited(coloured, edit, image[0], settings, None, 5, 1, 3)
    assert torch.equal(done.images, expected)
    assert done.start.shape == image[0].shape
    if edit == "Repaint what is brushed":
        assert torch.equal(done.images[:, :, ~brushed], image[:, :, ~brushed].expand(3, -1, -1))
        with pytest.raises(ValueError, match="nothing is brushed"):
            edited(coloured, edit, image[0], Settings(brushed & False), None, 5, 1, 3)


def test_an_interpolation_ends_at_the_samples(runs):
    samples = sampled(runs[0], 2, 5, 1, 4).images
    images, _ = interpolated(runs[0], 2, 5, 1, (1, 3), 6)
    assert torch.allclose(images[[0, -1]], samples[[1, 3]], atol=1e-4)
    assert (images[2] - images[0]).abs().max() > 0.01
    with pytest.raises(ValueError, match="two different images"):
        interpolated(runs[0], 2, 5, 1, (1, 1), 6)


def pixels_of(page):
    """The pictures of a page, decoded."""
    sources = re.findall(r"src=[\"']data:image/png;base64,([^\"']+)", page)
    return [np.atleast_3d(np.array(Image.open(io.BytesIO(base64.b64decode(each))))) for each in sources]


def as_pixels(images):
    return list(to_bytes(images).permute(0, 2, 3, 1).numpy())


def equal(found, expected):
    return len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected))


def test_pictures_are_exact_and_names_of_files_are_text():
    images = to_bytes(torch.randn(3, 3, 8, 8).clamp(-1, 1))
    row = html.row(images, ["a", "<script>", "'"]) + html.heading("<img src=x>", "&")
    assert equal(pixels_of(row), list(images.permute(0, 2, 3, 1).numpy()))
    assert re.findall("<(?!/?(?:div|figure|figcaption|h3|p)\\b|img width)", row) == []


def test_prompts_and_latents(sd_folder):
    (run,) = open_runs([sd_folder])
    generator = load(sd_folder)
    for text, guidance in (("a cat", 1), ("a cat", 3), ("a dog", 1)):
        expected = generator.sample(steps=2, seed=1, prompts=[text] * 2, guidance=guidance)
        samples = sampled(run, (text, guidance), 1, 2, 2)
        assert torch.equal(samples.images, expected)
        assert run.pictures(samples.calls[0].denoised).shape == expected.shape == (2, 3, 16, 16)
        shown = views.samples(run, text, guidance, 1, 2, 2, 1)
        assert equal(pixels_of(shown)[:2], as_pixels(expected))


def test_points_are_refused():
    with pytest.raises(ConfigError, match=r"pipeline=null is not allowed: .* makes 2x1x1 numbers"):
        open_runs([ROOT / "tests/reliability/earlier"])


def test_runs_of_other_images_are_refused(paths, folder):
    other = made(folder / "c.ckpt", 0, "network.model_channels=8", "data.conditional=false")
    with pytest.raises(ConfigError, match=r"num_classes of .*c\.ckpt is 0, but 10 of .*a\.ckpt"):
        open_runs([paths[0], other])


WRONG = {
    (): (2, "run=[] is not allowed. Allowed: run=FOLDER, one to four times"),
    ("runs=x",): (2, "Did you mean run=x?"),
    ("x",): (2, "Did you mean run=x?"),
    ("run=no/such",): (2, "run=no/such is not allowed: . has no no. Allowed: a run folder or a checkpoint file"),
    ("run=.", "port=x"): (2, "port=x is not allowed. Allowed: a whole number >= 0 and <= 65535"),
    ("run=.", "port=1", "port=2"): (2, "port=2 is not allowed: the key is given twice"),
    ("run=.", "pipeline=no"): (2, "pipeline=no is not allowed"),
    ("run=.", "host=192.0.2.1"): (2, "host=192.0.2.1 is not allowed: port 7860 cannot be opened there"),
    ("run=.", "port=0", "device=gpu"): (2, "device=gpu is not allowed. Allowed: auto, cpu, cuda, mps, or cuda:NUMBER"),
    ("run=.", "port=0", "device=cuda:99"): (2, "device=cuda:99 is not allowed: "),
    ("run=.", "port=0"): (4, "checkpoints/last.ckpt: expected a file that can be read"),
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_commands_end_with_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, text = WRONG[words]
    assert main(words) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert text in said.err
    assert said.err.count("\n") == 1


def test_a_port_in_use_and_a_missing_extra_end_with_one_line(paths, monkeypatch, capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main([f"run={paths[0]}", f"port={port}"]) == 2
    assert f"port={port} is not allowed: another program listens on it" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([f"run={paths[0]}", "port=0"]) == 2
    assert capsys.readouterr().err == 'error: uvicorn is not installed: pip install -e ".[demo]"\n'


def test_values_of_the_command_line():
    words = ["run=a=b", "run=c", "port=0", "weights=0.999"]
    assert settings_of(words) == {"run": ["a=b", "c"], "port": 0, "weights": "0.999"}


@pytest.fixture(scope="module")
def url(runs, folder):
    """The address of the page, served by a thread."""
    pytest.importorskip("gradio", reason="the live page needs the extra demo: pip install -e '.[demo]'")
    import uvicorn

    with listen("127.0.0.1", 0) as listening:
        app = application(runs, "127.0.0.1", str(folder / "gradio"))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def fetched(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.headers, answer.read().decode()


def test_the_page_is_local(url):
    headers, page = fetched(url)
    assert headers["Content-Security-Policy"].startswith("default-src 'self' ")
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=[\"'](?:https?:)?//", page)
    _, config = fetched(f"{url}/config")
    assert '"analytics_enabled":false' in config
    assert not re.search(r"fonts\.g|googletag|huggingface\.co", fetched(f"{url}/theme.css")[1])
    with pytest.raises(urllib.error.HTTPError, match="400"):
        fetched(url, Host="another.example")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_quietly(stop, paths, tmp_path, monkeypatch, capfd):
    """The signal comes when the page has been fetched. Nothing connects to another address."""
    pytest.importorskip("gradio", reason="the live page needs the extra demo: pip install -e '.[demo]'")
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pages, opened, connect = [], [], socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda own, to: (opened.append(to), connect(own, to))[1])

    def interrupt():
        for _ in range(600):
            with suppress(OSError):
                pages.append(fetched(f"http://127.0.0.1:{port}")[1])
                break
            time.sleep(0.05)
        os.kill(os.getpid(), stop)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main([f"run={paths[0]}", f"port={port}"]) == 0
    thread.join()
    assert not list(tmp_path.iterdir())
    assert '"title":"consistency-models"' in pages[0]
    assert set(opened) == {("127.0.0.1", port)}
    said = capfd.readouterr()
    assert said.out == f"http://127.0.0.1:{port}  (Ctrl-C ends it)\n"
    assert said.err == ""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_in_a_browser(url, paths):
    """Press, brush and edit; the pictures are those of the models."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#samples-0 img")
        start = time.perf_counter()
        before = page.get_attribute("#samples-0 img", "src")
        page.click("#again")  # seed 1
        page.wait_for_function("before => document.querySelector('#samples-0 img').src != before", arg=before)
        print(f"from the press to the pictures: {1000 * (time.perf_counter() - start):.0f} ms")
        for _ in range(3):  # seed 4, without waiting
            page.click("#again")
        page.fill("#steps input[type=number]", "2")
        page.press("#steps input[type=number]", "Tab")
        expected = [as_pixels(load(path).sample(10, steps=n, seed=4)) for path, n in zip(paths, (2, 4))]
        for _ in range(100):
            shown = [pixels_of(page.inner_html(f"#samples-{number}")) for number in (0, 1)]
            if all(equal(images[:10], wanted) for images, wanted in zip(shown, expected)):
                break
            page.wait_for_timeout(100)
        else:
            raise AssertionError("the page does not show the images of load().sample")
        assert [len(images) for images in shown] == [10 + 2 * 2, 10 + 2 * 4]
        assert page.inner_text("#samples-0 figcaption >> nth=1") == "<b>one</b>"
        page.get_by_role("tab", name="Edit").click()
        page.wait_for_timeout(2000)  # the canvas draws its first picture
        with page.expect_response(re.compile("/file=")):  # the picture
            page.click("#take")
        canvas = page.locator("#canvas canvas").first
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.wait_for_timeout(1000)  # the canvas draws the picture
        page.mouse.move(x - 60, y)
        page.mouse.down()
        page.mouse.move(x + 60, y, steps=5)
        page.mouse.up()
        page.click("#go")
        page.wait_for_selector("#edits-1 img")
        image, given, *results = pixels_of(page.inner_html("#edits-0"))
        sample = load(paths[0]).sample(10, steps=2, seed=4)[:1]
        assert np.array_equal(image, as_pixels(sample)[0])
        brushed = torch.from_numpy(given != image)[..., 0]
        assert 2 <= brushed.sum() <= 40
        edited = load(paths[0]).edit(
            torch.from_numpy(image).permute(2, 0, 1).expand(10, -1, -1, -1) / 127.5 - 1,
            Inpainting(~brushed),
            seed=4,
            labels=torch.arange(10),
        )
        assert equal(results, as_pixels(edited))
        browser.close()
    assert not errors
    assert [each for each in asked if not each.startswith((f"{url}/", "data:", "blob:"))] == []
