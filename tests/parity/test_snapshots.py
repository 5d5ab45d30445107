"""Snapshot pickles that the official code wrote, and pickles that attack their reader."""

import contextlib
import re

import numpy as np
import pytest
import torch
from parity.golden import FOLDER, class_labels, load

from consistency_models import pretrained

SNAPSHOTS = [path for path in sorted(FOLDER.glob("*/*.pkl")) if path.with_name(f"{path.stem}_expected.npz").exists()]
ATTACKS = sorted(FOLDER.glob("*/malicious/*.pkl"))


def expected(path):
    return load(path.with_name(f"{path.stem}_expected.npz"))


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_snapshot_is_read_bit_by_bit(path):
    case, snapshot = expected(path), pretrained.read_snapshot(path)
    weights = {key.removeprefix("sd/"): value for key, value in case.items() if key.startswith("sd/")}
    assert list(snapshot.state_dict) == list(weights)
    for name, value in weights.items():
        assert snapshot.state_dict[name].dtype == value.dtype, name
        np.testing.assert_array_equal(snapshot.state_dict[name].numpy(), value.numpy(), err_msg=name)
    assert snapshot.class_name == case["meta"]["cls"]
    kwargs = {key: list(value) if type(value) is tuple else value for key, value in snapshot.kwargs.items()}
    assert kwargs == case["meta"]["init_kwargs"]


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_snapshot_denoises_as_officially(path):
    case, loaded = expected(path), pretrained.load(path)
    x, D = case["x"], case["D"]
    got = loaded.model(x, case["sigma"].flatten(), class_labels(case))
    torch.testing.assert_close(got, D, rtol=0, atol=1e-5 * D.abs().max().item(), check_dtype=False)
    assert (loaded.channels, loaded.image_size) == x.shape[1:3]
    assert loaded.num_classes == case["meta"]["init_kwargs"].get("label_dim", 0)


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.stem)
def test_attack_fails(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    may_be_read = (pytest.fail.Exception,) if "ok_if_not_executed" in path.name else ()
    for read in (pretrained.read_snapshot, pretrained.load):
        with contextlib.suppress(*may_be_read), pytest.raises(pretrained.CheckpointError, match=re.escape(str(path))):
            read(path)
        assert not list(tmp_path.iterdir())
