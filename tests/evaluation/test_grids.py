"""Pictures: every pixel where it belongs, enlarged without smoothing."""

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from consistency_models.evaluation.features import to_bytes
from consistency_models.evaluation.grids import load_grid, save_comparison, save_grid, save_scatter

RED, GREEN, BLUE = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def plain(colour, n=1, size=8):
    return colour.view(1, 3, 1, 1).repeat(n, 1, size, size)


def where(path, colour):
    """BatchRandom and columns of the picture's pixels that have this colour."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    return np.nonzero((picture == to_bytes(colour).numpy()).all(-1))


def test_a_pixel_becomes_a_square_and_images_fill_row_by_row(tmp_path):
    images = torch.zeros(7, 3, 8, 8)
    images[4, :, 2, 5] = RED  # second row, second column
    save_grid(tmp_path / "new" / "grid.png", images, columns=3, scale=6)
    y, x = where(tmp_path / "new" / "grid.png", RED)
    assert len(y) == 36
    assert (np.ptp(y), np.ptp(x)) == (5, 5)
    grey_y, grey_x = where(tmp_path / "new" / "grid.png", torch.zeros(3))
    cell = 8 * 6 + 4
    assert (y.min() - grey_y.min(), x.min() - grey_x.min()) == (cell + 2 * 6, cell + 5 * 6)


def test_grey_images_and_uint8_are_taken_and_what_is_outside_is_clamped(tmp_path):
    images = torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1).repeat(1, 1, 8, 8)
    save_grid(tmp_path / "float.png", images, title="two images", row_labels=["row"])
    save_grid(tmp_path / "bytes.png", (images > 0).to(torch.uint8) * 255, title="two images", row_labels=["row"])
    assert (tmp_path / "float.png").read_bytes() == (tmp_path / "bytes.png").read_bytes()


@pytest.mark.parametrize(("size", "shown"), [(8, 64), (28, 56), (32, 64), (64, 64), (100, 100)])
def test_images_are_of_a_comfortable_size(tmp_path, size, shown):
    save_grid(tmp_path / "grid.png", plain(RED, size=size))
    y, x = where(tmp_path / "grid.png", RED)
    assert (np.ptp(y) + 1, np.ptp(x) + 1) == (shown, shown)


def test_a_title_longer_than_the_grid_is_not_cut(tmp_path):
    save_grid(tmp_path / "short.png", plain(RED), title="short")
    save_grid(tmp_path / "long.png", plain(RED), title="a title that is much longer than one image is wide")
    assert Image.open(tmp_path / "long.png").width > Image.open(tmp_path / "short.png").width


def test_the_same_noise_stands_one_above_the_other(tmp_path):
    path = tmp_path / "comparison.png"
    save_comparison(path, {"1 step": plain(RED, 4), "2 steps": plain(BLUE, 4), "35 calls": plain(GREEN, 4)}, columns=2)
    rows = {name: np.unique(where(path, colour)[0]) for name, colour in (("r", RED), ("b", BLUE), ("g", GREEN))}
    columns = [np.unique(where(path, colour)[1]) for colour in (RED, BLUE, GREEN)]
    order = sorted((y, name) for name, ys in rows.items() for y in ys)
    names = [name for _, name in order]
    assert [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name] == ["r", "b", "g"] * 2
    assert all(np.array_equal(columns[0], other) for other in columns[1:])


def test_a_picture_is_read_back(tmp_path):
    """Each image of each caption, in its order, and nothing of a picture without a layout or with a false one."""
    path = tmp_path / "comparison.png"
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_comparison(path, {"1 step": images, "2 steps": -images}, columns=2, title="a title", names=list("abcde"))
    for n in (3, 5, 9):
        read = load_grid(path, n)
        assert list(read) == ["1 step", "2 steps"]
        for caption, expected in (("1 step", images), ("2 steps", -images)):
            pixels = np.stack([np.asarray(image)[4::8, 4::8] for image in read[caption]])
            assert (pixels == to_bytes(expected[:n]).permute(0, 2, 3, 1).numpy()).all()
            assert len(pixels) == min(n, 5)
    assert {image.size for image in read["1 step"]} == {(64, 64)}


@pytest.mark.parametrize(
    "layout",
    [
        None,
        "[",
        "{}",
        '{"size": [64, 64], "rows": [["x", 0, 0, 1]]}',  # larger than the picture
        '{"size": [4, 4], "rows": [["x", -1, 0, 1]]}',
        '{"size": [4, 4], "rows": [["x", 0, 0, 9e99]]}',
        '{"size": [4, "4"], "rows": [["x", 0, 0, 1]]}',
        '{"size": [8, 8], "rows": [["x", 0, 0, 1], ["y", 0, 0, 1]]}',  # larger together than the picture
        '{"size": [0, 4], "rows": [["x", 0, 0, 1]]}',
    ],
)
def test_a_false_layout_gives_no_images(layout, tmp_path):
    chunk = PngImagePlugin.PngInfo()
    if layout is not None:
        chunk.add_text("layout", layout)
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png", pnginfo=chunk)
    assert load_grid(tmp_path / "grid.png", 10) == {}


def test_scatter_draws_all_clouds(tmp_path):
    cloud = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    save_scatter(tmp_path / "one.png", {"data": cloud})
    save_scatter(
        tmp_path / "three.png", {"data": cloud, "1 step": cloud[..., None, None], "16-D": cloud.repeat(1, 8)}, "t"
    )
    one, three = (Image.open(tmp_path / name).convert("RGB") for name in ("one.png", "three.png"))
    assert three.width == 3 * one.width
    for part in range(3):
        picture = np.asarray(three.crop((part * one.width, 0, (part + 1) * one.width, three.height)), dtype=int)
        assert (np.ptp(picture, axis=2) > 60).sum() > 1000  # coloured points, not only grey axes


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        (torch.zeros(3, 8, 8), {}, "images must be of shape"),
        (torch.zeros(0, 1, 8, 8), {}, "images must be of shape"),
        (torch.zeros(2, 2, 8, 8), {}, "images must be of shape"),
        (torch.zeros(2, 1, 8, 8), {"columns": 0}, "columns and scale must be at least 1"),
        (torch.zeros(2, 1, 8, 8), {"scale": 0}, "columns and scale must be at least 1"),
        (torch.zeros(2, 1, 8, 8), {"row_labels": ["a", "b"]}, "one for each of the 1 rows; got 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, images, more, message):
    with pytest.raises(ValueError, match=message):
        save_grid(tmp_path / "grid.png", images, **more)
    assert not (tmp_path / "grid.png").exists()


def test_comparison_needs_equal_sets_and_scatter_needs_a_plane(tmp_path):
    with pytest.raises(ValueError, match="all of one shape"):
        save_comparison(tmp_path / "a.png", {"1 step": plain(RED, 2), "2 steps": plain(RED, 3)})
    with pytest.raises(ValueError, match="got none"):
        save_comparison(tmp_path / "a.png", {})
    for clouds in ({}, {"data": torch.zeros(5, 1)}):
        with pytest.raises(ValueError, match="at least one cloud"):
            save_scatter(tmp_path / "a.png", clouds)


def test_names_stand_above_a_row_where_they_change(tmp_path):
    def height(names, columns=2):
        save_grid(tmp_path / "grid.png", plain(RED, 4), columns=columns, scale=8, names=names)
        return Image.open(tmp_path / "grid.png").height

    without = height(None)
    once, twice = height(["cat", "bär"] * 2), height(["cat", "dog", "cow", "a name that is longer than an image"])
    assert without < once < twice
    assert twice - once == once - without


def test_names_are_cut_to_the_width_of_an_image(tmp_path):
    for name, names in (("short", ["cat"]), ("long", ["x" * 500])):
        save_comparison(tmp_path / f"{name}.png", {"one": plain(RED), "two": plain(BLUE)}, names=names)
    short, long = (Image.open(tmp_path / f"{name}.png") for name in ("short", "long"))
    assert short.size == long.size
    columns = np.nonzero((np.asarray(long)[:, :, 0] != 255).any(0))[0]
    assert columns.max() == where(tmp_path / "long.png", RED)[1].max()
