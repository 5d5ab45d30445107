"""Writes pickles with the structure of official snapshots, by the standard library's pickler and stand-in classes."""

from __future__ import annotations

import pickle
import sys
import types
from unittest import mock

import numpy as np
import torch
from torch import nn

SOURCE = "raise RuntimeError('the source inside a snapshot must never run')"
BUFFERS = ("resample_filter", "freqs", "phases", "u")  # of the official networks


class Persistent:
    """An object whose class officially comes with its source text."""


def persistent(class_name, base=nn.Module, **members):
    return type(class_name, (Persistent, base), members)


def reconstruct(meta):
    raise AssertionError("a pickle's function was called")


class EasyDict(dict):
    pass


def pretend(thing, module, name):
    thing.__module__, thing.__qualname__, thing.__name__ = module, name, name
    stand_in = types.ModuleType(module)
    setattr(stand_in, name, thing)
    return {module.partition(".")[0]: types.ModuleType(module.partition(".")[0]), module: stand_in}


MODULES = pretend(reconstruct, "torch_utils.persistence", "_reconstruct_persistent_obj")
MODULES |= pretend(EasyDict, "dnnlib.util", "EasyDict")


class Pickler(pickle.Pickler):
    def reducer_override(self, thing):
        if isinstance(thing, Persistent):
            meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": type(thing).__name__}
            return reconstruct, ({**meta, "state": thing.__dict__},)
        return NotImplemented


def dump(thing, path):
    """Pickle it as the official training loops do."""
    with mock.patch.dict(sys.modules, MODULES), open(path, "wb") as file:
        Pickler(file, 4).dump(thing)
    return path


def module(class_name, state_dict, kwargs=None, children=None, **attributes):
    """A tree of modules with these parameters and buffers, of these classes under the top, and no other behaviour."""
    top = persistent(class_name)()
    for name, value in state_dict.items():
        *parents, leaf = name.split(".")
        node = top
        for parent in parents:
            if parent not in node._modules:
                name = (children or {}).get(parent, "Layer")
                kind = nn.ModuleDict if parent in ("enc", "dec") else persistent(name)
                node.add_module(parent, kind())
                node._modules[parent].skip_scale = np.sqrt(0.5)
                node._modules[parent].__dict__ |= {"_init_args": (), "_init_kwargs": {}}
            node = node._modules[parent]
        if leaf in BUFFERS:
            node.register_buffer(leaf, value)
        else:
            node.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    top.__dict__ |= {"_init_args": (), "_init_kwargs": kwargs or {}, **attributes}
    return top.eval()


def ect_loss():
    """ECT's loss holds one of its own methods, which makes its pickle recursive."""
    loss = persistent("ECMLoss", object, t_to_r_sigmoid=lambda self, t: t)()
    type(loss).t_to_r_sigmoid.__name__ = "t_to_r_sigmoid"
    loss.q, loss.t_to_r, loss.stage = 2, loss.t_to_r_sigmoid, 3
    return loss


def small_state_dict(dtype=torch.float32):
    """A few tensors with all that a reader could trip over: a scalar, a buffer, one row, a transposed weight."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.map_layer0.weight": (3, 2), "model.enc.8x8_conv.weight": (2, 3, 1, 1), "model.gain": ()}
    state_dict = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    state_dict["model.dec.8x8_up.skip.resample_filter"] = torch.full((1, 1, 2, 2), 0.25, dtype=dtype)
    return state_dict | {"model.turned.weight": torch.randn(4, 3, generator=generator).to(dtype).t()}
