"""data=latents and adapters on the command line: what is refused before anything is read."""

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


LORA = (
    "model=lcm network=diffusers_lora model.target_ema=null model.w_embedding=null data=latents data.root={root} "
    "data.image_size=64 teacher=diffusers teacher.path={pipeline}"
)


@pytest.mark.parametrize(
    ("line", "key", "part"),
    [
        ("teacher=none init=random", "teacher", "adapters share the weights of the teacher"),
        ("model.w_embedding=256", "network.time_cond_proj_dim", "Add model.w_embedding=null"),
        ("network.two_times=true", "network.two_times", "the teacher, which has no such input"),
        ("trainer=fsdp", "trainer.strategy", "weights that are shared with the teacher cannot be divided"),
        ("network.lora.r=0", "network.lora.r", "a whole number >= 1"),
        ("network.lora.alpha=0", "network.lora.alpha", "a number > 0"),
        ("network.lora.dropout=1", "network.lora.dropout", "< 1"),
        ("network.lora.targets=[]", "network.lora.targets", "1 or more"),
        ("network.lora.targets=[to_q,to_q]", "network.lora.targets", "different"),
        ("network.lora.rank=4", "network.lora.rank", "r"),
    ],
)
def test_adapters_refused(line, key, part, refused):
    told = [one for one in refused(f"{LORA} {line}") if one.key == key]
    assert told
    assert any(part in str(one) for one in told)


def test_adapters_pass(passes):
    passes(LORA)


def test_captions_are_dropped_as_classes_are(passes, refused):
    line = "model=meanflow network=diffusers init=pretrained init.path={pipeline} model.label_dropout=0.1"
    passes(f"{line} data=latents data.root={{root}} data.image_size=64 model.omega=2.0")
    (told,) = refused(f"{line} data=digits data.conditional=false")
    assert (told.key, told.reason) == ("model.label_dropout", "the network takes no classes")
