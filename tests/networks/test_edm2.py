"""EDM2's options against its equations, written out block by block."""

import math

import numpy as np
import pytest
import torch
from jobs import TINY, run
from scipy.signal import convolve2d
from torch.testing import assert_close

from consistency_models.errors import Exit
from consistency_models.networks.edm2 import EDM2
from consistency_models.networks.mp_layers import MPConv
from consistency_models.storage.loading import load

SIZES = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "head_channels": 8}
OPTIONS = {"res_balance": 0.6, "attn_balance": 0.15, "concat_balance": 0.7, "label_balance": 0.2, "clip_act": 0.8}
OPTIONS |= {"channel_mult_noise": 3, "channel_mult_emb": 1, "resample_filter": [1, 3, 3, 1]}
DEFAULTS = {"res_balance": 0.3, "attn_balance": 0.3, "concat_balance": 0.5, "label_balance": 0.5, "clip_act": 256}
DEFAULTS |= {"resample_filter": [1, 1]}


def network(**options):
    torch.manual_seed(0)
    made = EDM2(8, 3, num_classes=4, **SIZES, **options).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p))  # the gains start at 0
    return made


def silu(x):
    return x / (1 + np.exp(-x)) / 0.596


def mix(a, b, t):
    return ((1 - t) * a + t * b) / np.hypot(1 - t, t)


def by_hand(made, x, noise_label, label, **options):
    """The network's output for one image, with its weights, in NumPy."""
    options = DEFAULTS | options
    w = {name: value.numpy() for name, value in made.unet.state_dict().items()}

    def weight(name):
        v = w[f"{name}.weight"]
        flat = v.reshape(len(v), -1)
        norm = 1e-4 + np.linalg.norm(flat, axis=1) / math.sqrt(flat.shape[1])
        return (flat / norm[:, None] / math.sqrt(flat.shape[1])).reshape(v.shape)

    def conv(name, x, gain=1.0):
        kernels = gain * weight(name)
        if kernels.ndim == 2:
            return kernels @ x
        flipped = kernels[:, :, ::-1, ::-1]
        return np.stack([sum(convolve2d(c, k, mode="same") for c, k in zip(x, row)) for row in flipped])

    def resampled(x, up):
        f = np.array(options["resample_filter"], dtype=float)
        f = np.outer(f, f) / f.sum() ** 2
        lead = (len(f) - 1) // 2
        if up:
            wide = np.zeros((len(x), 2 * x.shape[1], 2 * x.shape[2]))
            wide[:, ::2, ::2] = x
            return np.stack([convolve2d(c, 4 * f)[lead : lead + c.shape[0], lead : lead + c.shape[1]] for c in wide])
        return np.stack([convolve2d(np.pad(c, lead), f, mode="valid")[::2, ::2] for c in x])

    def attention(name, x):
        channels, height, width = x.shape
        qkv = conv(f"{name}.attn_qkv", x).reshape(channels // 8, 8, 3, height * width)
        qkv = qkv / (1e-4 + np.sqrt((qkv**2).mean(1, keepdims=True)))
        heads = []
        for q, k, v in qkv.transpose(0, 2, 1, 3):
            scores = np.exp(q.T @ k / math.sqrt(8))
            heads.append(v @ (scores / scores.sum(1, keepdims=True)).T)
        return conv(f"{name}.attn_proj", np.concatenate(heads).reshape(x.shape))

    def block(name, x, emb, encoder):
        if name.endswith(("up", "down")):
            x = resampled(x, name.endswith("up"))
        skip = conv(f"{name}.conv_skip", x) if f"{name}.conv_skip.weight" in w else x
        if encoder:
            x = skip = skip / (1e-4 + np.sqrt((skip**2).mean(0)))
        scale = conv(f"{name}.emb_linear", emb, w[f"{name}.emb_gain"]) + 1
        y = conv(f"{name}.conv_res1", silu(conv(f"{name}.conv_res0", silu(x)) * scale[:, None, None]))
        x = mix(skip, y, options["res_balance"])
        if f"{name}.attn_qkv.weight" in w:
            x = mix(x, attention(name, x), options["attn_balance"])
        bound = options["clip_act"]
        return x if bound is None else np.clip(x, -bound, bound)

    emb = conv("emb_noise", math.sqrt(2) * np.cos(noise_label * w["emb_fourier.freqs"] + w["emb_fourier.phases"]))
    emb = silu(mix(emb, conv("emb_label", label * math.sqrt(len(label))), options["label_balance"]))
    x, skips = np.concatenate([x, np.ones_like(x[:1])]), []
    for name in made.unet.enc:
        x = conv(f"enc.{name}", x) if name.endswith("conv") else block(f"enc.{name}", x, emb, True)
        skips.append(x)
    for name in made.unet.dec:
        if "block" in name:
            t, a, b = options["concat_balance"], x, skips.pop()
            c = math.sqrt((len(a) + len(b)) / ((1 - t) ** 2 + t**2))
            x = np.concatenate([a * c * (1 - t) / math.sqrt(len(a)), b * c * t / math.sqrt(len(b))])
        x = block(f"dec.{name}", x, emb, False)
    return conv("out_conv", x, w["out_gain"])


CASES = [{}, OPTIONS, {"clip_act": None}, *({name: value} for name, value in OPTIONS.items())]


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(options) or "defaults")
@torch.no_grad()
def test_options(options):
    made = network(**options)
    x, c, labels = torch.randn(2, 3, 8, 8).double(), torch.tensor([-1.3, 0.4]).double(), torch.eye(4)[[2, 0]].double()
    expected = np.stack([by_hand(made, *row, **options) for row in zip(x.numpy(), c.numpy(), labels.numpy())])
    assert_close(made(x, c, labels).numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_each_option_changes_the_output_of_the_same_weights():
    x, c, labels = torch.randn(2, 3, 8, 8).double(), torch.tensor([-1.3, 0.4]).double(), torch.eye(4)[[2, 0]].double()
    plain = network()
    for name, value in OPTIONS.items():
        if "mult" not in name:
            other = network(**{name: value})
            assert (other(x, c, labels) - plain(x, c, labels)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"res_balance": 1.1}, "res_balance=1.1 is not allowed"),
        ({"label_balance": float("nan")}, "label_balance=nan is not allowed"),
        ({"resample_filter": [1, 2, 1]}, "resample_filter must have an even length"),
    ],
)
def test_refuses_what_has_no_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        EDM2(8, 3, **SIZES, **options)


def test_stored_weights_are_normalised_once_a_step(tmp_path):
    """Before its two passes with gradient: FACM's second pass must not change what the first one saved."""
    small = ("network.model_channels=16", "network.channel_mult=[1]", "network.num_blocks=1", "data.batch_size=8")
    facm = (
        "model=facm",
        "network=edm2",
        "data=digits",
        "network.attn_resolutions=[]",
        "optimizer.lr=1e-9",
        "trainer.max_steps=2",
    )
    assert run(tmp_path, *TINY, *facm, *small) == Exit.DONE
    for layer in load(tmp_path, weights="model").model.modules():
        if isinstance(layer, MPConv):
            rows = layer.weight.flatten(1)
            assert_close(rows.norm(dim=1), torch.full((len(rows),), rows.shape[1] ** 0.5), rtol=1e-3, atol=0)
