"""Adapters on a base that is shared with the teacher: nothing is copied, only the adapters are trained and saved."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from consistency_models.conditions import Prompt
from consistency_models.errors import ConfigError

pytest.importorskip("peft")
from tiny_pipelines import unet as tiny_unet

from consistency_models.callbacks.ema import WeightEMA
from consistency_models.losses.distances import SquaredL2
from consistency_models.methods.base import frozen_copy
from consistency_models.methods.cd import ConsistencyDistillation
from consistency_models.networks.diffusers import UNet
from consistency_models.networks.lora import LoRA, share_base, shared_names
from consistency_models.noise.discrete import Discrete
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.optim.ema import Constant
from consistency_models.sampling.solvers import Euler


@pytest.fixture(scope="module")
def config():
    return {key: value for key, value in tiny_unet().config.items()} | {"_class_name": "UNet2DConditionModel"}


@pytest.fixture
def teacher(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Preconditioned(UNet(config), Discrete()).eval()


@pytest.fixture
def student(config, teacher):
    """As a run builds it: on the meta device, then with the weights of the teacher."""
    with torch.device("meta"):
        network = UNet(config, lora=LoRA(r=4, alpha=8, seed=1))
    share_base(network, teacher.network)
    return Preconditioned(network, Discrete(boundary=10.0))


@pytest.fixture
def prompt():
    return Prompt(torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)), empty=torch.zeros(5, 32))


def made(student, teacher, **options):
    return ConsistencyDistillation(
        model=student,
        schedule=None,
        distance=SquaredL2(),
        weighting=lambda levels: 1,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        learning_rate=lambda k, K, batch: 1.0,
        total_steps=2,
        solver=Euler(),
        teacher=teacher,
        **options,
    )


def network_of(config, teacher, checkpointing=False, **options):
    """A network with adapters on the teacher's weights, in train mode, whose B is not zero."""
    network = UNet(config, checkpointing=checkpointing, lora=LoRA(r=4, alpha=8, seed=1, **options))
    share_base(network, teacher.network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    return network.train()


def output_and_gradients(network, prompt, seed=0):
    """The output and the gradients of the adapters, with the dropout masks of a seed."""
    generator = torch.Generator().manual_seed(2)
    x, k = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([3.0, 500.0])
    own = [parameter for parameter in network.parameters() if parameter.requires_grad]
    torch.manual_seed(seed)
    output = network(x, k, prompt)
    return [output.detach(), *torch.autograd.grad(output.square().mean(), own)]


def test_recomputed_activations_have_the_same_gradients(config, teacher, prompt):
    """Of frozen weights with adapters, with the dropout masks of the forward pass."""
    calls = []
    networks = [network_of(config, teacher, checkpointing, dropout=0.3) for checkpointing in (False, True)]
    for network in networks:
        network.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    plain, recomputed = (output_and_gradients(network, prompt) for network in networks)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed))
    assert len(calls) == 3  # once, and twice with checkpointing


def test_dropout_of_adapters(config, teacher, prompt):
    """A function of the seed in train mode, and none in eval mode."""
    network, without = network_of(config, teacher, dropout=0.5), network_of(config, teacher)
    first, same, other = (output_and_gradients(network, prompt, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    a, b = (output_and_gradients(each.eval(), prompt)[0] for each in (network, without))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def numbers(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_the_base_is_the_teachers_and_not_a_copy(student, teacher):
    theirs = {id(parameter) for parameter in teacher.parameters()}
    shared = [parameter for parameter in student.parameters() if id(parameter) in theirs]
    own = [parameter for parameter in student.parameters() if id(parameter) not in theirs]
    assert (len(shared), len(own)) == (len(theirs), 158)  # A and B of 79 layers
    assert all(parameter.requires_grad for parameter in own)
    assert not any(parameter.requires_grad for parameter in shared)
    assert not any(parameter.is_meta for parameter in student.parameters())
    assert len(shared_names(student)) == len(theirs)
    student.to(torch.float64)
    assert all(parameter.dtype == torch.float64 for parameter in teacher.parameters())


def test_the_student_starts_as_the_teacher(student, teacher, prompt):
    x, k = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0])
    torch.testing.assert_close(student.network(x, k, prompt), teacher.network(x, k, prompt), rtol=0, atol=0)


def test_the_adapters_are_drawn_from_their_seed(config, teacher, student):
    other = UNet(config, lora=LoRA(r=4, alpha=8, seed=1))  # on the CPU, after other random numbers
    share_base(other, teacher.network)
    for (name, mine), theirs in zip(student.network.named_parameters(), other.parameters()):
        assert torch.equal(mine, theirs), name
    different = UNet(config, lora=LoRA(r=4, alpha=8, seed=2))
    pairs = zip(student.network.named_parameters(), different.parameters())
    assert all(not torch.equal(mine, theirs) for (name, mine), theirs in pairs if "lora_A" in name)


def test_a_step_trains_the_adapters_only(student, teacher, prompt):
    before = copy.deepcopy(dict(teacher.named_parameters()))
    method = made(student, teacher)
    optimizer = method.configure_optimizers()
    assert numbers(method.trainable) == numbers(method.weights) == 36928
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 5.0])
    for _ in range(2):
        student(x, sigma, prompt).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in teacher.named_parameters())
    assert not torch.equal(student(x, sigma, prompt), teacher(x, sigma, prompt))
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert numbers(moments) == 2 * 36928


def test_target_and_averages_hold_adapters_only(student, teacher):
    method = made(student, teacher, target_ema=lambda k, K: 0.5)
    theirs = {id(parameter) for parameter in teacher.parameters()}
    assert numbers(p for p in method.target_copy.parameters() if id(p) not in theirs) == 36928
    assert [p.shape for p in method.target_weights] == [p.shape for p in method.weights]
    ema = WeightEMA(Constant([0.9]))
    ema.on_train_start(SimpleNamespace(global_step=0), method)
    (average,) = ema.state_dict().values()
    assert len(average) == 158
    assert all(".lora_" in name for name in average)


def test_the_state_holds_adapters_only(student, teacher):
    method = made(student, teacher, target_ema=lambda k, K: 0.5)
    state = method.state_dict()
    assert len(state) == 2 * 158
    assert all(".lora_" in name for name in state)
    with torch.no_grad():
        for parameter in method.weights:
            parameter.add_(1)
    other = made(student, teacher, target_ema=lambda k, K: 0.5)
    other.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"missing: .*lora_A"):
        other.load_state_dict(dict(list(state.items())[1:]))
    with pytest.raises(RuntimeError, match=r"unknown: .*extra"):
        other.load_state_dict(state | {"model.extra": torch.zeros(1)})


def test_the_copy_of_a_model_without_adapters_is_its_own(config):
    model = Preconditioned(UNet(config), Discrete())
    mine = {id(parameter) for parameter in model.parameters()}
    assert not mine & {id(parameter) for parameter in frozen_copy(model).parameters()}


def test_other_bases_are_refused(config):
    wider = UNet(config | {"block_out_channels": (16, 48)})
    with pytest.raises(ValueError, match=r"must have the same layers; .* has"):
        share_base(UNet(config, lora=LoRA(r=2)), wider)
    for other in (None, nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="must be a U-Net of diffusers"):
            share_base(UNet(config, lora=LoRA(r=2)), other)
    with pytest.raises(ValueError, match="the base lacks them"):
        UNet(config, lora=LoRA(r=2), time_cond_proj_dim=16)
    with pytest.raises(ValueError, match="not found in the base model"):
        UNet(config, lora=LoRA(r=2, targets=["no_such_layer"]))


def test_without_peft(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"peft is not installed: pip install .*\[latent\]"):
        UNet(config, lora=LoRA(r=2))


@pytest.mark.parametrize("options", [{"r": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": []}])
def test_values_out_of_range(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LoRA(**options)
