"""Files that are none, links that lead back, members of zips that lie: nothing hangs or fills the memory."""

import os
import struct
import zipfile

import pytest
from data.conftest import encoded, write
from PIL import Image

from consistency_models.data import DataError, image_folder
from consistency_models.data.files import Files, content_of


def test_pipes_and_devices_are_left_out(folder, caplog):
    caplog.set_level("INFO")
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "zero.png").symlink_to("/dev/zero")
    assert image_folder(folder).n == 5
    assert "2 left out (no regular file), first cat/pipe.png" in caplog.text


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises((DataError, IsADirectoryError)):
            content_of(path)


def test_a_file_that_became_a_pipe_is_a_bad_image(folder):
    files = Files.open(folder)
    (folder / "cat/0.png").unlink()
    os.mkfifo(folder / "cat/0.png")
    with pytest.raises(DataError, match="is no regular file"):
        files.read("cat/0.png")


@pytest.mark.parametrize("target", [".", "..", "cat"], ids=["itself", "its parent", "a neighbour"])
def test_links_that_lead_back_are_followed_once(folder, caplog, target):
    caplog.set_level("INFO")
    place = folder / "cat" if target == ".." else folder
    (place / "again").symlink_to(target, target_is_directory=True)
    images = image_folder(folder)
    assert (images.n, images.class_names) == (5, ("cat", "dog"))
    assert "1 left out (a link to a folder that is read already)" in caplog.text


def test_folders_that_link_to_one_another_end(tmp_path, pixels):
    for k in range(8):
        write(tmp_path / "root", {f"c{k}/{k}.png": pixels(k)})
    for k in range(8):
        for other in range(8):
            (tmp_path / "root" / f"c{k}" / f"to{other}").symlink_to(f"../c{other}", target_is_directory=True)
    assert image_folder(tmp_path / "root").labels.tolist() == list(range(8))


def test_links_to_other_folders_and_files_are_followed(folder, tmp_path, pixels):
    write(tmp_path / "elsewhere", {"bird/0.png": pixels(7), "1.png": pixels(8)})
    (folder / "bird").symlink_to(tmp_path / "elsewhere" / "bird", target_is_directory=True)
    (folder / "cat" / "9.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    images = image_folder(folder)
    assert images.class_names == ("bird", "cat", "dog")
    assert images.labels.bincount().tolist() == [1, 3, 3]


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"images cannot be read \(Permission denied\)"):
        image_folder(folder)


def test_a_file_larger_than_any_image_is_not_read(folder):
    with open(folder / "cat" / "huge.png", "wb") as file:
        file.truncate(300 << 20)  # a sparse file
    with pytest.raises(DataError, match=r"cat/huge.png has 314,572,800 bytes; an image file may have"):
        image_folder(folder)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_unpack_by_blocks_of_any_size_are_refused(tmp_path, pixels, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("0.png", encoded(pixels(0)))
    with pytest.raises(DataError, match=r"0.png is compressed by (bzip2|lzma); deflate and no compression are allowed"):
        image_folder(tmp_path / "a.zip")


def test_a_member_that_lies_about_its_size_is_a_bad_image(tmp_path):
    content = encoded(Image.new("RGB", (64, 64)), "BMP")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.bmp", content)
        size = archive.getinfo("0.bmp").file_size
    raw = (tmp_path / "a.zip").read_bytes().replace(struct.pack("<L", size), struct.pack("<L", 100))
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(DataError, match=r"0.bmp cannot be decoded"):
        image_folder(tmp_path / "a.zip")


def test_an_encrypted_member_is_a_bad_image(tmp_path, pixels):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0.png", encoded(pixels(0)))
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(DataError, match=r"0.png cannot be decoded .*(encrypted|password)"):
        image_folder(tmp_path / "a.zip")
