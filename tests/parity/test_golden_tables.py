"""Tables, parameterisations, timesteps and trajectories of diffusers' schedulers, in this suite's coordinates."""

from functools import partial

import pytest
import torch
from parity.golden import cases, expect, load
from parity.tables import EXACT, Recorded, TextNet, offset, prompts, said, scalings, table_of
from torch.testing import assert_close

from consistency_models.noise import Preconditioned, alphas_cumprod, karras_grid
from consistency_models.noise.discrete import BETAS
from consistency_models.sampling import DDIM, LCM, solvers
from consistency_models.teachers import Guided


def rows(values):
    return values.view(-1, 1, 1, 1)


OF_LCM = ("w", "guidance_embedding")
"""Keys that only files of LCMScheduler have."""
LCM_TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""The defaults of LCMScheduler, where a file leaves them out."""


def refuse_clipping(args):
    """Clipped trajectories are not solutions of the ODE, which our samplers solve."""
    if args.get("clip_sample") or args.get("thresholding"):
        pytest.skip("trajectories with clipped images are not offered")


@pytest.mark.parametrize(("path", "i"), cases(r"table_(\d+)_config"))
def test_table_is_equal_to_the_last_bit(path, i):
    case = load(path)
    config = said(case, f"table_{i}_config")
    table = alphas_cumprod(**table_of(config), rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False))
    expect(table, case, f"table_{i}_alphas_cumprod", rtol=0, atol=0)
    if f"table_{i}_sigmas" in case:
        assert_close(scalings(config).sigmas, case[f"table_{i}_sigmas"].double(), rtol=1e-6, atol=0)
    if f"table_{i}_betas" in case and not {"rescale_betas_zero_snr", "trained_betas"} & {
        k for k in config if config[k]
    }:
        schedule, start, end, *T = table_of(config).values()
        expect(BETAS[schedule](start, end, *T or [1000]), case, f"table_{i}_betas", rtol=0, atol=0)


@pytest.mark.parametrize(("path", "i", "prediction"), cases(r"(\d+)_clean_(epsilon|v_prediction|sample)"))
def test_denoised_images(path, i, prediction):
    case = load(path)
    table = scalings(said(case, f"{i}_config"), prediction)
    k, sigma = case["timesteps"], table.sigmas[case["timesteps"]]
    expect(table.table, case, f"{i}_alphas_cumprod", rtol=0, atol=0)
    assert_close(table.timestep(sigma.float()), k.float(), rtol=0, atol=0)  # levels of a batch are float32
    x = case["x"] + rows(sigma) * case["noise"]
    expect(rows(table.c_in(sigma)) * x, case, f"{i}_noisy", **EXACT)
    velocity = (case["noise"] - rows(sigma) * case["x"]) * rows(table.c_in(sigma))
    expect(velocity, case, f"{i}_velocity", **EXACT)
    denoised = rows(table.c_skip(sigma)) * x + rows(table.c_out(sigma)) * case["output"]
    expected = case[f"{i}_clean_{prediction}"]
    # Denoised images at the top of a table are as large as σ_max: the tolerance is relative to the terms.
    scale = (rows(table.c_skip(sigma)) * x).abs().amax((1, 2, 3), keepdim=True).clamp(min=1)
    assert_close(denoised / scale, expected / scale, **EXACT)


@pytest.mark.parametrize(("path", "i"), cases(r"timesteps_(\d+)_args", without=OF_LCM))
def test_timesteps_of_ddim(path, i):
    case = load(path)
    args = said(case, f"timesteps_{i}_args")
    table, spacing = scalings(args), args.get("timestep_spacing", "leading")
    if spacing == "linspace":
        with pytest.raises(ValueError, match="leading, trailing"):
            DDIM(args["steps"], table, spacing)
        return
    sampler = DDIM(args["steps"], table, spacing, offset(args))
    assert list(sampler.timesteps) == case[f"timesteps_{i}"].tolist()
    assert sampler.sigmas == tuple(table.sigmas[case[f"timesteps_{i}"]].tolist())


@pytest.mark.parametrize(("path", "i"), cases(r"euler_(\d+)_args", r"euler_\d+_init_noise_sigma"))
def test_timestep_of_levels_off_the_table(path, i):
    case = load(path)
    args, sigmas = said(case, f"euler_{i}_args"), case[f"euler_{i}_sigmas"][:-1].double()
    if args.get("final_sigmas_type", "zero") != "zero" or args.get("interpolation_type", "linear") != "linear":
        pytest.skip("other ends and interpolations of the table are not offered")
    table, karras, spacing = scalings(args), args.get("use_karras_sigmas", False), args.get("timestep_spacing")
    # EulerDiscreteScheduler starts at σ_1·n with other spacings, as DDIMScheduler does not
    start = (1 + sigmas[0] ** 2) ** 0.5 if spacing == "leading" else sigmas[0]
    assert_close(start, case[f"euler_{i}_init_noise_sigma"].double(), rtol=1e-6, atol=0)
    on_table = spacing in ("leading", "trailing") and not karras
    if karras:
        grid = karras_grid(args["steps"], sigmas[-1].item(), sigmas[0].item())
        assert_close(grid.flip(0), sigmas, rtol=2e-6, atol=0)
    if karras or on_table:
        assert_close(table.timestep(sigmas), case[f"euler_{i}_timesteps"].double(), rtol=1e-5, atol=1e-3)
    else:  # levels between those of the table by linear interpolation: below the logarithm's
        below = case[f"euler_{i}_timesteps"].floor().long().clamp(max=len(table.sigmas) - 2)
        assert ((table.sigmas[below] <= sigmas * (1 + 1e-6)) & (sigmas <= table.sigmas[below + 1] * (1 + 1e-6))).all()
    if on_table:
        ours = DDIM(args["steps"], table, spacing, offset(args))
        assert_close(torch.tensor(ours.sigmas, dtype=torch.float64), sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("path", "i"), cases(r"step_(\d+)_args"))
def test_a_step_of_ddim_is_a_step_of_euler(path, i):
    case = load(path)
    args = said(case, f"step_{i}_args")
    if args.get("thresholding"):
        pytest.skip("dynamic thresholding is not offered")
    table, k = scalings(args), args["timestep"]
    below = k - len(table.sigmas) // args["steps"]
    high = table.sigmas[k]
    last = 0.0 if args.get("set_alpha_to_one", True) else table.sigma_min
    low = table.sigmas[below].item() if below >= 0 else last
    x = case["sample"] * (1 + high**2).sqrt()
    denoised = table.c_skip(high) * x + table.c_out(high) * case["output"]
    if args.get("clip_sample", True):  # which is not the ODE: only the denoised image is compared
        bound = args.get("clip_sample_range", 1.0)
        expect(denoised.clamp(-bound, bound), case, f"step_{i}_clean", **EXACT)
        return
    scale = max(1.0, case[f"step_{i}_clean"].abs().max().item())
    assert_close(denoised / scale, case[f"step_{i}_clean"] / scale, **EXACT)
    after = solvers.Euler()(lambda *_: denoised, x, high.item(), low) / (1 + low**2) ** 0.5
    assert_close(after / scale, case[f"step_{i}_prev"] / scale, **EXACT)


@pytest.mark.parametrize(("path", "i"), cases(r"trajectory_(\d+)_args", "empty"))
def test_trajectory_of_the_guided_teacher(path, i):
    case = load(path)
    args = said(case, f"trajectory_{i}_args")
    table = scalings(args)
    teacher = Preconditioned(TextNet(case, "net"), table)
    teacher.origin = {}
    refuse_clipping(args)
    timesteps = case[f"trajectory_{i}_timesteps"]
    spacing = args.get("timestep_spacing", "leading")
    if spacing == "linspace" or len(table.sigmas) % args["steps"]:
        pytest.skip("the steps do not end at the next timestep: the network is told another level than z has")
    denoiser = Recorded(partial(Guided(teacher, args.get("guidance", 1.0)), labels=prompts(case)))
    final = "zero" if args.get("set_alpha_to_one", True) else "first"
    sampler = DDIM(args["steps"], table, spacing, offset(args), final)
    assert list(sampler.timesteps) == timesteps.tolist()
    end = sampler(denoiser, case["start"], None)
    states = case[f"trajectory_{i}_states"]
    found = [*denoiser.inputs[1:], end, end][: len(states)]  # a last step from the lowest level to it changes nothing
    assert_close(torch.stack(found), states, rtol=1e-6, atol=1e-6 * states.abs().max().item())
    assert sampler.nfe == len(denoiser.inputs)


@pytest.mark.parametrize(("path", "i"), cases(r"trajectory_(\d+)_args", "guidance_embedding"))
def test_trajectory_of_lcm(path, i):
    case = load(path)
    args = said(case, f"trajectory_{i}_args")
    refuse_clipping(args)
    table = scalings(LCM_TABLE | args, boundary=args.get("timestep_scaling", 10.0))
    embedding = case["guidance_embedding"]
    model = Recorded(partial(Preconditioned(TextNet(case, "net"), table), labels=prompts(case, embedding=embedding)))
    original, strength = args.get("original_inference_steps", 50), args.get("strength", 1.0)
    sampler, noises = LCM(args["steps"], table, original, strength), iter(case["noises"])
    assert list(sampler.timesteps) == case[f"trajectory_{i}_timesteps"].tolist()
    end = sampler(model, case["start"], lambda: next(noises))
    states = case[f"trajectory_{i}_states"]
    tolerance = {"rtol": 1e-6, "atol": 1e-6 * max(states.abs().max().item(), 1)}
    expect(torch.stack(model.outputs), case, f"trajectory_{i}_denoised", **tolerance)
    assert_close(torch.stack([*model.inputs[1:], end]), states, **tolerance)


@pytest.mark.parametrize(("path", "i"), cases(r"timesteps_(\d+)_args", "|".join(OF_LCM)))
def test_timesteps_of_lcm(path, i):
    case = load(path)
    args = said(case, f"timesteps_{i}_args")
    original, strength = args.get("original_inference_steps", 50), args.get("strength", 1.0)
    sampler = LCM(args["steps"], scalings(LCM_TABLE | args), original, strength)
    assert list(sampler.timesteps) == case[f"timesteps_{i}"].tolist()


@pytest.mark.parametrize(("path", "i"), cases(r"boundary_(\d+)_c_skip"))
def test_boundary_scalings(path, i):
    case = load(path)
    c_skip, c_out = case[f"boundary_{i}_c_skip"], case[f"boundary_{i}_c_out"]
    boundary = case[f"boundary_{i}_timestep_scaling"].item()
    table = scalings({"num_train_timesteps": len(c_skip)}, "epsilon", boundary)  # the scalings are those of any table
    sigma = table.sigmas
    # f = c_skip·z + c_out·x̂0 with z = c_in·x and x̂0 = x - σ·F
    assert_close(table.c_skip(sigma), c_skip * table.c_in(sigma) + c_out, rtol=1e-9, atol=0)
    assert_close(table.c_out(sigma), -sigma * c_out, rtol=1e-9, atol=1e-12)
