"""The reader: what is in a good file comes out bit by bit, and whatever else is in a file does nothing."""

import hashlib
import struct
import tracemalloc

import pytest
import torch
from pretrained import opcodes as op
from pretrained import snapshots

from consistency_models.errors import CheckpointError
from consistency_models.pretrained import reader, safe_unpickler
from consistency_models.pretrained.reader import read_snapshot

NUMBERS = op.torch_bytes(torch.arange(4.0))
HEADER = NUMBERS[: NUMBERS.index(b"uu.") + 3]  # up to where the storage comes
STORAGE = op.call(op.STORAGE, op.blob(NUMBERS))
OS_SYSTEM = op.call(("os", "system"), op.text("echo > marker"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_snapshot_comes_out_as_it_went_in(tmp_path, dtype):
    kwargs = {"img_resolution": 8, "label_dim": 0, "channel_mult": [1, 2], "dropout": 0.13, "model_type": "SongUNet"}
    network = snapshots.module("EDMPrecond", snapshots.small_state_dict(dtype), kwargs, sigma_data=0.5, sigma_min=0)
    network.register_buffer("scratch", torch.zeros(3), persistent=False)
    top = {"ema": network, "loss_fn": snapshots.ect_loss(), "augment_pipe": None, "dataset_kwargs": {"path": "x.zip"}}
    path = snapshots.dump(top, tmp_path / "snapshot.pkl")

    snapshot = read_snapshot(path)

    expected = network.state_dict()
    assert list(snapshot.state_dict) == list(expected)
    for name, value in expected.items():
        got = snapshot.state_dict[name]
        assert got.dtype == dtype
        assert torch.equal(got, value), name
    assert (snapshot.class_name, snapshot.kwargs) == ("EDMPrecond", kwargs)
    assert snapshot.attributes == {"training": False, "sigma_data": 0.5, "sigma_min": 0}
    assert snapshot.dataset_kwargs == {"path": "x.zip"}
    assert snapshot.sources == (hashlib.sha256(snapshots.SOURCE.encode()).hexdigest(),)
    assert snapshot.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_edm2_has_dicts_of_a_class_of_its_own_and_ect_for_imagenet_nothing_but_the_network(tmp_path):
    network = snapshots.module("Precond", snapshots.small_state_dict())
    top = snapshots.EasyDict(encoder=snapshots.persistent("StandardRGBEncoder", object)(), ema=network)
    top["dataset_kwargs"] = snapshots.EasyDict(path="x.zip", use_labels=True)
    snapshot = read_snapshot(snapshots.dump(top, tmp_path / "edm2.pkl"))
    assert snapshot.dataset_kwargs == {"path": "x.zip", "use_labels": True}
    snapshot = read_snapshot(snapshots.dump({"ema": network}, tmp_path / "ect.pkl"))
    assert snapshot.dataset_kwargs == {}


def test_what_comes_out_shares_no_memory(tmp_path):
    shared = STORAGE + b"\x940"  # into the memo, off the stack
    weights = op.mapping(a=op.tensor(b"h\x00"), b=op.tensor(b"h\x00", (3,), (1,), 1))
    path = tmp_path / "shared.pkl"
    path.write_bytes(b"\x80\x04" + shared + op.snapshot(op.module(_parameters=weights))[2:])
    a, b = read_snapshot(path).state_dict.values()
    b.zero_()
    assert a.tolist() == [0, 1]


def forever(depth=60):
    """A tuple of tuples of tuples …, in a few bytes; its hash would take 2^60 steps."""
    return b")\x94" + b"".join(b"0" + b"h%c" % i * 2 + b"\x86\x94" for i in range(depth))


def nested(old, new):
    """A nested torch file, changed."""
    assert old in NUMBERS
    return op.call(op.STORAGE, op.blob(NUMBERS.replace(old, new)))


def module_in_itself():
    """A module whose state is that of its own child."""
    meta = op.mapping(type=op.text("class"), version=op.integer(6), module_src=op.text(""), class_name=op.text("A"))
    child = op.call(op.PERSISTENT, meta + op.text("state") + b"h\x00s")
    state = op.mapping(_init_args=op.items(), _init_kwargs=b"}", _parameters=b"}", _buffers=b"}")
    state = state[:1] + b"\x94" + state[1:] + op.text("_modules") + op.mapping(a=child) + b"s"
    return op.call(op.PERSISTENT, meta + op.text("state") + state + b"s")


META = op.mapping(type=op.text("class"), version=op.integer(6), module_src=op.text(""), class_name=op.text("A"))
MODULE_DICT = op.name("torch.nn.modules.container", "ModuleDict") + b")\x81"
FLOAT = op.call(("numpy", "dtype"), op.text("f8"), op.NO, op.YES)

HOSTILE = {  # what the reader says: what it says it of
    "expected a name that such a checkpoint uses": {
        "os.system": op.call(("os", "system"), op.text("echo > marker")),
        "posix.system": op.call(("posix", "system"), op.text("echo > marker")),
        "eval": op.call(("builtins", "eval"), op.text("open('marker', 'w')")),
        "exec": op.call(("builtins", "exec"), op.text("open('marker', 'w')")),
        "import": op.call(("builtins", "__import__"), op.text("antigravity")),
        "torch.load": op.call(("torch", "load"), op.text("marker")),
        "attribute of a name": op.call(("collections", "OrderedDict.fromkeys"), op.items()),
        "attribute of a module": op.call(("torch.storage", "io.open"), op.text("marker"), op.text("w")),
        "name in an allowed module": op.call(("torch._utils", "_import_dotted_name"), op.text("os")),
    },
    "expected an opcode that a protocol 4 writer emits": {
        "line opcode": b"cos\nsystem\n(S'echo > marker'\ntR",
        "instance opcode": b"(Vecho > marker\nios\nsystem\n",
        "object opcode": op.MARK + op.text("os") + b"o",
        "extension": b"\x82\x01",
        "persistent id": b"Pmarker\n",
        "memo index": b"Nr" + struct.pack("<I", 2**31),
        "frozen set": b"(\x91",
    },
    "expected a value of type Name": {
        "call of a string": op.text("os.system") + op.items() + b"R",
        "call of a record": op.record() + op.items() + b"R",
        "call of a tensor": op.tensor(STORAGE) + op.items() + b"R",
    },
    "expected a value of type Record": {
        "getattr of a string": op.call(("builtins", "getattr"), op.text("x"), op.text("__class__")),
        "getattr of a name": op.call(("builtins", "getattr"), op.name(*op.TENSOR), op.text("__globals__")),
        "tensor as module": op.module(_modules=op.mapping(a=op.tensor(STORAGE))),
    },
    "expected a value of type str": {
        "getattr without a string": op.call(("builtins", "getattr"), op.record(), op.integer(1)),
        "integers as keys": b"}" + op.integer(1) + op.NOTHING + b"s",
        "key that takes for ever to hash": b"}" + forever() + op.NOTHING + b"s",
        "items that take for ever to hash": b"}(" + forever() + op.NOTHING + b"u",
        "set that takes for ever to hash": b"\x8f(" + forever() + b"\x90",
        "name that is none": op.NOTHING + op.text("system") + b"\x93",
    },
    "no state for a Name": {"name": op.name(*op.TENSOR) + op.mapping(__defaults__=op.items()) + b"b"},
    "no state for a Record": {"record": op.record() + b"}b", "second": MODULE_DICT + b"}b}b"},
    "no state for a Storage": {"storage": STORAGE + b"}b"},
    "expected an object that takes a state": {
        "tensor": op.tensor(STORAGE) + op.items() + b"b",
        "dict": b"}}b",
        "string": op.text("x") + b"}b",
    },
    "expected a value of type dict": {
        "item of a tensor": op.tensor(STORAGE) + op.text("x") + op.NOTHING + b"s",
        "meta that is a list": op.call(op.PERSISTENT, b"]"),
        "state that is a list": MODULE_DICT + b"]b",
        "no parameters": op.module(_parameters=op.NOTHING),
    },
    "expected a value of type list": {"append to a tensor": op.tensor(STORAGE) + op.NOTHING + b"a"},
    "expected a value of type tuple": {"call without a tuple": op.name("collections", "OrderedDict") + b"]R"},
    "TypeError": {"call with too much": op.call(("collections", "OrderedDict"), b"]")},
    "expected an object with type, version, module_src": {
        "few keys": op.call(op.PERSISTENT, op.mapping(type=op.text("class"))),
        "another key": op.call(op.PERSISTENT, META + op.text("state") + b"}s" + op.text("hook") + b"Ns"),
        "version that is true": op.record().replace(op.integer(6), op.YES),
        "state that is a list": op.call(op.PERSISTENT, META + op.text("state") + b"]s"),
    },
    "expected an object of type class, version 6": {
        "version": op.record().replace(op.integer(6), op.integer(7)),
        "type": op.record().replace(op.text("class"), op.text("function")),
    },
    'expected a network under the key "ema"': {
        "nothing": op.NOTHING,
        "tensor": op.tensor(STORAGE),
        "lists in lists": b"]" * 20_000 + b"a" * 19_999,
        "tuples in tuples": b")" + b"\x85" * 20_000,
    },
    "expected a network with the arguments of its constructor": {"none": op.module(_init_kwargs=op.NOTHING)},
    "expected a network constructed with plain keyword arguments only": {
        "position": op.module(_init_args=op.items(op.integer(1))),
        "tensor": op.module(_init_kwargs=op.mapping(sigma_data=op.tensor(STORAGE))),
        "list of lists": op.module(_init_kwargs=op.mapping(mult=b"]]a")),
        "long list": op.module(_init_kwargs=op.mapping(mult=b"](" + b"N" * 65 + b"e")),
    },
    "expected a tensor under": {
        "number": op.module(_parameters=op.mapping(weight=op.integer(1))),
        "storage": op.module(_buffers=op.mapping(weight=STORAGE)),
    },
    "expected a name of at most 100 characters, without a dot": {
        "dot": op.module(_parameters=op.mapping(**{"a.b": op.tensor(STORAGE)})),
        "length": op.module(_parameters=op.mapping(**{"a" * 101: op.tensor(STORAGE)})),
    },
    "expected modules that are not shared": {
        "shared": op.module(_modules=op.mapping(a=op.module() + b"\x94", b=b"h\x00")),
        "in itself": module_in_itself(),
    },
    "AttributeError": {"module without state": op.module(_modules=op.mapping(a=MODULE_DICT))},
    "expected a tensor within its storage of 4 values": {
        "size": op.tensor(STORAGE, (5,)),
        "offset": op.tensor(STORAGE, (2,), (1,), 3),
        "offset of nothing": op.tensor(STORAGE, (0,), (1,), 5),
        "stride": op.tensor(STORAGE, (2,), (4,)),
    },
    "expected up to 8 sizes and strides of 0 to the file's size": {
        "negative offset": op.tensor(STORAGE, (2,), (1,), -1),
        "negative size": op.tensor(STORAGE, (-2,), (1,)),
        "negative stride": op.tensor(STORAGE, (2,), (-1,), 3),
        "huge size": op.tensor(STORAGE, (2**62,), (0,)),
        "size beyond int64": op.tensor(STORAGE, (2**80, 0), (0, 0)),
        "size that is true": op.tensor(STORAGE).replace(op.items(op.integer(2)), op.items(op.YES)),
        "nine dimensions": op.tensor(STORAGE, (1,) * 9, (1,) * 9),
    },
    "ValueError": {
        "more strides than sizes": op.tensor(STORAGE, (2,), (1, 1)),
        "scalar cut short": op.call(("numpy.core.multiarray", "scalar"), FLOAT, op.blob(b"")),
        "odd number of items": b"}(" + op.text("a") + b"u",
        "bytes without end": b"\x8e" + struct.pack("<Q", 2**40),
        "bytearray without end": b"\x96" + struct.pack("<Q", 2**40),
        "string without end": b"\x8d" + struct.pack("<Q", 2**63 - 1),
        "string beyond int64": b"\x8d" + struct.pack("<Q", 2**64 - 1),
        "integer without end": b"\x8b" + struct.pack("<I", 2**31 - 1),
        "integer of many digits": b"I" + b"9" * 10_000 + b"\n",
        "unknown opcode": b"\xff",
    },
    "expected tensors that together are no larger than the file": {"stride 0": op.tensor(STORAGE, (200, 200), (0, 0))},
    "expected storages that together are no larger than the file": {
        "the same bytes": op.blob(NUMBERS) + b"\x940" + (op.name(*op.STORAGE) + b"h\x00\x85R0") * 99
    },
    "expected a value of type Storage": {"bytes": op.tensor(op.blob(NUMBERS))},
    "expected a value of type Tensor": {
        "nothing": op.call(("torch._utils", "_rebuild_parameter"), op.NOTHING, op.NO, b"}"),
        "storage": op.call(("torch._utils", "_rebuild_parameter"), STORAGE, op.NO, b"}"),
    },
    "expected a storage in torch's legacy format": {"zip": op.call(op.STORAGE, op.blob(b"PK\x03\x04"))},
    "expected a value of type bytes": {"string": op.call(op.STORAGE, op.text("x"))},
    "expected a storage of floating-point numbers": {
        "call": nested(b"q\x04Q", b"q\x04cos\nsystem\nq\x05N\x85R"),
        "callable": nested(b"ctorch\nFloatStorage\n", b"cos\nsystem\n"),
        "untyped": nested(b"FloatStorage", b"UntypedStorage"),
        "integers": nested(b"FloatStorage", b"LongStorage"),
        "module": nested(b"X\x07\x00\x00\x00storage", b"X\x06\x00\x00\x00module"),
        "declared gigabyte": nested(b"K\x04N", b"J\x00\x00\x00\x40N"),
        "declared negative": nested(b"K\x04N", b"J\x00\x00\x00\x80N"),
        "long": nested(b"uu.", b"uu" + b"}" * 64 + b"."),
    },
    "expected a value of type TypedStorage": {
        "number": op.call(op.STORAGE, op.blob(HEADER + b"\x80\x02K\x01.\x80\x02]."))
    },
    "RuntimeError": {
        "fewer values than declared": nested(b"K\x04N", b"K\x05N"),
        "values cut": op.call(op.STORAGE, op.blob(NUMBERS[:-1])),
    },
    "expected a numpy scalar": {"objects": op.call(("numpy", "dtype"), op.text("O8"), op.NO, op.YES)},
    "expected a little-endian numpy type": {"big": FLOAT + op.items(op.integer(3), op.text(">")) + b"b"},
    "expected a value of type DType": {
        "nothing": op.call(("numpy.core.multiarray", "scalar"), op.NOTHING, op.blob(bytes(8)))
    },
    "IndexError": {"empty stack": b"t", "unknown memo": b"h\x07", "marks": b"(" * 20_000},
    "UnicodeDecodeError": {"not UTF-8": b"X\x02\x00\x00\x00\xff\xfe"},
    "UnicodeEncodeError": {"half a character": op.module().replace(op.text("raise"), b"X\x03\x00\x00\x00\xed\xa0\x80")},
}


@pytest.mark.parametrize(
    ("says", "stream"),
    [pytest.param(says, stream, id=f"{says}: {name}") for says in HOSTILE for name, stream in HOSTILE[says].items()],
)
def test_a_hostile_stream_is_refused_and_does_nothing(says, stream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pkl"
    path.write_bytes(op.snapshot(stream))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=rf"{path}: expected .*; found .") as refusal:
        read_snapshot(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert says in str(refusal.value)
    assert peak < 16 << 20
    assert [file.name for file in tmp_path.iterdir()] == ["hostile.pkl"]


def test_the_streams_by_hand_are_good_but_for_what_they_try(tmp_path):
    weights = op.mapping(weight=op.call(("torch._utils", "_rebuild_parameter"), op.tensor(STORAGE), op.NO, b"}"))
    scale = op.call(("numpy.core.multiarray", "scalar"), FLOAT, op.blob(struct.pack("<d", 0.5)))
    child = MODULE_DICT + op.mapping(_parameters=weights, _buffers=b"}", _modules=b"}") + b"b"
    path = tmp_path / "good.pkl"
    path.write_bytes(op.snapshot(op.module(_modules=op.mapping(child=child), scale=scale)))
    snapshot = read_snapshot(path)
    assert [(name, value.tolist()) for name, value in snapshot.state_dict.items()] == [("child.weight", [0, 1])]
    assert snapshot.attributes == {"scale": 0.5}


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path / "missing.pkl", tmp_path, tmp_path / "empty.pkl"):
        (tmp_path / "empty.pkl").touch()
        with pytest.raises(CheckpointError, match=f"{path}: expected .*; found ."):
            read_snapshot(path)


@pytest.mark.parametrize(("module", "limit"), [(reader, "MAX_BYTES"), (safe_unpickler, "MAX_OPCODES")])
def test_limits_are_limits(module, limit, tmp_path, monkeypatch):
    path = tmp_path / "good.pkl"
    path.write_bytes(op.snapshot(op.module()))
    read_snapshot(path)
    monkeypatch.setattr(module, limit, 10)
    with pytest.raises(CheckpointError, match="expected at most 10 "):
        read_snapshot(path)
