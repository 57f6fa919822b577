"""Remote calls between the test process and the program process; only plain data is exchanged, no code and no secrets.

Standard library only, because it is loaded inside the sandbox. The tests run in a separate process and use proxies for
the program's objects: a call sends plain data over a socket and receives plain data, so the program controls its
results but not how they compare. Other objects stay in their process and are used through attributes, items, iteration
and calls.
"""

from __future__ import annotations

import builtins
import datetime
import functools
import importlib
import itertools
import json
import socket
import types
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

_SAFE_INT = 1 << 53
_BY_TEXT: dict[str, tuple[type[Any], Callable[[Any], str], Callable[[str], Any]]] = {
    "decimal": (Decimal, str, Decimal),
    "fraction": (Fraction, str, Fraction),
    "complex": (complex, repr, complex),
    "bytes": (bytes, lambda value: bytes(value).hex(), bytes.fromhex),
    "bytearray": (bytearray, lambda value: bytes(value).hex(), bytearray.fromhex),
    "datetime": (datetime.datetime, lambda value: value.isoformat(), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda value: value.isoformat(), datetime.date.fromisoformat),
    "time": (datetime.time, lambda value: value.isoformat(), datetime.time.fromisoformat),
}
_BY_ITEMS: dict[str, tuple[type[Any], Callable[[list[Any]], Any]]] = {
    "list": (list, list),
    "tuple": (tuple, tuple),
    "set": (set, set),
    "frozenset": (frozenset, frozenset),
    "deque": (deque, deque),
    "keys": (type({}.keys()), lambda items: dict.fromkeys(items).keys()),
    "values": (type({}.values()), lambda items: dict(enumerate(items)).values()),
}


_FOR_TESTS_ALONE = (AssertionError, StopIteration, StopAsyncIteration)


class ClosedError(Exception):
    """The other process has exited."""


class Channel:
    """One end of the socket: JSON lines, and the objects of this process that the other one can use."""

    def __init__(self, end: socket.socket) -> None:
        self.file = end.makefile("rwb")
        self.objects: list[Any] = []
        self.wrap: Callable[[int], Any] = lambda number: self.objects[number]

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            ClosedError: when the other process has exited.
        """
        try:
            self.file.write(json.dumps(message).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise ClosedError("the program has exited") from error

    def receive(self) -> dict[str, Any]:
        """Wait for one message.

        Raises:
            ClosedError: when the other process has exited.
        """
        line = self.file.readline()
        if not line:
            raise ClosedError("the program has exited")
        message: dict[str, Any] = json.loads(line)
        return message

    def encode(self, value: Any) -> Any:
        """Encode plain data as JSON, and any other object as its number in `objects`."""
        if value is None or isinstance(value, bool | str):
            return str(value) if isinstance(value, str) else value
        if isinstance(value, int):
            plain = int.__index__(value)
            return plain if abs(plain) < _SAFE_INT else {"t": "int", "v": hex(plain)}
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, Remote):
            return {"t": "remote", "v": object.__getattribute__(value, "_number")}
        for name, (kind, spell, _) in _BY_TEXT.items():
            if isinstance(value, kind):
                return {"t": name, "v": spell(value)}
        for name, (group, _) in _BY_ITEMS.items():
            if isinstance(value, group):
                return {"t": name, "v": [self.encode(item) for item in value]}
        if isinstance(value, dict):
            return {"t": "dict", "v": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if isinstance(value, range):
            return {"t": "range", "v": [value.start, value.stop, value.step]}
        if isinstance(value, types.ModuleType):
            return {"t": "module", "v": str(value.__name__)}
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            return self.encode(value.item())
        name = getattr(value, "__name__", "")
        if isinstance(value, type) and getattr(builtins, name, None) is value:
            return {"t": "type", "v": name}
        self.objects.append(value)
        return {"t": "object", "v": len(self.objects) - 1}

    def decode(self, data: Any) -> Any:
        """Decode a value; plain data gets exact built-in types."""
        if not isinstance(data, dict):
            return data
        name, inner = data["t"], data["v"]
        if name == "int":
            return int(inner, 16)
        if name in _BY_TEXT:
            return _BY_TEXT[name][2](inner)
        if name in _BY_ITEMS:
            return _BY_ITEMS[name][1]([self.decode(item) for item in inner])
        if name == "dict":
            return {self.decode(key): self.decode(item) for key, item in inner}
        if name == "range":
            return range(*inner)
        if name == "type":
            kind = getattr(builtins, inner)
            return kind if isinstance(kind, type) else None
        if name == "remote":  # for the sender; it is an object of this process
            return self.objects[inner]
        if name != "module":
            return self.wrap(inner)
        try:
            return importlib.import_module(inner)
        except ImportError:
            return types.ModuleType(inner)


class Caller(Channel):
    """The test process: sends requests, and serves only calls of functions that it passed as arguments."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self.wrap = lambda number: Remote(self, number)
        self.used = 0
        """How many operations on objects of the program the tests have run."""

    def names(self) -> dict[str, Any]:
        """Wait until the program has run, and return the names it defines, without those that Python reserves."""
        found = self._reply()
        return {str(name): self.decode(data) for name, data in found["names"].items() if not str(name).startswith("__")}

    def ask(self, op: str, number: int, *args: Any, **named: Any) -> Any:
        """Run an operation on an object of the program, and return its result.

        Args:
            op: a key of `_OPERATIONS`, or "call".
            number: the number of the object.
            args: the arguments.
            named: the keyword arguments.

        Raises:
            Exception: the built-in exception that the operation raised; RuntimeError for any other one.
        """
        self.used += 1
        self.send({"op": op, "on": number, "args": self.encode(args), "named": self.encode(named)})
        reply = self._reply()
        if op == "call":
            for old, new in zip([*args, *named.values()], self.decode(reply["after"]), strict=True):
                # Copy the new content of mutable arguments, as if they had been passed by reference.
                if type(old) is not type(new) or old == new:
                    continue
                if isinstance(old, list | bytearray):
                    old[:] = new
                elif isinstance(old, dict | set):
                    old.clear()
                    old.update(new)
        return self.decode(reply["value"])

    def _reply(self) -> dict[str, Any]:
        while True:
            reply = self.receive()
            if "error" in reply:
                kind = getattr(builtins, str(reply["error"]), None)
                # A StopIteration would end a loop of the tests over their own cases, as in `all(map(...))`.
                if not (isinstance(kind, type) and issubclass(kind, Exception)) or kind in _FOR_TESTS_ALONE:
                    kind = RuntimeError
                raise kind(f"{reply['error']}: {reply['text']}")
            if "back" not in reply:
                return reply
            function = self.objects[reply["back"]]
            self.send({"value": self.encode(function(*self.decode(reply["args"])))})


class Server(Channel):
    """The program process: executes requests on its objects."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self.wrap = lambda number: functools.partial(self._call_back, number)

    def _call_back(self, number: int, *args: Any) -> Any:
        """Call a function that the tests passed as an argument."""
        self.send({"back": number, "args": self.encode(args)})
        return self.decode(self.receive()["value"])

    def serve(self, names: dict[str, Any]) -> None:
        """Send the names, then answer requests until the tests have ended."""
        self.send({"names": {name: self.encode(value) for name, value in names.items() if not name.startswith("__")}})
        while True:
            try:
                message = self.receive()
            except ClosedError:
                return
            try:
                target, args = self.objects[message["on"]], self.decode(message["args"])
                if message["op"] == "call":
                    named = self.decode(message["named"])
                    value = self.encode(target(*args, **named))
                    self.send({"value": value, "after": self.encode([*args, *named.values()])})
                else:
                    self.send({"value": self.encode(_OPERATIONS[message["op"]](target, *args))})
            except ClosedError:
                return
            except BaseException as error:  # noqa: BLE001  # SystemExit too: the tests decide what it means
                self.send({"error": type(error).__name__, "text": str(error)[:500]})


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "get": getattr,
    "set": setattr,
    "item": lambda target, key: target[key],
    "put": lambda target, key, value: target.__setitem__(key, value),
    "in": lambda target, item: item in target,
    "same": lambda target, other: bool(target == other),
    "len": len,
    "str": str,
    "repr": repr,
    "bool": bool,
    "is": lambda target, value: isinstance(value, target),
    "iter": iter,
    "next": lambda iterator: list(itertools.islice(iterator, 1)),
}


def _forwarded(op: str, kind: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a method of `Remote` that runs an operation on the object and converts the result with `kind`."""
    return lambda remote, *args, **named: kind(_ask(remote, op, *args, **named))


def _ask(remote: Remote, op: str, *args: Any, **named: Any) -> Any:
    """Run an operation on an object. This is not a method, because the names of methods hide those of the object."""
    return remote._channel.ask(op, remote._number, *args, **named)


class Remote:
    """A proxy for an object of the program, used by the tests. It never equals plain data, whatever its class does."""

    _channel: Caller
    _number: int

    def __init__(self, channel: Caller, number: int) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)

    __call__ = _forwarded("call")
    __getattr__ = _forwarded("get")
    __setattr__ = _forwarded("set")
    __getitem__ = _forwarded("item")
    __setitem__ = _forwarded("put")
    __contains__ = _forwarded("in", bool)
    __len__ = _forwarded("len", int)
    __bool__ = _forwarded("bool", bool)
    __str__ = _forwarded("str", str)
    __repr__ = _forwarded("repr", str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and bool(_ask(self, "same", other))

    def __instancecheck__(self, value: object) -> bool:
        return bool(_ask(self, "is", value))

    def __hash__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Any]:
        iterator = _ask(self, "iter")
        while found := _ask(iterator, "next"):
            yield found[0]

    def __next__(self) -> Any:
        found = _ask(self, "next")
        if not found:
            raise StopIteration
        return found[0]
