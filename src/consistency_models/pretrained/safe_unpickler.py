"""An interpreter of pickles that calls only functions of a given table.

`pickle.Unpickler` imports names, calls them, and runs methods of the objects on its stack (`append`, `__setitem__`,
`__hash__` …). This interpreter reads the same stream, tokenised by the standard library's `pickletools`. A name is only
a key of the caller's table, containers are exact lists, dicts and sets, and only strings are hashed.

The size of the result is bounded by the length of the stream: a declared length is not allocated before its bytes were
read. Opcodes that a protocol 4 writer does not emit (explicit memo indices, extension codes, persistent ids …) are
refused. Nested tuples and colliding integers cannot slow down a hash table, because they are never hashed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping

from consistency_models.errors import CheckpointError

__all__ = ["Inert", "exact", "run"]

MAX_OPCODES = 4_000_000  # the largest published snapshot has some 10⁵

ARGUMENTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
ARGUMENTS |= {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Inert:
    """Base class of the stubs for objects of the stream: slots, and no behaviour that a stream could use."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise CheckpointError(f"no state for a {type(self).__name__}", state)


class Name(Inert):
    """A name of the table, and the function that a call of the name runs."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self.make = make


def exact(value: object, kind: type, what: str | None = None) -> object:
    """Return the value if its type is exactly `kind`; a subclass could have methods of its own."""
    if type(value) is not kind:
        raise CheckpointError(what or f"a value of type {kind.__name__}", value)
    return value


def run(data: bytes, allowed: Mapping[tuple[str, str], Callable[..., object]]) -> object:
    """Return the object that a pickle describes, made of plain values and of results of the table's functions.

    Args:
        data: the pickle.
        allowed: a function for each (module, name) that may occur. The function takes the arguments of the stream and
            returns a plain value, a tensor, or an `Inert`, whose `__setstate__` accepts or refuses a state.

    Raises:
        CheckpointError: an opcode, a name or a type that is not allowed, or too many opcodes.
        Exception: other errors of a malformed stream, such as IndexError for an empty stack; see `errors.naming`.
    """
    stack, below, memo = [], [], []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count >= MAX_OPCODES:
            raise CheckpointError(f"at most {MAX_OPCODES} opcodes", "more")
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case name if name in ARGUMENTS:
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in EMPTY:
                stack.append(EMPTY[name]())
            case "MEMOIZE":
                memo.append(stack[-1])
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "POP":
                stack.pop()
            case "MARK":
                below.append(stack)
                stack = []
            case "POP_MARK":
                stack = below.pop()
            case name if name in TUPLES:
                items = [stack.pop() for _ in range(TUPLES[name])]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                stack, items = below.pop(), stack
                stack.append(tuple(items))
            case "APPEND":
                item = stack.pop()
                exact(stack[-1], list).append(item)
            case "APPENDS":
                stack, items = below.pop(), stack
                exact(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                exact(stack[-1], dict)[exact(key, str)] = value
            case "SETITEMS":
                stack, items = below.pop(), stack
                for key, value in zip(items[::2], items[1::2], strict=True):
                    exact(stack[-1], dict)[exact(key, str)] = value
            case "ADDITEMS":
                stack, items = below.pop(), stack
                exact(stack[-1], set).update(exact(item, str) for item in items)
            case "STACK_GLOBAL":
                name, module = exact(stack.pop(), str), exact(stack.pop(), str)
                if (module, name) not in allowed:
                    raise CheckpointError("a name that such a checkpoint uses", f"{module[:60]} {name[:60]}")
                stack.append(Name(allowed[module, name]))
            case "REDUCE" | "NEWOBJ":
                arguments = exact(stack.pop(), tuple)
                stack.append(exact(stack.pop(), Name).make(*arguments))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], Inert):
                    raise CheckpointError("an object that takes a state", stack[-1])
                stack[-1].__setstate__(state)
            case name:
                raise CheckpointError("an opcode that a protocol 4 writer emits", name)
    return stack.pop()
