"""Commands with U-Nets of diffusers and levels of a table: what is refused, each mistake once."""

import importlib.util

import pytest

LCM = "model=lcm data=latents data.root={root} data.image_size=8 teacher=diffusers"
CD = "model=cd network=diffusers schedule=table preconditioning=lcm solver=euler sampler=lcm"


def test_without_the_extra(refused, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else find(name))
    (told,) = refused(f"{LCM} teacher.path={{pipeline}}")
    assert (told.key, told.reason) == ("network", "the package diffusers is not installed")
    assert 'pip install -e ".[latent]"' in str(told)


def test_without_peft(refused, passes, monkeypatch):
    """The extra export brings diffusers without peft."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    passes(f"{LCM} teacher.path={{pipeline}}")
    (told,) = refused(f"{LCM} teacher.path={{pipeline}} network=diffusers_lora model.w_embedding=null")
    assert (told.key, told.reason) == ("network", "the package peft is not installed")
    assert 'pip install -e ".[latent]"' in str(told)


@pytest.mark.parametrize(
    ("line", "key", "words"),
    [
        (f"{LCM} teacher.path={{empty}}", "teacher.path", "there is no model_index.json"),
        (f"{LCM} teacher.path={{root}}x", "teacher.path", "model_index.json"),
        (f"{LCM}", "teacher.path", "it must be given"),
        ("model=ict network=diffusers", "network.config", "neither teacher.path nor init.path"),
        (f"{LCM} teacher.path={{pipeline}} model.guidance_w=null", "data.guidance_w", "w of each caption an input"),
        (f"{LCM} teacher.path={{pipeline}} model.guidance_w=[15,5]", "model.guidance_w", "low <= high"),
        (f"{LCM} teacher.path={{pipeline}} evaluation.steps=[1,64]", "evaluation.steps", "at most 50"),
        (f"{LCM} teacher.path={{pipeline}} teacher.guidance=8", "teacher.guidance", "model.w_embedding=null, or set"),
        (
            f"{LCM} teacher.path={{pipeline}} {CD} data.guidance_w=[5,15] teacher.guidance=8",
            "teacher.guidance",
            "Add data.guidance_w=null, or set",
        ),
        (f"{LCM} teacher.path={{pipeline}} preconditioning=edm", "preconditioning", "lcm, table"),
        (
            f"{LCM} teacher.path={{pipeline}} preconditioning.prediction_type=flow",
            "preconditioning.prediction_type",
            "v_p",
        ),
        (f"{LCM} teacher.path={{pipeline}} schedule.lowest=last", "schedule.lowest", "first, zero"),
        ("model=ict sampler=ddim", "preconditioning", "sampler=ddim takes its levels from a table"),
    ],
)
def test_refused(line, key, words, refused):
    (told,) = refused(line)
    assert told.key == key
    assert words in str(told)
