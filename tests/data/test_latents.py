"""data=latents: posteriors from npy files and from EDM2's zip, drawn in each step, with classes or captions."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from consistency_models.data import DataModule, Slot
from consistency_models.data.latents import latents
from consistency_models.data.mapped_arrays import ZippedArrays
from consistency_models.errors import ConfigError, DataError
from consistency_models.random import BatchRandom

MEAN = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
STD = torch.rand(6, 4, 3, 3, generator=torch.Generator().manual_seed(1)) + 0.5
POSTERIOR = torch.cat([MEAN, STD], 1).numpy()


@pytest.fixture
def root(tmp_path):
    """Latents of two classes, in numpy files."""
    np.save(tmp_path / "latents.npy", POSTERIOR)
    np.save(tmp_path / "labels.npy", np.array([0, 1, 1, 0, 1, 0]))
    return tmp_path


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def edm2(tmp_path):
    """`edm2(**options of the zip)`: the same latents in EDM2's layout."""

    def make(compression=zipfile.ZIP_STORED, posterior=POSTERIOR):
        path = tmp_path / "edm2.zip"
        names = [f"0000{k // 4}/img-mean-std-{k:08d}.npy" for k in range(len(posterior))]
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, array in zip(names, posterior):
                archive.writestr(name, npy(array))
            labels = [[name, k % 2] for k, name in enumerate(names)]
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
        return path

    return make


def slot(indices, step=0, first=0, total=16):
    rows = BatchRandom(0, step, total, slice(first, first + len(indices)))
    return Slot(rows, torch.tensor(indices))


def test_draws_from_the_posterior(root):
    data = latents(root, scale=0.5, shift=[1.0, 0.0, -1.0, 2.0])
    batch = data[slot([4, 1])]
    noise = BatchRandom(0, 0, 16, slice(0, 2)).randn("latent", 4, 3, 3)
    shift = torch.tensor([1.0, 0.0, -1.0, 2.0]).view(4, 1, 1)
    torch.testing.assert_close(batch.images, 0.5 * (MEAN[[4, 1]] + STD[[4, 1]] * noise - shift))
    assert batch.labels.tolist() == [1, 1]
    assert (data.n, data.shape, data.num_classes, data.test) == (6, (4, 3, 3), 2, None)


def test_is_a_function_of_seed_step_and_row(root):
    data = latents(root, scale=1.0, shift=0.0)
    whole = data[slot([0, 1, 2, 3])].images
    torch.testing.assert_close(data[slot([2, 3], first=2)].images, whole[2:], rtol=0, atol=0)
    assert not torch.equal(data[slot([0, 1, 2, 3], step=1)].images, whole)
    assert not torch.equal(data[slot([0, 0])].images[0], data[slot([0, 0])].images[1])


def test_means_only(root):
    data = latents(root, scale=2.0, shift=0.0, sample=False)
    torch.testing.assert_close(data[slot([3, 0])].images, 2 * MEAN[[3, 0]])
    np.save(root / "latents.npy", POSTERIOR[:, :4])
    torch.testing.assert_close(latents(root, scale=2.0, shift=0.0, sample=False).images, 2 * MEAN)
    with pytest.raises(DataError, match=r"has means only: set data.source.sample=false"):
        latents(root, scale=2.0, shift=0.0)


def test_sigma_data_is_measured(root):
    data = latents(root, scale=0.5, shift=0.0)
    drawn = torch.stack([data[slot([0, 1, 2, 3, 4, 5], step=k)].images for k in range(400)])
    assert data.sigma_data == pytest.approx(drawn.std().item(), rel=0.01)
    assert latents(root, scale=0.5, shift=0.0, sample=False).sigma_data == pytest.approx(
        0.5 * MEAN.std(correction=0).item(), rel=1e-5
    )


@pytest.fixture
def edm2_folder(edm2, tmp_path):
    """The files of the zip in a folder."""
    with zipfile.ZipFile(edm2()) as archive:
        archive.extractall(tmp_path / "edm2")
    return tmp_path / "edm2"


@pytest.mark.parametrize("layout", ["zip", "folder"])
def test_reads_the_zip_and_the_folder_of_edm2(layout, root, edm2, edm2_folder):
    path = edm2() if layout == "zip" else edm2_folder
    theirs, ours = latents(path, scale=0.5, shift=0.0), latents(root, scale=0.5, shift=0.0)
    torch.testing.assert_close(theirs[slot([5, 2])].images, ours[slot([5, 2])].images, rtol=0, atol=0)
    assert theirs[slot([5, 2])].labels.tolist() == [1, 0]
    assert (theirs.n, theirs.shape, theirs.num_classes) == (6, (4, 3, 3), 2)


def test_folders_that_cannot_be_used(edm2_folder):
    path = edm2_folder / "00001/img-mean-std-00000004.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(DataError, match=r"00000004.npy has \d+ bytes, and .* has \d+; all arrays must have one shape"):
        latents(edm2_folder, scale=1.0, shift=0.0)
    path.write_bytes(npy(POSTERIOR[4].reshape(8, 1, 9)))
    with pytest.raises(DataError, match=r"00000004.npy has the shape \(8, 1, 9\)"):
        latents(edm2_folder, scale=1.0, shift=0.0).images  # noqa: B018
    for each in edm2_folder.rglob("*.npy"):
        each.unlink()
    with pytest.raises(DataError, match="has no npy files"):
        latents(edm2_folder, scale=1.0, shift=0.0)


def test_a_worker_process_maps_the_files_again(root, edm2):
    for data in (latents(root, scale=1.0, shift=0.0), latents(edm2(), scale=1.0, shift=0.0)):
        content = pickle.dumps(data.posterior)
        assert len(content) < 1000  # no latents
        np.testing.assert_array_equal(pickle.loads(content)(np.array([3, 1])), POSTERIOR[[3, 1]])


def test_zips_that_cannot_be_used(edm2, tmp_path):
    with pytest.raises(DataError, match="is compressed; allowed: npy files"):
        latents(edm2(compression=zipfile.ZIP_DEFLATED), scale=1.0, shift=0.0)
    with pytest.raises(DataError, match="others differ"):
        latents(edm2(posterior=[POSTERIOR[0], POSTERIOR[1][:, :2]]), scale=1.0, shift=0.0)
    with pytest.raises(DataError, match="is object"):
        latents(edm2(posterior=[np.array([{}], object)]), scale=1.0, shift=0.0)
    mixed = edm2(posterior=[POSTERIOR[0], POSTERIOR[1].reshape(8, 1, 9)])
    with pytest.raises(DataError, match="different headers"):
        ZippedArrays(mixed)(np.array([1]))
    (tmp_path / "no.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is no zip of npy files"):
        latents(tmp_path / "no.zip", scale=1.0, shift=0.0)


WRONG = {
    r"data.source.scale is null, but .* has no meta.json": {"scale": None},
    r"data.source.shift has 3 numbers; 1 or 4 are needed": {"shift": [0.0, 0.0, 0.0]},
    r"has 8 channels; data.channels=3 needs 6": {"channels": 3},
    r"has 2 classes, but data.num_classes is 1": {"num_classes": 1},
}


@pytest.mark.parametrize("message", WRONG)
def test_arguments_that_contradict_the_files(message, root):
    with pytest.raises(DataError, match=message):
        latents(root, **{"scale": 1.0, "shift": 0.0} | WRONG[message])


def test_names_of_a_part_of_the_classes_are_left_out(root):
    (root / "meta.json").write_text(json.dumps({"scale": 1, "shift": 0, "classes": 2, "class_names": ["cat", "dog"]}))
    assert latents(root).class_names == latents(root, num_classes=2).class_names == ("cat", "dog")
    more = latents(root, num_classes=3)
    assert (more.num_classes, more.class_names) == (3, ())


def test_values_out_of_range(root):
    with pytest.raises(ConfigError, match="scale=-1"):
        latents(root, scale=-1.0, shift=0.0)


def test_files_that_cannot_be_used(root):
    np.save(root / "labels.npy", np.array([0, 1]))
    with pytest.raises(DataError, match="labels must be 6 numbers"):
        latents(root, scale=1.0, shift=0.0)
    content = (root / "latents.npy").read_bytes()
    (root / "latents.npy").write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"latents.npy cannot be read"):
        latents(root, scale=1.0, shift=0.0)
    np.save(root / "latents.npy", np.array([{}] * 4, object), allow_pickle=True)
    with pytest.raises(DataError, match=r"latents.npy cannot be read .*Python objects"):
        latents(root, scale=1.0, shift=0.0)
    (root / "latents.npy").unlink()
    with pytest.raises(DataError, match="found nothing of the kind"):
        latents(root, scale=1.0, shift=0.0)


def test_the_digest_tells_sets_apart(root):
    first = latents(root, scale=1.0, shift=0.0).digest
    assert latents(root, scale=1.0, shift=0.0).digest == first
    assert latents(root, scale=2.0, shift=0.0).digest != first
    np.save(root / "labels.npy", np.array([1, 1, 1, 0, 1, 0]))
    assert latents(root, scale=1.0, shift=0.0).digest != first


def test_a_latent_is_not_flipped_and_not_held_on_a_gpu(root):
    data = latents(root, scale=1.0, shift=0.0)
    with pytest.raises(DataError, match="a flipped latent is not the latent of the flipped image"):
        DataModule(data, batch_size=2, flip=True)
    with pytest.raises(DataError, match=r"data\.resident"):
        DataModule(data, batch_size=2, resident=True)
    module = DataModule(data, batch_size=2, channels=4, image_size=3, num_classes=2, conditional=True)
    batch = module.on_after_batch_transfer(data[slot([1, 2])], 0)
    torch.testing.assert_close(batch.images, data[slot([1, 2])].images, rtol=0, atol=0)
    assert batch.labels.tolist() == [1, 1]


def test_captions_are_drawn_for_each_row(root):
    np.save(root / "caption.npy", np.array([0, 1, 2, 0, 1, 2]))
    np.save(root / "text.npy", np.arange(12, dtype=np.float16).reshape(3, 2, 2))
    np.save(root / "empty.npy", np.full((2, 2), -1, np.float16))
    (root / "labels.npy").unlink()
    data = latents(root, scale=1.0, shift=0.0)
    assert (data.labels, data.num_classes, len(data.prompts)) == (None, 0, 6)
    module = DataModule(data, batch_size=16, guidance_w=[5.0, 15.0], caption_dropout=0.5)
    rows = [0, 1, 2, 3, 4, 5, 0, 1]
    batch = module.on_after_batch_transfer(data[slot(rows, step=3)], 0)
    whole, half = batch.labels, module.on_after_batch_transfer(data[slot(rows[4:], step=3, first=4)], 0).labels
    assert torch.equal(half.text, whole.text[4:])
    assert torch.equal(half.guidance, whole.guidance[4:])
    assert ((whole.guidance >= 5) & (whole.guidance < 15)).all()
    assert len(whole.guidance.unique()) == 8
    dropped = (whole.text == -1).all((1, 2))
    assert torch.equal(dropped, BatchRandom(0, 3, 16, slice(0, 8)).rand("caption") < 0.5)
    assert torch.equal(whole.text[~dropped], data.captions(np.array(rows)).text[~dropped])


def test_captions_are_needed_for_guidance(root):
    with pytest.raises(DataError, match=r"has no captions: leave data\.guidance_w out"):
        DataModule(latents(root, scale=1.0, shift=0.0), batch_size=2, guidance_w=[3.0, 15.0])
    with pytest.raises(ConfigError, match=r"two numbers with low <= high"):
        DataModule(latents(root, scale=1.0, shift=0.0), batch_size=2, guidance_w=[15.0, 3.0])
