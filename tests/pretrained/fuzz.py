"""Feeds the reader mutated pickles while watching every audit event of the interpreter.

    python tests/pretrained/fuzz.py --seed 0 --cases 2000 FILE.pkl [FILE.pkl …]

A process of its own, because an audit hook cannot be taken away again. Prints how the cases ended as JSON; exit
status 1 and the offending case, kept as a file, if one did anything but read its file, or ended in anything but a
snapshot or a CheckpointError.
"""

import argparse
import codecs
import collections
import contextlib
import json
import pickletools
import random
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import opcodes as op

from consistency_models.pretrained import CheckpointError, load, read_snapshot

NAMES = [*[(module, name) for module in ("os", "posix", "nt") for name in ("system", "popen", "remove", "execv")]]
NAMES += [("builtins", name) for name in ("eval", "exec", "open", "getattr", "setattr", "__import__", "compile")]
NAMES += [
    ("subprocess", "Popen"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("runpy", "run_path"),
    ("shutil", "rmtree"),
]
NAMES += [("collections", "OrderedDict"), ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), op.PERSISTENT]
NAMES += [op.TENSOR, op.STORAGE, ("torch.nn.modules.container", "ModuleDict"), ("torch.storage", "io.open")]
NUMBERS = [-(2**63), -1, 0, 1, 2, 3, 4, 255, 2**31, 2**40, 2**63 - 1]
WORDS = [
    "fuzz.marker",
    "w",
    "touch fuzz.marker",
    "open('fuzz.marker', 'w')",
    "__class__",
    "state",
    "_modules",
    "f8",
    "<",
]
BARE = [code.code.encode("latin-1") for code in pickletools.opcodes if code.arg is None]


def snippet(rng):
    """A few opcodes that are well formed in themselves."""
    return rng.choice(
        [
            lambda: rng.choice(BARE),
            lambda: op.name(*rng.choice(NAMES)),
            lambda: op.call(rng.choice(NAMES), *(op.text(rng.choice(WORDS)) for _ in range(rng.randrange(4)))),
            lambda: "c{}\n{}\n".format(*rng.choice(NAMES)).encode(),
            lambda: "(S'{}'\ni{}\n{}\n".format(rng.choice(WORDS), *rng.choice(NAMES)).encode(),
            lambda: op.text(rng.choice(WORDS)),
            lambda: op.integer(rng.choice(NUMBERS)),
            lambda: bytes([rng.choice(b"hqK\x82"), rng.randrange(256)]),
            lambda: bytes([rng.choice(b"jrJ\x83\x84")]) + rng.randbytes(4),
            lambda: bytes([rng.choice(b"BXT\x8b")]) + rng.choice([4, 2**16, 2**31 - 1]).to_bytes(4, "little"),
            lambda: bytes([rng.choice(b"\x8d\x8e\x95\x96")]) + rng.choice([4, 2**40, 2**63]).to_bytes(8, "little"),
            lambda: op.tensor(
                b"h%c" % rng.randrange(8), [rng.choice(NUMBERS)], [rng.choice(NUMBERS)], rng.choice(NUMBERS)
            ),
            lambda: op.blob(op.torch_bytes(op.torch.zeros(rng.randrange(3)))),
            lambda: b")\x81}" + op.text(rng.choice(WORDS)) + b"Nsb",
        ]
    )()


def soup(rng):
    """A stream of nothing but snippets, sometimes in the shape of a snapshot."""
    stream = b"".join(snippet(rng) for _ in range(rng.randrange(1, 30)))
    return rng.choice([b"\x80\x04" + stream + b".", op.snapshot(stream), op.snapshot(op.module(_parameters=stream))])


class Seed:
    """A good file and where its opcodes begin."""

    def __init__(self, path):
        self.data = path.read_bytes()
        self.positions = [position for _, _, position in pickletools.genops(self.data)]

    def mutated(self, rng, other):
        data, kind = bytearray(self.data), rng.randrange(7)
        if kind == 0:
            for _ in range(rng.randrange(1, 9)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if kind == 1:
            data[rng.randrange(len(data)) :] = rng.choice([b"", b"."])
        if kind == 2:  # bytes of another file
            start, at, length = rng.randrange(len(other.data)), rng.randrange(len(data)), rng.randrange(1, 200)
            data[at : at + rng.choice([0, length])] = other.data[start : start + length]
        if kind == 3:  # opcodes of another file
            first = rng.randrange(len(other.positions) - 1)
            last = min(first + rng.randrange(1, 20), len(other.positions) - 1)
            at = rng.choice(self.positions)
            data[at:at] = other.data[other.positions[first] : other.positions[last]]
        if kind == 4:
            for at in sorted(rng.choices(self.positions, k=rng.randrange(1, 4)), reverse=True):
                data[at:at] = snippet(rng)
        if kind == 5:  # opcodes lost
            first = rng.randrange(len(self.positions) - 1)
            del data[self.positions[first] : self.positions[min(first + rng.randrange(1, 4), len(self.positions) - 1)]]
        if kind == 6:  # one opcode instead of another
            index = rng.randrange(len(self.positions) - 1)
            data[self.positions[index] : self.positions[index + 1]] = snippet(rng)
        return bytes(data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    seeds = [Seed(path) for path in options.files]
    warnings.simplefilter("ignore")  # the tokeniser's, of strange escapes in strings
    for path in options.files:  # what torch imports on first use, it imports now
        read_snapshot(path)
        with contextlib.suppress(CheckpointError):
            load(path)
    for codec in ("raw_unicode_escape", "unicode_escape", "ascii"):
        codecs.lookup(codec)

    case = Path(tempfile.mkdtemp()) / "case.pkl"
    events, endings = [], collections.Counter()

    def hook(event, arguments):
        harmless = event == "builtins.id" or (event == "open" and arguments[:2] == (str(case), "r"))
        if watching and not harmless:
            events.append((event, str(arguments)[:200]))

    watching = False
    sys.addaudithook(hook)
    if sys.platform == "linux":  # memory beyond this is refused, and a refusal is a failure
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)

    for number in range(options.cases):
        data = soup(rng) if rng.random() < 0.25 else rng.choice(seeds).mutated(rng, rng.choice(seeds))
        case.write_bytes(data)
        watching, ending = True, "refused"
        try:
            read_snapshot(case)
            ending = "read"
            load(case)
            ending = "loaded"
        except CheckpointError as error:
            if "MemoryError" in str(error) or "allocate" in str(error):
                ending = f"out of memory: {error}"
        except BaseException as error:
            ending = f"{type(error).__name__}: {error}"
        watching = False
        endings[ending] += 1
        if events or ending not in ("refused", "read", "loaded"):
            print(json.dumps({"case": number, "ending": ending, "events": events, "file": str(case)}))
            sys.exit(1)
    case.unlink()
    case.parent.rmdir()
    print(json.dumps(endings))


main()
