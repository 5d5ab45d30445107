"""Averages of the weights and learning rates, against official code."""

import pytest
import torch
from parity.golden import cases, expect, load

from consistency_models.optim import ema, learning_rates


@pytest.mark.parametrize(("path", "decay"), cases(r"ema_after_(.+)", r"ema_target_before", r"ema_source"))
def test_update(path, decay):
    case = load(path)
    target = case["ema_target_before"].clone()
    ema.ema_update([target], [case["ema_source"]], float(decay))
    expect(target, case, f"ema_after_{decay}", rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("path", "tag"), cases(r"(.+)/beta", r".+/cur_nimg"))
def test_half_life(path, tag):
    case = load(path)
    setting = case["meta"][tag]
    batch, images = setting["batch"], case[f"{tag}/cur_nimg"].tolist()
    profile = ema.HalfLife(1000 * setting["halflife_kimg"], setting.get("rampup_ratio"))
    beta = [profile.decays(n / batch, batch)[0] for n in images]
    # The official floor under the half-life, 1e-8 images, is the 0 of the first step.
    expect(torch.tensor(beta, dtype=torch.float64), case, f"{tag}/beta", rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(("path", "tag"), cases(r"(.+)/lr", r".+/cur_nimg"))
def test_linear_warm_up(path, tag):
    case = load(path)
    setting = case["meta"][tag]
    law, batch = learning_rates.Linear(warmup_images=1000 * setting.get("lr_rampup_kimg", 0)), setting["batch"]
    rate = [setting["lr"] * law(n / batch, 10**9, batch) for n in case[f"{tag}/cur_nimg"].tolist()]
    expect(torch.tensor(rate, dtype=torch.float64), case, f"{tag}/lr", rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", cases(r"lr/value", r"lr/cur_nimg"))
def test_inverse_square_root(path):
    case = load(path)
    setting = case["meta"]["lr"]
    law = learning_rates.InverseSqrt(setting["ref_batches"], 1e6 * (setting.get("rampup_Mimg") or 0))
    rate = [
        setting["ref_lr"] * law(n / setting["batch"], 10**9, setting["batch"]) for n in case["lr/cur_nimg"].tolist()
    ]
    expect(torch.tensor(rate, dtype=torch.float64), case, "lr/value", rtol=1e-12, atol=0)
