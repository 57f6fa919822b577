"""Templates of prompts within a budget of time and size, whatever a template says.

The sandbox of Jinja (https://jinja.palletsprojects.com/en/stable/sandbox/) keeps a template from the machine, but not
from its time and memory: it bounds one `range`, and neither nested loops nor `'x' * 10**9`. Here every iteration, call,
filter and output is counted, and what makes a text longer than its arguments is refused before it is made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_CHARS = 4 << 20
"""Characters of a rendered text, and of every text that a template makes on the way."""
MOST_STEPS = 300_000
"""Iterations, calls and filters of one rendering."""
MOST_WORK = 64 << 20
"""Characters that one rendering may go through, over all steps."""
MOST_SECONDS = 10.0
"""Seconds of one rendering, where the other limits have not ended it."""

MOST_RANGE = 100_000
"""Numbers of one `range`, as in Jinja's own sandbox."""

_NUMERIC = frozenset({"abs", "d", "default", "float", "int", "max", "min", "round", "sum"})
"""Filters whose numbers are values, not lengths."""
# A width in a format: one of five digits is 10,000 and more; `*` and nested braces take it from a value.
_PERCENT = re.compile(r"%(\([^)]*\))?[-+ #0]*[0-9]{0,4}\.?(\*|[0-9]{5,})")
_BRACES = re.compile(r"\{[^{}]*:[^{}]*([0-9]{5,}|\{)")
_ITEM = 8  # what an item of a collection counts, as so many characters: its place takes 8 bytes
_MOST_BITS = 4096  # of a whole number that a template computes


class OverBudget(SecurityError):  # noqa: N818  # what it says, not that it is an error, is for the user
    """A template that would take too long or become too large."""


class _Spent:
    """What one rendering has taken, and the characters that it may make: `MOST_CHARS` and four times its values.

    The values are the row's own, which can be as long as they are; a template must not make them much longer.
    """

    def __init__(self, given: int) -> None:
        self.steps = self.work = 0
        self.chars = MOST_CHARS + 4 * given
        self.most_work = MOST_WORK + 64 * given
        self.end = time.monotonic() + MOST_SECONDS

    def take(self, work: int = 0) -> None:
        self.steps += 1
        self.work += work
        if self.steps > MOST_STEPS:
            raise OverBudget(f"it takes more than {MOST_STEPS:,} steps")
        if self.work > self.most_work:
            raise OverBudget(f"it goes through more than {self.most_work:,} characters")
        if time.monotonic() > self.end:
            raise OverBudget(f"it takes longer than {MOST_SECONDS:g} s")


_SPENT: ContextVar[_Spent | None] = ContextVar("template_budget", default=None)


def render(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """Return a template of a `BudgetedEnvironment` with its values filled in.

    Raises:
        OverBudget: when it takes too long or becomes too large.
        Exception: what an expression of the template raises.
    """
    before = _SPENT.set(_Spent(sum(len(value) for value in values.values() if isinstance(value, str))))
    try:
        parts, size = [], 0
        for part in template.generate(values):
            parts.append(part)
            _fit(size := size + len(part), "the text")
        return "".join(parts)
    finally:
        _SPENT.reset(before)


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, whose templates can only be rendered within the budget."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_counted_output, **options)
        self.globals["range"] = _range
        self.filters = {name: _guarded(name, made) for name, made in self.filters.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            static = sum(len(one.data) for part in loop.body for one in _static(part))
            loop.iter = _call("counted_items", loop.iter, nodes.Const(static))
        for joined in list(tree.find_all(nodes.Concat)):
            joined.nodes = [_call("checked_parts", nodes.List(joined.nodes))]
        return tree

    def counted_items(self, items: Any, static: int) -> Iterator[Any]:
        """Yield items of a loop, each of which takes a step and the text that is written in the loop."""
        return _counted(items, static)

    def checked_parts(self, parts: list[Any]) -> str:
        """Return texts one after another: what `~` does."""
        texts = [str(part) for part in parts]
        _fit(sum(map(len, texts)), "a text")
        _take(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return what an operator makes of two values, unless it is too large."""
        _check_operator(operator, left, right)
        return _made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what a template calls: its macros, `range`, methods of values."""
        # The sandbox wraps `str.format`, and names what it wraps.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            _check_growth(getattr(__obj, "__name__", ""), owner, args, kwargs)
        _take(sum(map(_size, (owner, *args, *kwargs.values()))))
        return _made(super().call(__context, __obj, *args, **kwargs))


def trial(template: jinja2.Template, values: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return why a template is over the budget, and its line; None when it is not, or fails for another reason.

    Args:
        template: the template.
        values: values of the kind that it gets, which say nothing about how they grow with the row.
    """
    try:
        render(template, values)
    except OverBudget as error:
        lines = [frame.tb_lineno for frame in _frames(error) if frame.tb_frame.f_code.co_filename == "<template>"]
        return str(error), (lines or [1])[-1]
    except Exception:  # noqa: BLE001  # made-up values fit no template; what it does with those of rows shows in a run
        return None
    return None


def _frames(error: BaseException) -> Iterator[Any]:
    """Yield the places of a traceback, in which Jinja writes the lines of the template."""
    place = error.__traceback__
    while place is not None:
        yield place
        place = place.tb_next


def _call(name: str, *given: nodes.Node) -> nodes.Call:
    """Return the call of a method of the environment, in a template's tree."""
    called = nodes.Call(nodes.EnvironmentAttribute(name), list(given), [], None, None)
    called.set_lineno(given[0].lineno or 1)
    return called


def _static(part: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(part, nodes.TemplateData):
        yield part
    yield from part.find_all(nodes.TemplateData)


def _counted(items: Any, static: int) -> Iterator[Any]:
    for item in items:
        _take(static)
        yield item


def _counted_output(value: Any) -> Any:
    _take(_size(value))
    _fit(_size(value), "the text")
    return value


def _guarded(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    # The attributes by which Jinja knows what a filter is passed are copied too.
    @wraps(made)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        subject, *rest = args[1:] if hasattr(made, "jinja_pass_arg") else args
        _check_growth(name, subject, tuple(rest), kwargs)
        _take(_size(subject))
        return _made(made(*args, **kwargs))

    return filtered


def _check_operator(operator: str, left: Any, right: Any) -> None:
    _take()
    if isinstance(left, int) and isinstance(right, int):
        bits = (left.bit_length(), right.bit_length())
        made = {"**": bits[0] * max(right, 0), "*": sum(bits)}.get(operator, max(bits))
        if made > _MOST_BITS:
            raise OverBudget(f"a number has more than {_MOST_BITS:,} bits")
    elif operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(times, int):
                _fit(_size(many) * max(times, 0), "a value")
    elif operator == "+":
        _fit(_size(left) + _size(right), "a value")
    elif operator == "%" and isinstance(left, str):
        _check_format(left, (right,))


def _check_growth(name: str, subject: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse filters and methods whose result would be much larger than what they are given.

    Args:
        name: the name of the filter or method.
        subject: what it is applied to.
        args: its arguments.
        kwargs: its named arguments.
    """
    given = [*args, *kwargs.values()]
    numbers = [one for one in given if isinstance(one, int)]
    if name not in _NUMERIC and any(one > MOST_CHARS for one in numbers):
        raise OverBudget(f"{name} gets a number larger than {MOST_CHARS:,}")
    longest = max([_size(one) for one in given if not isinstance(one, int)] + [0])
    _fit(size := _size(subject), "a value")
    match name:
        case "replace" | "join" | "translate":
            _fit(_pieces(subject, given) * longest + size, "a value")
        case "indent" | "wordwrap" | "expandtabs" | "tojson":
            lines = size if name == "wordwrap" else str(subject).count("\n") + str(subject).count("\t") + 1
            _fit(lines * max([*numbers, longest, 1]) * (name != "wordwrap" or longest > 1), "a value")
        case "format" | "format_map":
            _check_format(str(subject), tuple(given))
        case "batch" | "slice":
            _fit(max([*numbers, 0]), "a value")


def _pieces(subject: Any, given: list[Any]) -> int:
    """Return how often a text can be put into another: as often as the one that it replaces is there."""
    if isinstance(subject, str) and given and isinstance(given[0], str) and len(given) > 1:
        return subject.count(given[0])
    return _size(subject) if hasattr(subject, "__len__") else MOST_STEPS


def _check_format(pattern: str, given: tuple[Any, ...]) -> None:
    """Refuse widths of 10,000 and more, and those that are values."""
    if _PERCENT.search(pattern) or _BRACES.search(pattern):
        raise OverBudget("a format has a width of 10,000 or more, or one that is a value")
    places = pattern.count("{") + pattern.count("%")
    _fit(len(pattern) + places * max([_size(one) for one in given] + [0]), "a value")


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if len(range(*(max(-(1 << 60), min(one, 1 << 60)) for one in bounds))) > MOST_RANGE:
        raise OverBudget(f"a range has more than {MOST_RANGE:,} numbers")
    return made


def _made(value: Any) -> Any:
    """Return a value that a template has made, which is counted."""
    size = _size(value)
    _fit(size, "a value")
    _take(size)
    return value


def _size(value: Any) -> int:
    """Return the characters and items of a value with all that is in it, as far as a text may be long.

    A list that holds another one many times is small in memory, and large as soon as it is written.
    """
    if isinstance(value, str | bytes):
        return len(value)
    size, todo = 0, [value]
    while todo and size <= _most_chars():
        one = todo.pop()
        size += len(one) if isinstance(one, str | bytes) else _ITEM
        if isinstance(one, Namespace):
            one = object.__getattribute__(one, "_Namespace__attrs")
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            todo += one
    return size


def _most_chars() -> int:
    spent = _SPENT.get()
    return MOST_CHARS if spent is None else spent.chars


def _fit(size: int, what: str) -> None:
    if size > (most := _most_chars()):
        raise OverBudget(f"{what} has more than {most:,} characters")


def _take(work: int = 0) -> None:
    if (spent := _SPENT.get()) is not None:
        spent.take(work)
