"""data=latents on the command line: what is refused before anything is read."""

import pytest

LINE = "data=latents data.root={root} data.image_size=32"


@pytest.mark.parametrize(
    ("line", "key", "part"),
    [
        ("data.flip=true", "data.flip", "a flipped latent is not the latent of the flipped image"),
        ("augment=flip data.flip=false", "augment.flip", "is not mirrored"),
        ("augment=edm network=ddpmpp network.augment_dim=9", "augment", "augmentations are defined for images"),
        ("data.guidance_w=[15,5]", "data.guidance_w", "low <= high"),
        ("data.guidance_w=[5]", "data.guidance_w", "low <= high"),
        ("data.caption_dropout=1.5", "data.caption_dropout", "a number >= 0 and <= 1"),
        ("data.source.scale=0", "data.source.scale", "a number > 0"),
        ("features=classifier", "features", "latents are no images"),
        ("data.conditional=true", "data.conditional", "false with data.num_classes=null"),
    ],
)
def test_refused(line, key, part, refused):
    told = [one for one in refused(f"{LINE} {line}") if one.key == key]
    assert told
    assert any(part in str(one) for one in told)


def test_captions_are_of_latents_only(refused):
    (told,) = refused("data=digits +data.guidance_w=[5,15]")
    assert (told.key, told.reason) == ("data.guidance_w", "the images have no captions")


@pytest.mark.parametrize("line", ["", "network=edm2 data.conditional=true data.num_classes=1000", "model=ect"])
def test_passes(line, passes):
    passes(f"{LINE} {line}")
