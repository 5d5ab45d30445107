"""python -m consistency_models.data.encode: what is written, resuming, and folders that cannot be used."""

import hashlib
import json
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from data.conftest import write
from PIL import Image

from consistency_models.data import encode as module
from consistency_models.data.encode import encode, main
from consistency_models.data.encoders import Encoders
from consistency_models.data.latents import latents
from consistency_models.errors import DataError, Exit

pytest.importorskip("transformers")
CAPTIONS = ["a red cat", "a dog", "a red cat", "a bird", "a dog"]


@pytest.fixture
def images(tmp_path, pixels):
    """Five images with three distinct captions; one image is not square."""
    files = {f"{k}.png": pixels(k, 16) for k in range(5)}
    files |= {f"{k}.txt": f" {text}\n".encode() for k, text in enumerate(CAPTIONS)}
    files["3.png"] = Image.fromarray(np.tile(pixels(3, 32), (1, 2, 1)))  # 32 high, 64 wide
    return write(tmp_path / "images", files)


def pipeline_of(folder):
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = StableDiffusionXLPipeline if (folder / "text_encoder_2").exists() else StableDiffusionPipeline
    return kind.from_pretrained(folder, local_files_only=True)


def loaded(path):
    return torch.from_numpy(np.load(path)).float()


def test_what_the_pipeline_itself_encodes(sd_folder, images, tmp_path):
    out = tmp_path / "out"
    assert encode(sd_folder, images, out, size=16, batch_size=2) == {
        "images": 5,
        "captions": 3,
        "skipped": 0,
        "truncated": 0,
    }
    pipeline = pipeline_of(sd_folder)
    pixels = torch.from_numpy(np.array(Image.open(images / "1.png"))).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
        text = pipeline.encode_prompt(CAPTIONS, "cpu", 1, True)
    mean, std = loaded(out / "latents.npy")[1].chunk(2)
    torch.testing.assert_close(mean, posterior.mean[0], rtol=1e-3, atol=1e-3)  # float16
    torch.testing.assert_close(std, posterior.std[0], rtol=1e-3, atol=1e-3)
    index = np.load(out / "caption.npy")
    assert index.tolist() == [0, 1, 0, 2, 1]
    torch.testing.assert_close(loaded(out / "text.npy")[index], text[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loaded(out / "empty.npy"), text[1][0])
    about = json.loads((out / "meta.json").read_text())
    assert (about["scale"], about["shift"], about["size"]) == (0.18215, 0.0, 16)
    sums = dict(line.split("  ")[::-1] for line in (out / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {path.name for path in out.iterdir()} - {"SHA256SUMS"}
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())
    assert not (tmp_path / "out.part").exists()
    assert not (tmp_path / "out.part.lock").exists()


def test_sdxl_has_pooled_text_sizes_and_zeros(sdxl_folder, images, tmp_path):
    out = tmp_path / "out"
    encode(sdxl_folder, images, out, size=16)
    pipeline = pipeline_of(sdxl_folder)
    with torch.no_grad():
        text, empty, pooled, empty_pooled = pipeline.encode_prompt(CAPTIONS[:2], device="cpu")
    torch.testing.assert_close(loaded(out / "text.npy")[:2], text, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loaded(out / "pooled.npy")[:2], pooled, rtol=1e-3, atol=1e-3)
    assert (loaded(out / "empty.npy") == empty[0]).all()
    assert (loaded(out / "empty_pooled.npy") == empty_pooled[0]).all()
    assert np.load(out / "sizes.npy")[[0, 3]].tolist() == [[16, 16, 0, 0, 16, 16], [32, 64, 0, 8, 16, 16]]
    prompt = latents(out).prompts
    assert prompt.text.shape == (5, 77, 64)
    assert prompt.pooled.shape == (5, 24)
    assert prompt.sizes[3].tolist() == [32, 64, 0, 8, 16, 16]


def test_pictures_of_latents(sd_folder, images, tmp_path):
    out = tmp_path / "out"
    encode(sd_folder, images, out, size=16)
    pipeline, x = pipeline_of(sd_folder), latents(out, sample=False).images[:2]
    with torch.no_grad():
        expected = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(latents(out, decoder=str(sd_folder)).pictures(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(latents(out, decoder=str(sd_folder / "vae")).pictures(x), expected, rtol=0, atol=1e-5)
    colours = latents(out).pictures(x)
    assert colours.shape == (2, 3, 8, 8)
    assert colours.abs().max() <= 1
    with pytest.raises(DataError, match="holds nothing"):
        latents(out, decoder=str(tmp_path / "nowhere"))


def test_without_transformers(sd_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"transformers is not installed: pip install .*\[latent\]"):
        Encoders(sd_folder)


def test_captions_of_metadata(sd_folder, images, tmp_path):
    for path in images.glob("*.txt"):
        path.unlink()
    lines = [json.dumps({"file_name": f"{k}.png", "text": text}) for k, text in enumerate(CAPTIONS)]
    (images / "metadata.jsonl").write_text("\n".join(lines))
    encode(sd_folder, images, tmp_path / "out", size=16)
    assert json.loads((tmp_path / "out/captions.json").read_text()) == ["a red cat", "a dog", "a bird"]
    assert np.load(tmp_path / "out/caption.npy").tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("outer", ["", "outer/"])
def test_captions_of_metadata_beside_a_folder_of_images(outer, sd_folder, images, tmp_path):
    root = write(tmp_path / "photos", {f"{outer}images/{k}.png": (images / f"{k}.png").read_bytes() for k in range(5)})
    lines = [json.dumps({"file_name": f"images/{k}.png", "text": text}) for k, text in enumerate(CAPTIONS)]
    (root / outer / "metadata.jsonl").write_text("\n".join(lines))
    assert encode(sd_folder, root, tmp_path / "out", size=16)["captions"] == 3
    (root / outer / "metadata.jsonl").write_text("\n".join(lines[:4]))
    with pytest.raises(
        DataError, match=r'1 of 5 .*: add a line {"file_name": "images/4.png", .*} to metadata.jsonl, or'
    ):
        encode(sd_folder, root, tmp_path / "less", size=16)
    encode(sd_folder / "vae", root, tmp_path / "plain", size=16)  # one folder is no class
    assert latents(tmp_path / "plain").labels is None


def test_metadata_of_several_sets_is_refused(sd_folder, images, tmp_path):
    root = write(tmp_path / "photos", {f"{name}/0.png": (images / "0.png").read_bytes() for name in ("train", "test")})
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "train/0.png", "text": "a dog"}))
    with pytest.raises(DataError, match=r"metadata.jsonl lies beside train and test; each set needs one of its own"):
        encode(sd_folder, root, tmp_path / "out", size=16)


def test_a_vae_alone_encodes_classes(sd_folder, folder, tmp_path):
    encode(sd_folder / "vae", folder, tmp_path / "out")
    data = latents(tmp_path / "out")
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert (data.class_names, data.num_classes, data.shape) == (("cat", "dog"), 2, (4, 4, 4))


class Killed(BaseException):
    """A process that ends between two calls of the VAE."""


def test_continues_after_a_kill(sd_folder, images, tmp_path, monkeypatch):
    encode(sd_folder, images, tmp_path / "whole", size=16, batch_size=2)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    calls, right = [], Encoders.images

    def counted(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise Killed
        return right(self, pixels)

    monkeypatch.setattr(Encoders, "images", counted)
    with pytest.raises(Killed):
        encode(sd_folder, images, tmp_path / "out", size=16, batch_size=2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="not complete: run the encoding again"):
        latents(tmp_path / "out")
    with pytest.raises(DataError, match="an encoding that is not complete"):
        latents(tmp_path / "out.part")
    with open(tmp_path / "out.part/latents.npy", "ab") as file:
        file.write(b"half a row")
    encode(sd_folder, images, tmp_path / "out", size=16, batch_size=2)
    assert calls == [2, 2, 1, 1]  # the last image only
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_what_is_encoded_stays_if_the_sums_are_interrupted(sd_folder, images, tmp_path, monkeypatch):
    right = Encoders.images

    def then_interrupted(self, pixels):
        monkeypatch.setattr(module.hashlib, "file_digest", Mock(side_effect=Killed))
        return right(self, pixels)

    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Encoders, "images", then_interrupted)
    with pytest.raises(Killed):
        encode(sd_folder, images, tmp_path / "out", size=16)
    monkeypatch.undo()
    monkeypatch.setattr(Encoders, "images", None)
    encode(sd_folder, images, tmp_path / "out", size=16)
    monkeypatch.undo()
    encode(sd_folder, images, tmp_path / "whole", size=16)
    assert len({path.name for path in (tmp_path / "whole").iterdir()}) > 2
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_begins_again_for_other_images(sd_folder, images, tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(module._Encoding, "_complete", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        encode(sd_folder, images, tmp_path / "out", size=16)
    monkeypatch.undo()
    write(images, {"0.png": pixels(9, 16)})
    encode(sd_folder, images, tmp_path / "out", size=16)
    encode(sd_folder, images, tmp_path / "fresh", size=16)
    assert (tmp_path / "out/latents.npy").read_bytes() == (tmp_path / "fresh/latents.npy").read_bytes()


def test_skipped_images_are_counted(sd_folder, images, tmp_path):
    (images / "1.png").write_bytes(b"no image")
    (images / "2.txt").unlink()
    with pytest.raises(DataError, match=r"1 of 5 images have no caption, first 2.png"):
        encode(sd_folder, images, tmp_path / "out", size=16)
    counts = encode(sd_folder, images, tmp_path / "out", size=16, bad_images="skip")
    assert counts == {"images": 3, "captions": 3, "skipped": 2, "truncated": 0}
    assert len(np.load(tmp_path / "out/latents.npy")) == 3
    assert np.load(tmp_path / "out/caption.npy").tolist() == [0, 2, 1]


def test_a_latent_that_is_not_finite(sd_folder, images, tmp_path, monkeypatch):
    right = Encoders.images
    monkeypatch.setattr(Encoders, "images", lambda self, pixels: right(self, pixels) * float("nan"))
    with pytest.raises(DataError, match=r"0.png: the latent is not finite"):
        encode(sd_folder, images, tmp_path / "out", size=16)
    assert not (tmp_path / "out").exists()


WRONG = {
    "no vae": ("vae", "has no vae"),
    "pickles": ("vae/diffusion_pytorch_model.safetensors", "a pickle, which can run code"),
    "truncated": ("text_encoder/model.safetensors", "truncated or damaged"),
    "class": ("model_index.json", "names the class StableDiffusion3Pipeline"),
    "part": ("model_index.json", "names vae Evil"),
}


@pytest.mark.parametrize("case", WRONG)
def test_pipelines_that_cannot_be_used(case, sd_folder, images, tmp_path):
    path, message = WRONG[case]
    wrong = tmp_path / "wrong"
    shutil.copytree(sd_folder, wrong)
    index = json.loads((wrong / "model_index.json").read_text())
    if case == "no vae":
        shutil.rmtree(wrong / path)
    elif case == "pickles":
        (wrong / path).rename(wrong / "vae/diffusion_pytorch_model.bin")
    elif case == "truncated":
        (wrong / path).write_bytes((wrong / path).read_bytes()[:-100])
    else:
        index |= {"_class_name": "StableDiffusion3Pipeline"} if case == "class" else {"vae": ["evil_module", "Evil"]}
        (wrong / path).write_text(json.dumps(index))
    with pytest.raises(DataError, match=message):
        encode(wrong, images, tmp_path / "out", size=16)
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_used(sd_folder, images, tmp_path, pixels):
    with pytest.raises(DataError, match=r"3.png cannot be used \(is 64x32; only square"):
        encode(sd_folder, images, tmp_path / "out")
    write(images, {"3.png": pixels(3, 32)})
    with pytest.raises(DataError, match=r"3.png is 32x32, but the first image is 16x16; .*give --size"):
        encode(sd_folder, images, tmp_path / "out")
    with pytest.raises(DataError, match=r"--size 15 must be a multiple of 2, the factor of the VAE: take 14"):
        encode(sd_folder, images, tmp_path / "out", size=15)
    (images / "metadata.jsonl").write_text('{"file_name": "0.png"}')
    with pytest.raises(DataError, match=r"metadata.jsonl, line 1: KeyError"):
        encode(sd_folder, images, tmp_path / "out", size=16)
    for path in images.glob("*.[tj]*"):
        path.unlink()
    with pytest.raises(DataError, match="neither captions nor classes"):
        encode(sd_folder, images, tmp_path / "out", size=16)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="exists and is not empty"):
        encode(sd_folder, images, images)


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--device", "gpu", "--device=gpu is not allowed: "),
        ("--device", "cuda:99", "--device=cuda:99 is not allowed: "),
        ("--batch-size", "0", "--batch-size 0 must be 1 or more"),
    ],
)
def test_flags_that_are_refused(flag, value, told, sd_folder, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["encode", str(sd_folder), str(images), str(tmp_path / "out"), flag, value])
    assert main() == Exit.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")


def test_the_command(sd_folder, images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["encode", str(sd_folder), str(images), str(out), "--size", "16"])
    assert main() == Exit.DONE
    assert "5 images, 3 captions, 0 skipped, 0 truncated" in capsys.readouterr().out
    assert main() == Exit.BAD_INPUT
    assert "error: " in capsys.readouterr().err
