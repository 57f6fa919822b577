"""Remote calls between the test process and the program process; only plain data is exchanged, no code and no secrets.

Standard library only, because it is loaded inside the sandbox. The tests run in a separate process and use proxies for
the program's objects: a call sends plain data over a socket and receives plain data, so the program controls its
results but not how they compare. Other objects stay in their process and are used through attributes, items, iteration
and calls.
"""

from __future__ import annotations

import builtins
import datetime
import importlib
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


class ClosedError(Exception):
    """The other process has exited."""


class Channel:
    """One end of the socket: JSON lines, and the objects of this process that the other one can use."""

    def __init__(self, end: socket.socket) -> None:
        self.file = end.makefile("rwb")
        self.objects: list[Any] = []
        self.wrap: Callable[[int], Any] = lambda number: self.objects[number]

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.file.write(json.dumps(message).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise ClosedError("the program has exited") from error

    def receive(self) -> dict[str, Any]:
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
        return self.module(inner) if name == "module" else self.wrap(inner)

    def module(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError:
            return types.ModuleType(name)


class Caller(Channel):
    """The test process: sends requests, and serves only calls of functions that it passed as arguments."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self.wrap = lambda number: Remote(self, number)

    def names(self) -> dict[str, Any]:
        """Wait until the program has run, and return the names it defines."""
        found = self._reply()
        return {str(name): self.decode(data) for name, data in found["names"].items()}

    def ask(self, op: str, number: int, *args: Any, **named: Any) -> Any:
        self.send({"op": op, "on": number, "args": self.encode(args), "named": self.encode(named)})
        reply = self._reply()
        if op == "call":
            for old, new in zip([*args, *named.values()], self.decode(reply["after"]), strict=True):
                _write_back(old, new)
        return self.decode(reply["value"])

    def _reply(self) -> dict[str, Any]:
        while True:
            reply = self.receive()
            if "error" in reply:
                kind = getattr(builtins, str(reply["error"]), None)
                if not (isinstance(kind, type) and issubclass(kind, Exception)) or kind is AssertionError:
                    kind = RuntimeError
                raise kind(f"{reply['error']}: {reply['text']}")
            if "back" not in reply:
                return reply
            function = self.objects[reply["back"]]
            self.send({"value": self.encode(function(*self.decode(reply["args"])))})


def _write_back(old: Any, new: Any) -> None:
    """Copy the content that a mutable argument has after the call, as if it had been passed by reference."""
    if type(old) is not type(new) or old == new:
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)


class Server(Channel):
    """The program process: executes requests on its objects."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self.wrap = self._callback

    def _callback(self, number: int) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.send({"back": number, "args": self.encode(args)})
            return self.decode(self.receive()["value"])

        return call

    def serve(self, names: dict[str, Any]) -> None:
        """Send the names, then answer requests until the tests have ended."""
        self.send({"names": {name: self.encode(value) for name, value in names.items() if not name.startswith("__")}})
        while True:
            try:
                message = self.receive()
            except ClosedError:
                return
            try:
                self.send(self._answer(message))
            except ClosedError:
                return
            except BaseException as error:  # noqa: BLE001  # SystemExit too: the tests decide what it means
                self.send({"error": type(error).__name__, "text": str(error)[:500]})

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        target, args, named = self.objects[message["on"]], self.decode(message["args"]), self.decode(message["named"])
        if message["op"] == "call":
            value = target(*args, **named)
            return {"value": self.encode(value), "after": self.encode([*args, *named.values()])}
        return {"value": self.encode(_OPERATIONS[message["op"]](target, *args))}


def _advance(iterator: Iterator[Any]) -> list[Any]:
    for item in iterator:
        return [item]
    return []


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
    "iter": iter,
    "next": _advance,
}


class Remote:
    """A proxy for an object of the program, used by the tests. It never equals plain data, whatever its class does."""

    _channel: Caller
    _number: int

    def __init__(self, channel: Caller, number: int) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)

    def _ask(self, op: str, *args: Any, **named: Any) -> Any:
        return self._channel.ask(op, self._number, *args, **named)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._ask("call", *args, **named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("put", key, value)

    def __contains__(self, item: Any) -> bool:
        return bool(self._ask("in", item))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and bool(self._ask("same", other))

    def __hash__(self) -> int:
        return self._number

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __bool__(self) -> bool:
        return bool(self._ask("bool"))

    def __str__(self) -> str:
        return str(self._ask("str"))

    def __repr__(self) -> str:
        return str(self._ask("repr"))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._ask("iter")
        while found := iterator._ask("next"):
            yield found[0]

    def __next__(self) -> Any:
        found = self._ask("next")
        if not found:
            raise StopIteration
        return found[0]
