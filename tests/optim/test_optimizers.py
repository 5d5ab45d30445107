"""Optimisers against torch's own."""

import copy

import pytest
import torch

from consistency_models.optim.optimizers import RAdam


def trained(optimizer, steps, **arguments):
    """Weights and optimiser after some steps on the same gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,), (2, 3, 3, 3))
    ]
    optimizer = optimizer([parameter.requires_grad_() for parameter in parameters], **arguments)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("steps", [1, 5, 6, 40])
@pytest.mark.parametrize(
    "arguments", [{}, {"lr": 0.1, "weight_decay": 0.3}, {"betas": (0.5, 0.9), "eps": 0.1}, {"betas": (0.9, 0.5)}]
)
def test_radam_is_torch_s(steps, arguments):
    expected, theirs = trained(torch.optim.RAdam, steps, **arguments)
    found, ours = trained(RAdam, steps, **arguments)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        [ours.state[p] for p in found], [theirs.state[p] for p in expected], rtol=1e-12, atol=1e-14
    )


def test_radam_in_float32_is_as_near_to_float64_as_torch_s():
    start = torch.linspace(-1, 1, 50)
    gradients = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))

    def run(optimizer, dtype):
        parameter = start.to(dtype).clone().requires_grad_()
        made = optimizer([parameter], lr=0.1)
        for gradient in gradients:
            parameter.grad = gradient.to(dtype)
            made.step()
        return parameter.detach().double()

    truth = run(torch.optim.RAdam, torch.float64)
    ours, theirs = (run(kind, torch.float32).sub(truth).abs().max().item() for kind in (RAdam, torch.optim.RAdam))
    assert ours < 2 * theirs + 1e-7


def test_its_state_is_torch_s():
    parameters, theirs = trained(torch.optim.RAdam, 7)
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    ours = RAdam(copies)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for p, twin in zip(parameters, copies):
        p.grad = torch.ones_like(p)
        twin.grad = torch.ones_like(p)
    theirs.step(), ours.step()
    torch.testing.assert_close(copies, parameters, rtol=1e-12, atol=0)


def test_parameters_without_a_gradient_stay():
    idle, trained_one = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = RAdam([idle, trained_one], lr=0.1)
    for k in range(10):
        idle.grad, trained_one.grad = (torch.ones(3) if k > 6 else None), torch.ones(3)
        optimizer.step()
        assert (idle == 1).all() == (k <= 6)


def test_the_closure_s_value_is_returned_and_has_a_gradient():
    parameter = torch.ones(3, requires_grad=True)
    optimizer = RAdam([parameter])

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"betas": (1.0, 0.9)}, {"eps": -1}, {"weight_decay": -1}])
def test_radam_refuses(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* is not allowed"):
        RAdam([torch.ones(1)], **wrong)
