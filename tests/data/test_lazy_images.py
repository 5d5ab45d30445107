"""Training from encoded images: the batches of decoded ones, in any process; errors name the file."""

import pickle
import shutil

import pytest
import torch
from data.conftest import encoded, write
from data.test_module import same, train
from PIL import Image

from consistency_models.data import DataError, DataModule, Decoder, image_folder
from consistency_models.data.files import Files


@pytest.fixture
def many(tmp_path, pixels):
    return write(tmp_path / "many", {f"{'ab'[k % 2]}/{k}.png": pixels(k, 9) for k in range(40)})


def lazy(root, **options):
    return image_folder(root, image_size=8, storage="encoded", **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_resume_are_those_of_decoded_images(many, tmp_path, workers):
    undisturbed = train(tmp_path, source=image_folder(many, image_size=8), conditional=True, flip=True)
    same(undisturbed, train(tmp_path, source=lazy(many), conditional=True, flip=True, workers=workers))
    options = {"source": lazy(many), "conditional": True, "flip": True, "workers": workers}
    first = train(tmp_path, 2, **options)
    same(undisturbed, first + train(tmp_path, 5, resume=tmp_path / "last.ckpt", **options))


@pytest.mark.parametrize("kind", [str, lambda path: shutil.make_archive(str(path), "zip", path)], ids=["folder", "zip"])
def test_all_images_come_from_workers_in_order(many, kind):
    images = lazy(kind(many)).images
    expected = image_folder(many, image_size=8).images
    assert torch.equal(torch.cat(list(images.split(3))), expected)
    assert torch.equal(images[5:9], expected[5:9])
    assert torch.equal(images[torch.tensor([7, 0, 7])], expected[[7, 0, 7]])
    assert (images.shape, images.nbytes, len(images)) == (expected.shape, expected.nbytes, 40)


def test_a_reader_of_a_zip_can_be_sent_to_another_process(many):
    files = Files.open(shutil.make_archive(str(many), "zip", many)).below("a")
    again = pickle.loads(pickle.dumps(files.read))
    assert again("0.png") == files.read("0.png") == (many / "a/0.png").read_bytes()


def test_an_error_in_a_worker_names_the_file(many, tmp_path):
    (many / "a/22.png").write_bytes(b"text")
    with pytest.raises(DataError, match=rf"^{many}/a/22.png cannot be decoded .*set data.source.bad_images=skip$"):
        train(tmp_path, source=lazy(many), workers=2)


def test_an_image_of_another_size_is_named(many, pixels):
    write(many, {"b/1.png": pixels(1, 8)})
    images = image_folder(many, storage="encoded").images
    with pytest.raises(DataError, match=r"b/1.png is 8x8, but a/0.png is 9x9; all images must have one size"):
        list(images.split(40))


def test_the_digest_is_of_files_and_decoder(many, pixels):
    first = lazy(many)
    assert first.digest == lazy(many).digest
    assert first.digest != image_folder(many, image_size=7, storage="encoded").digest
    assert first.sigma_data == image_folder(many, image_size=8).sigma_data
    write(many, {"a/0.png": pixels(50, 10)})
    assert lazy(many).digest != first.digest


def test_what_encoded_images_cannot_do_is_refused(many):
    with pytest.raises(DataError, match=r"bad_images=skip needs data.source.storage=decoded"):
        lazy(many, bad_images="skip")
    with pytest.raises(DataError, match=r"data.resident is true, but image_folder is not a set of decoded"):
        DataModule(lazy(many), 4, resident=True)
    with pytest.warns(UserWarning, match="the training process decodes the images of image_folder: set data.workers"):
        DataModule(lazy(many), 4).setup("fit")


def test_a_draft_of_a_photograph_is_near_to_it():
    ramp = Image.linear_gradient("L").resize((640, 640))
    content = encoded(Image.merge("RGB", [ramp, ramp.rotate(90), ramp]), "JPEG")
    full, draft = (Decoder(32, draft=draft)(content).astype(int) for draft in (False, True))
    assert full.shape == draft.shape == (3, 32, 32)
    assert 0 < abs(full - draft).max() < 8
    assert (Decoder(160, draft=True)(content) == Decoder(160)(content)).all()  # four times 160 is the whole image
