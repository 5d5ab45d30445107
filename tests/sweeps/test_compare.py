"""Comparison without W&B: of a sweep whose folders are written by hand, so that every number is known."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
import yaml
from PIL import Image

from consistency_models.app.folder import RunFolder
from consistency_models.app.sweep_folder import SweepFolder
from consistency_models.errors import Exit
from consistency_models.evaluation.compare import COLUMNS, main
from consistency_models.evaluation.grids import save_comparison, save_film
from consistency_models.evaluation.runs import _curves, cells_of, differing_keys, read_runs

VALUES = {("l1", 0): 3.0, ("l1", 1): 5.0, ("l2", 0): 1.0, ("l2", 1): 1.5}
BROWSERS = [name for name in ("chromium", "google-chrome", "chromium-browser") if shutil.which(name)][:1]


@pytest.fixture
def sweep(tmp_path):
    """A folder of four jobs, two losses and two seeds."""
    folder = SweepFolder(tmp_path / "runs/ict_distance/now")
    folder.begin(["sweeps=ict_distance"], [["model=ict", f"loss={loss}", f"seed={seed}"] for loss, seed in VALUES])
    for job, ((loss, seed), value) in enumerate(VALUES.items()):
        run = RunFolder(folder.path / str(job))
        config = {
            "name": "ict_mixture",
            "seed": seed,
            "data": {"batch_size": 10, "seed": seed},
            "loss": {"_target_": loss},
            "sampler": {"_target_": "consistency_models.sampling.samplers.Consistency.for_steps"},
            "callbacks": {"samples": {"folder": str(run.path / "samples")}},
        }
        overrides = ["model=ict", f"loss={loss}", f"seed={seed}"]
        run.write_config(config, overrides)
        names = {f"val/sw20_identity_train_{steps}step": value / steps for steps in (1, 2)}
        run.write_summary({"monitor": "val/sw20_identity_train_1step", "metrics": {"final": names}})
        lines = ["step,train/loss,val/sw20_identity_train_1step", f"1,{value},", f"2,{value / 2},{value}"]
        (run.path / "metrics.csv").write_text("\n".join(lines) + "\n")
        (run.path / "samples").mkdir()
        Image.new("RGB", (40, 20), (200, 40 * job, 40)).save(run.path / "samples/final.png")
        run.mark("DONE")
        folder.note(str(job), overrides, 0)
    return folder.path


def test_seeds_are_one_cell_with_mean_and_deviation(sweep):
    cells = {cell.name: cell for cell in cells_of(read_runs([sweep]))}
    assert set(cells) == {"loss=l1", "loss=l2"}
    one, two = cells["loss=l1"].results
    assert (one["value"], one["spread"], one["steps"], one["nfe"]) == (4.0, pytest.approx(2**0.5), 1, 1)
    assert (two["value"], two["steps"]) == (2.0, 2)
    assert cells["loss=l2"].runs[0].curves["train/loss"] == [(10, 1.0), (20, 0.5)]


@pytest.mark.parametrize("key", ["seed", "data.seed"])
def test_no_seed_is_part_of_a_cell_s_name(sweep, key):
    runs = {name: replace(run, setting=["loss=l1", f"{key}=0"]) for name, run in read_runs([sweep]).items()}
    assert {cell.name for cell in cells_of(runs)} == {"loss=l1"}


def test_runs_that_differ_only_in_the_seed_have_the_name_of_their_sweep(sweep):
    (cell,) = cells_of({name: replace(run, setting=["seed=0"], config={}) for name, run in read_runs([sweep]).items()})
    assert cell.name == "now"


def test_a_sweep_without_a_finished_job(sweep):
    rows = (sweep / "jobs.csv").read_text().replace("DONE", "FAILED")
    (sweep / "jobs.csv").write_text(rows)
    with pytest.raises(ValueError, match="no job of this sweep is finished"):
        read_runs([sweep])


def test_a_summary_says_which_figures_are_distances_and_what_a_step_costs(sweep):
    """Nothing is guessed from the names of a user's own metric and sampler."""
    file = sweep / "0/summary.json"
    final = {"val/own20_identity_train_2step": 1.0, "val/precision20_identity_train_2step": 2.0}
    metrics = {"final": final, "is_distance": {name: "own" not in name for name in final}, "network_calls": {"2": 6}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": metrics}))
    own, precision = next(iter(read_runs([sweep / "0"]).values())).results
    assert (own["is_distance"], precision["is_distance"], own["nfe"]) == (False, True, 6)


def test_keys_that_differ_are_those_of_the_setting(sweep):
    cells = cells_of(read_runs([sweep]))
    assert differing_keys(cells) == {"loss._target_": ["l1", "l2"]}


def test_jobs_that_are_not_done_are_left_out_and_runs_can_be_added(sweep):
    RunFolder(sweep / "3").mark("FAILED", "error: x\n")
    SweepFolder(sweep).note("3", ["model=ict", "loss=l2", "seed=1"], 1)
    assert [len(cell.runs) for cell in cells_of(read_runs([sweep]))] == [2, 1]
    assert len(read_runs([sweep / "0", sweep / "2"])) == 2
    with pytest.raises(ValueError, match="each run once"):
        read_runs([sweep, sweep / "0"])


def test_what_is_written(sweep, tmp_path, capsys):
    assert main([str(sweep), "--out", str(tmp_path / "out/all")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out/all.md").read_text() in printed
    with open(tmp_path / "out/all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["run"], row["steps"], float(row["value"]), row["seeds"]) for row in rows] == [
        ("loss=l2", "2", 0.625, "2"),
        ("loss=l2", "1", 1.25, "2"),
        ("loss=l1", "2", 2.0, "2"),
        ("loss=l1", "1", 4.0, "2"),
    ]
    assert "| loss=l2 | averaged | Consistency, 1 step | 1 | 1.25 ± 0.35 | 2 |" in printed
    for name in ("quality", "curves"):
        with Image.open(tmp_path / f"out/all_{name}.png") as image:
            assert image.width > 300


class Sources(HTMLParser):
    """What a page refers to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for key, value in attributes if key in ("src", "href")]


def test_a_folder_that_cannot_be_written_is_one_line_of_error(sweep, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(sweep), "--out", str(tmp_path / "file/all")]) == Exit.STORAGE
    assert re.fullmatch(r"error: .*/file'\n", capsys.readouterr().err)


def test_the_page_needs_nothing_else(sweep, tmp_path):
    assert main([str(sweep), "--out", str(tmp_path / "all")]) == 0
    page = (tmp_path / "all.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert len(sources.found) == 4  # two figures, samples of two settings
    assert all(source.startswith("data:image/png;base64,") for source in sources.found)
    assert "url(" not in page
    assert page.count("<table class='sortable'>") == 1
    assert "default-src 'none'" in page


def test_keys_that_follow_from_the_choices_are_collapsed(sweep, tmp_path):
    (sweep / "0/config.yaml").write_text((sweep / "0/config.yaml").read_text() + "curriculum: {s0: 2}\n")
    assert main([str(sweep / "0"), str(sweep / "2"), "--out", str(tmp_path / "all")]) == 0
    shown, collapsed = (tmp_path / "all.html").read_text().split("<details>")
    assert "<td>loss</td><td>l1</td><td>l2</td>" in shown
    assert "Keys that follow from the choices (2)" in collapsed
    for row in ("<td>loss._target_</td><td>l1</td><td>l2</td>", "<td>curriculum.s0</td><td>2</td><td>-</td>"):
        assert row in collapsed
        assert row not in shown
    for job in "02":
        (sweep / job / "overrides.yaml").unlink()  # the choices are unknown
    assert main([str(sweep / "0"), str(sweep / "2"), "--out", str(tmp_path / "all")]) == 0
    assert "<details open><summary>Keys</summary>" in (tmp_path / "all.html").read_text()


def test_the_same_noise_and_the_films_of_all_settings(sweep, tmp_path):
    """Images of a run in one and in two steps; of a run in one step only; and a film."""
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_comparison(sweep / "0/samples/final.png", {"1-step": images, "2-step": -images}, columns=4)
    save_comparison(sweep / "2/samples/final.png", {"1-step": images}, columns=2)
    save_film(sweep / "2/samples/film.gif", {"step 1": images, "step 2": -images})
    assert main([str(sweep), "--out", str(tmp_path / "all")]) == 0
    page = (tmp_path / "all.html").read_text()
    rows = re.findall(r"<tr><th>(loss=l[12])</th>(.*?)</tr>", page)
    assert [name for name, _ in rows] == ["loss=l1", "loss=l2", "loss=l1"]
    assert rows[0][1] == rows[1][1]
    assert rows[0][1] != rows[2][1]
    assert [row.count("--width: 64px") for _, row in rows] == [4, 4, 4]
    assert page.count("data:image/gif;base64,") == 1


def browse(browser, tmp_path, *options):
    """Open the page in a headless browser; returns what it prints."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += [*options, f"file://{tmp_path}/all.html"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.parametrize("browser", BROWSERS)
def test_a_click_sorts_the_results_and_no_other_script_runs(sweep, tmp_path, browser):
    """Two clicks sort by steps, descending; equal rows keep their order."""
    assert main([str(sweep), "--out", str(tmp_path / "all")]) == 0
    page = (tmp_path / "all.html").read_text()
    injected = "<script>for (const _ of '12') document.querySelectorAll('th button')[3].click()</script>"
    for text, order in ((page, "2121"), (re.sub('<meta http-equiv="Content-Security-Policy".*>', "", page), "2211")):
        (tmp_path / "all.html").write_text(text + injected)
        body = browse(browser, tmp_path, "--dump-dom").split("<tbody>")[1].split("</tbody>")[0]
        steps = [re.findall(r"<td>(.*?)</td>", row)[3] for row in body.split("</tr>")[:-1]]
        assert "".join(steps) == order


@pytest.mark.parametrize("browser", BROWSERS)
def test_a_browser_shows_the_page(sweep, tmp_path, browser):
    """Headless: all pictures are loaded, and the screenshot has the colours of the samples."""
    assert main([str(sweep), "--out", str(tmp_path / "all")]) == 0
    browse(browser, tmp_path, f"--screenshot={tmp_path}/shot.png", "--window-size=1400,2200")
    with Image.open(tmp_path / "shot.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height)}
    assert {(200, 0, 40), (200, 80, 40)} <= colours  # of jobs 0 and 2, the first seeds
    assert len(colours) > 50  # text and figures


def test_of_runs_that_eval_py_has_scored_its_numbers_are_shown(sweep):
    result = {"metric": "eval/fd9_x_1step", "value": 7.0, "spread": 0.1, "sampler": "Heun", "steps": 1, "nfe": 3}
    content = {"schema": 1, "weights": "ema", "results": [result | {"features": "x"}]}
    (sweep / "0/evaluation").mkdir()
    (sweep / "0/evaluation/evaluation.json").write_text(json.dumps(content))
    run = next(iter(read_runs([sweep / "0"]).values()))
    assert (run.weights, run.results[0]["value"]) == ("ema", 7.0)
    assert yaml.safe_load((sweep / "overrides.yaml").read_text()) == ["sweeps=ict_distance"]


def test_long_curves_are_thinned_while_they_are_read(tmp_path):
    """Every figure keeps its last value, and images are counted as the run counted them."""
    columns = "step,train/loss,train/images_seen,train/gradient_norm,val/fd_1step"
    rows = [f"{i},{i / 7},{float(i * 16 + 100)},nonsense,{i if i % 1000 == 0 else ''}" for i in range(1, 10_001)]
    (tmp_path / "metrics.csv").write_text("\n".join([columns, *rows, "10001,,,,5.5", "100"]))
    curves = _curves(tmp_path, 32)
    assert set(curves) == {"train/loss", "val/fd_1step"}  # what is drawn
    assert 1000 <= len(curves["train/loss"]) <= 2001
    assert curves["train/loss"][0] == (116, 1 / 7)
    assert curves["train/loss"][-1] == (160_100, 10_000 / 7)
    assert curves["val/fd_1step"] == [*((i * 16 + 100, i) for i in range(1000, 10_001, 1000)), (160_132, 5.5)]
