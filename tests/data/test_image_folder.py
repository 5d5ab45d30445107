"""Folders and zips of images: what is read, what is kept for the next run, what is refused."""

import contextlib
import io
import json
import os
import shutil
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from data.conftest import encoded, write
from PIL import Image

from consistency_models.data import DataError, Decoder, image_folder


def zipped(folder):
    return shutil.make_archive(str(folder), "zip", folder)


def expected(pixels, *numbers, **options):
    return torch.from_numpy(np.stack([pixels(k, **options) for k in numbers])).permute(0, 3, 1, 2)


# What is read


@pytest.mark.parametrize("kind", [str, zipped], ids=["folder", "zip"])
def test_classes_are_folders_in_sorted_order(folder, pixels, kind):
    images = image_folder(kind(folder))
    assert torch.equal(images.images, expected(pixels, 0, 1, 2, 3, 4))
    assert images.labels.tolist() == [0, 0, 1, 1, 1]
    assert (images.num_classes, images.shape, images.n, images.test) == (2, (3, 8, 8), 5, None)


@pytest.mark.parametrize("kind", [str, zipped], ids=["folder", "zip"])
def test_without_folders_there_are_no_classes(tmp_path, pixels, kind):
    root = write(tmp_path / "flat", {"b.png": pixels(1), "a.png": pixels(0), "readme.txt": b"-", ".hidden.png": b"-"})
    images = image_folder(kind(root))
    assert torch.equal(images.images, expected(pixels, 0, 1))
    assert images.labels is None
    assert images.num_classes == 0


@pytest.mark.parametrize("kind", [str, zipped], ids=["folder", "zip"])
def test_train_and_test_are_two_sets_with_one_list_of_classes(tmp_path, pixels, kind):
    files = {"train/a/0.png": pixels(0), "train/b/1.png": pixels(1), "test/b/2.png": pixels(2)}
    images = image_folder(kind(write(tmp_path / "split", files)))
    assert images.labels.tolist() == [0, 1]
    assert images.test.labels.tolist() == [1]
    assert (images.num_classes, images.test.num_classes) == (2, 2)
    assert torch.equal(images.test.images, expected(pixels, 2))


@pytest.mark.parametrize("kind", [str, zipped], ids=["folder", "zip"])
def test_edms_dataset_json_gives_the_classes(tmp_path, pixels, kind):
    files = {f"00000/img{k}.png": pixels(k) for k in range(3)}
    labels = {"labels": [["00000/img2.png", 0], ["00000/img0.png", 4], ["00000/img1.png", 0]]}
    root = write(tmp_path / "edm", {**files, "dataset.json": json.dumps(labels).encode()})
    images = image_folder(kind(root))
    assert images.labels.tolist() == [4, 0, 0]
    assert images.num_classes == 5
    (root / "dataset.json").write_text('{"labels": null}')
    assert image_folder(kind(root)).labels is None


@pytest.mark.parametrize("resize", ["lanczos", "box", "bicubic"])
def test_image_size_scales_the_short_side_and_takes_the_centre(tmp_path, pixels, resize):
    wide = np.concatenate([pixels(k, 16) for k in range(3)], 1)
    root = write(
        tmp_path / "images", {"high.png": wide.transpose(1, 0, 2), "small.png": pixels(3, 4), "wide.png": wide}
    )
    high, small, got = image_folder(root, image_size=8, resize=resize).images
    method = Image.Resampling[resize.upper()]
    whole = np.asarray(Image.fromarray(wide).resize((24, 8), method), int).transpose(2, 0, 1)
    assert np.abs(got.numpy() - whole[:, :, 8:16]).max() <= 1
    turned = np.asarray(Image.fromarray(wide.transpose(1, 0, 2)).resize((8, 24), method), int).transpose(2, 0, 1)
    assert np.abs(high.numpy() - turned[:, 8:16]).max() <= 1
    assert np.array_equal(small.permute(1, 2, 0), Image.fromarray(pixels(3, 4)).resize((8, 8), method))


def test_scaling_down_averages(tmp_path):
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    root = write(tmp_path / "stripes", {"0.png": stripes})
    images = image_folder(root, image_size=8, resize="box").images
    assert (images.float() - 127.5).abs().max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour", "rgb", "grey"),
    [
        ("RGB", (255, 0, 0), (255, 0, 0), 76),
        ("L", 90, (90, 90, 90), 90),
        ("1", 1, (255, 255, 255), 255),
        ("LA", (0, 0), (255, 255, 255), 255),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0), 76),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255), 255),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204), 204),
    ],
)
def test_every_mode_has_a_rule(mode, colour, rgb, grey):
    content = encoded(Image.new(mode, (4, 4), colour))
    assert Decoder()(content)[:, 0, 0].tolist() == list(rgb)
    assert Decoder(channels=1)(content)[:, 0, 0].tolist() == [grey]


def test_palettes_are_looked_up_and_may_be_transparent():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert Decoder()(encoded(image))[:, 0, 0].tolist() == [10, 20, 30]
    image.info["transparency"] = 1
    assert Decoder()(encoded(image))[:, 0, 0].tolist() == [255, 255, 255]


def test_photographs_are_turned_upright(tmp_path):
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) * 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top of the scene is at the right
    image.save(tmp_path / "turned.png", exif=exif)
    upright = Decoder(channels=1)((tmp_path / "turned.png").read_bytes())[0]
    assert np.array_equal(upright, np.rot90(np.asarray(image), -1))


# What is kept for the next run


def test_the_second_run_maps_what_the_first_decoded(folder, tmp_path, monkeypatch):
    first = image_folder(folder, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(Decoder, "__call__", lambda *_: pytest.fail("decoded again"))
    second = image_folder(folder, cache_dir=tmp_path / "cache")
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert first.digest == second.digest == image_folder_digest(folder, monkeypatch)


def image_folder_digest(folder, monkeypatch):
    monkeypatch.undo()
    return image_folder(folder).digest  # in memory


def test_what_is_kept_is_a_plain_array(folder, tmp_path):
    images = image_folder(folder, cache_dir=tmp_path / "cache")
    (array,) = (tmp_path / "cache").glob("*/images.npy")
    assert np.array_equal(np.load(array), images.images.numpy())
    images.images[:] = 0  # copy-on-write: nobody harms it
    assert np.load(array).any()
    assert not list((tmp_path / "cache").glob("incomplete_*"))


@pytest.mark.parametrize("change", ["content", "time", "new file", "image_size", "channels", "resize"])
def test_a_change_is_decoded_anew(folder, tmp_path, pixels, change):
    def load(**options):
        return image_folder(folder, cache_dir=tmp_path / "cache", **options)

    before, options = load(image_size=8), {"image_size": 8}
    if change == "content":
        write(folder, {"cat/0.png": pixels(9, 16)})
    elif change == "time":
        os.utime(folder / "cat/0.png", ns=(time.time_ns(), 0))
    elif change == "new file":
        write(folder, {"cat/7.png": pixels(7)})
    else:
        options |= {"image_size": {"image_size": 4}, "channels": {"channels": 1}, "resize": {"resize": "box"}}[change]
    after = load(**options)
    assert len(list((tmp_path / "cache").glob("*/images.npy"))) == 2
    assert (after.digest == before.digest) == (change in ("time", "resize"))


@pytest.mark.parametrize("damage", ["images.npy", "kept.npy"])
def test_a_damaged_cache_is_made_again(folder, tmp_path, damage):
    before = image_folder(folder, cache_dir=tmp_path / "cache").digest
    (path,) = (tmp_path / "cache").glob(f"*/{damage}")
    path.write_bytes(path.read_bytes()[:100])
    assert image_folder(folder, cache_dir=tmp_path / "cache").digest == before
    assert image_folder(folder, cache_dir=tmp_path / "cache").digest == before


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="kept in memory only"):
        images = image_folder(folder, cache_dir=tmp_path / "file" / "cache")
    assert images.digest == image_folder(folder).digest


def test_a_full_disk_is_done_without(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("consistency_models.data.decoded_cache._write_header", full)
    with pytest.warns(UserWarning, match="No space left"):
        images = image_folder(folder, cache_dir=tmp_path / "cache")
    assert images.n == 5
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


# What is refused


def refused(root, message, **options):
    with pytest.raises(DataError, match=message):
        image_folder(root, **options)


def test_a_missing_folder(tmp_path):
    refused(tmp_path / "none", "none: found nothing, need a folder, zip, tar, parquet file or LMDB")


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "file.zip").write_text("no zip")
    refused(tmp_path / "file.zip", "a file that is no zip")


def test_a_damaged_zip(folder):
    path = Path(zipped(folder))
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03"))
    refused(path, "the zip is damaged")


def test_a_folder_without_images(tmp_path):
    refused(tmp_path, "holds no image")
    np.savez(tmp_path / "arrays.npz", images=np.zeros((1, 8, 8, 3), np.uint8))
    refused(tmp_path / "arrays.npz", "add data=npz")


@pytest.mark.parametrize("kind", [str, zipped], ids=["folder", "zip"])
def test_an_empty_class(folder, kind):
    write(folder, {"bird/": b""})
    refused(kind(folder), "bird holds no image; a class needs at least 1")


def test_an_image_beside_class_folders(folder, pixels):
    refused(write(folder, {"stray.png": pixels(0)}), "stray.png lies beside class folders")


def test_a_test_class_that_training_does_not_have(tmp_path, pixels):
    files = {"train/a/0.png": pixels(0), "test/z/1.png": pixels(1)}
    refused(write(tmp_path / "split", files), "test has the class z, which the training set does not have")


def test_images_that_are_not_square(tmp_path, pixels):
    root = write(tmp_path / "wide", {"0.png": pixels(0)[:4]})
    refused(root, "0.png is 8x4; only square images are allowed: set data.image_size")


def test_images_of_two_sizes(folder, pixels):
    write(folder, {"dog/5.png": pixels(5, 16)})
    refused(folder, "dog/5.png is 16x16, but cat/0.png is 8x8; all images must have one size: set data.image_size")


def test_images_of_another_range_or_size_can_be_left_out(folder, pixels):
    write(folder, {"cat/deep.tiff": encoded(Image.fromarray(np.full((8, 8), 2, np.float32)), "TIFF")})
    write(folder, {"dog/wide.png": pixels(5)[:, :4], "dog/small.png": pixels(6, size=4)})
    with pytest.warns(UserWarning, match="3 of 8 images cannot be used .*: cat/deep.tiff, dog/small.png, dog/wide.png"):
        images = image_folder(folder, bad_images="skip")
    assert torch.equal(images.images, expected(pixels, 0, 1, 2, 3, 4))
    assert images.labels.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "dtype", "value_range", "values", "grey"),
    [
        ("PNG", np.uint16, None, [0, 257, 32768, 65535], [0, 1, 128, 255]),
        ("TIFF", np.uint16, None, [0, 257, 32768, 65535], [0, 1, 128, 255]),
        ("TIFF", ">u2", (0, 4095), [0, 16, 2048, 4095], [0, 1, 128, 255]),
        ("TIFF", np.int32, (-1000, 1000), [-1000, 200, 500, 1000], [0, 153, 191, 255]),
        ("TIFF", np.float32, None, [0, 0.25, 0.5, 1], [0, 64, 128, 255]),
        ("TIFF", np.float32, (-1, 1), [-1, 0, 0.5, 1], [0, 128, 191, 255]),
    ],
)
def test_deep_grey_is_read_with_a_range(kind, dtype, value_range, values, grey):
    content = encoded(Image.fromarray(np.array(values, dtype).reshape(2, 2)), kind)
    assert Decoder(channels=1, value_range=value_range)(content).flatten().tolist() == grey
    assert Decoder(value_range=value_range)(content)[1].flatten().tolist() == grey


@pytest.mark.parametrize(
    ("values", "value_range", "found"),
    [
        ([0, 0, 0, 1.5], None, "from 0 to 1.5"),
        ([0, 0, 0, np.nan], None, "nan"),
        ([0, 0, 0, 1], (0.5, 1), "from 0 to 1"),
    ],
)
def test_deep_grey_outside_of_the_range_is_refused(tmp_path, values, value_range, found):
    image = Image.fromarray(np.array(values, np.float32).reshape(2, 2))
    root = write(tmp_path / "deep", {"0.tif": encoded(image, "TIFF")})
    refused(root, rf"0.tif has values .*{found}.*set data.source.value_range", value_range=value_range)


def test_a_photograph_of_sixteen_bits_is_turned_and_scaled():
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369).save(buffer, "PNG", exif=exif)
    assert Decoder(2, channels=1, resize="box")(buffer.getvalue())[0].tolist() == [[213, 179], [77, 43]]


def bomb_png(side):
    """A PNG that unpacks to side x side black pixels."""

    def chunk(kind, content):
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path):
    root = write(tmp_path / "bombs", {"0.png": bomb_png(7072)})
    message = r"0.png has 7072x7072 = 50,013,184 pixels; 50,000,000 are allowed: .*data.source.max_pixels=50013184"
    refused(root, message, image_size=8)
    assert image_folder(root, 8, max_pixels=50_013_184).shape == (3, 8, 8)
    refused(root, "10,000 are allowed", image_size=8, max_pixels=10_000)


def test_a_header_of_more_pixels_than_pillow_opens(folder, pixels):
    good = encoded(pixels(1))
    header = good[12:16] + (100_000).to_bytes(4, "big") * 2 + good[24:29]
    write(folder, {"cat/1.png": good[:12] + header + zlib.crc32(header).to_bytes(4, "big") + good[33:]})
    refused(folder, "cat/1.png has too many pixels; 50,000,000 are allowed: .*data.source.max_pixels")


BAD = {"cut off": lambda good: good[:-30], "no image": lambda good: b"text", "empty": lambda good: b""}
REASON = {"cut off": ".*", "no image": "the content is no image", "empty": "the file is empty"}


@pytest.mark.parametrize("kind", [str, zipped], ids=["folder", "zip"])
@pytest.mark.parametrize("damage", BAD)
def test_images_that_cannot_be_decoded(folder, pixels, kind, damage):
    write(folder, {"cat/1.png": BAD[damage](encoded(pixels(1)))})
    root = kind(folder)
    refused(root, rf"cat/1.png cannot be decoded \({REASON[damage]}\).*set data.source.bad_images=skip")
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 5 images cannot be used and are left out: cat/1.png"):
            images = image_folder(root, bad_images="skip", cache_dir=folder.parent / "cache")
        assert torch.equal(images.images, expected(pixels, 0, 2, 3, 4))
        assert images.labels.tolist() == [0, 1, 1, 1]


def test_a_member_of_a_zip_with_a_wrong_checksum(tmp_path, pixels):
    """A bitmap has no checksum of its own: the zip's tells that a pixel is another one."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(3):
            archive.writestr(f"{k}.bmp", encoded(pixels(k), "BMP"))
    content = bytearray(path.read_bytes())
    content[content.index(encoded(pixels(1), "BMP")) + 100] ^= 1
    path.write_bytes(content)
    refused(path, "1.bmp cannot be decoded .*CRC-32")
    with pytest.warns(UserWarning, match="1 of 3 images cannot be used and are left out: 1.bmp"):
        assert torch.equal(image_folder(path, bad_images="skip").images, expected(pixels, 0, 2))


@pytest.mark.parametrize("cache", ["cache", None], ids=["kept", "in memory"])
def test_files_that_vanish_later_are_not_missed(folder, tmp_path, cache):
    """In mid-epoch nothing is read from them: all images are decoded before the first step."""
    images = image_folder(folder, cache_dir=cache and tmp_path / cache).images
    before = images.clone()
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert torch.equal(images, before)


def test_a_broken_link_is_a_bad_image(folder):
    (folder / "cat/2.png").symlink_to("nowhere.png")
    refused(folder, "cat/2.png cannot be decoded")


def test_skipping_must_leave_something_of_every_class(folder):
    write(folder, {"cat/0.png": b"", "cat/1.png": b""})
    with pytest.warns(UserWarning, match="2 of 5"):
        refused(folder, "no image of class cat can be decoded", bad_images="skip")
    write(folder, {"dog/2.png": b"", "dog/3.png": b"", "dog/4.png": b""})
    refused(folder, "none of 5 images can be decoded", bad_images="skip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not of the form"),
        (b"[]", "is not of the form"),
        (b'{"labels": [["a.png"]]}', "is not of the form"),
        (b'{"labels": []}', "gives a.png the class None"),
        (b'{"labels": [["a.png", -1]]}', "gives a.png the class -1"),
        (b'{"labels": [["a.png", 0.5]]}', "gives a.png the class 0.5"),
        (b'{"labels": [["a.png", true]]}', "gives a.png the class True"),
        (b'{"labels": [["a.png", 0], ["a.png", 1]]}', "gives a.png 2 classes"),
    ],
)
def test_a_dataset_json_without_meaning(tmp_path, pixels, content, message):
    refused(write(tmp_path / "edm", {"a.png": pixels(0), "dataset.json": content}), message)


def test_a_zip_that_would_fill_the_memory(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb.png", "w") as member:
        for _ in range(257):
            member.write(bytes(1 << 20))
    refused(path, "bomb.png would unpack to 269,484,032 bytes")


def test_a_name_that_leads_out_of_a_zip_writes_nothing(tmp_path, pixels):
    path = tmp_path / "inner" / "sly.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("/tmp/../x.png", encoded(pixels(0)))
        archive.writestr("../outside.png", encoded(pixels(1)))
    before = sorted(tmp_path.rglob("*"))
    with contextlib.suppress(DataError):
        image_folder(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_images": "ignore"}, "bad_images=ignore is not .* error, skip"),
        ({"image_size": 0}, "image_size=0 is not .* >= 1"),
        ({"channels": 2}, "channels=2 is not .* 1, 3"),
        ({"resize": "best"}, "resize=best is not .*lanczos"),
    ],
)
def test_arguments_out_of_range(folder, options, message):
    with pytest.raises(ValueError, match=message):
        image_folder(folder, **options)
