"""The speed measurement: its floor is made of all of a network's products, and every lever is reported."""

import json

import network as benchmark
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops(function):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["small_32", "mlp"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_floor_does_the_network_s_products_and_no_others(name, backward):
    network = benchmark.build(name, 8, 0, "cpu").train()
    inputs = (torch.randn(2, 3, 8, 8), torch.zeros(2), None)
    floor = benchmark.floor(network, inputs, torch.float32, backward)
    assert flops(floor) == flops(benchmark.variant(network, inputs, set(), backward)) > 0


def test_every_lever_is_compared_with_none(tmp_path, capsys):
    file = tmp_path / "speed.json"
    arguments = "--networks mlp --image-size 4 --batch 2 --rounds 1 --threads 1 --device cpu --classes 3 --json"
    found = benchmark.main([*arguments.split(), str(file), "--levers", "channels_last", "bf16", "sdpa"])
    assert json.loads(file.read_text()) == found
    levers = ["none", "channels_last", "bf16", "sdpa", "floor float32", "floor bf16"]
    for which in ("forward", "forward+backward"):
        rows = [row for row in found["rows"] if row["pass"] == which]
        assert [row["lever"] for row in rows] == levers
        for row in rows:
            assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
            assert row["speed_up"] == pytest.approx(rows[0]["seconds"] / row["seconds"])
            floor = rows[levers.index("floor bf16" if "bf16" in row["lever"] else "floor float32")]
            assert row["of_floor"] == pytest.approx(row["seconds"] / floor["seconds"])
    assert capsys.readouterr().out.count("| mlp |") == 2 * len(levers)
