"""Filter files: read, checked all at once, and run on any machine from their source alone."""

from __future__ import annotations

import ast
import functools
import linecache
import math
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import digest
from tracefactory.core.schema import Trace
from tracefactory.filters.api import Decision, FilterFailed, FilterMark, Params, mark_of
from tracefactory.filters.checks import check_function, check_source, one_filter
from tracefactory.filters.digests import source_digest


@dataclass(frozen=True)
class _Compiled:
    decide: Callable[..., Any]
    takes_params: bool
    params_model: type[Params]
    mark: FilterMark


@dataclass(frozen=True)
class LoadedFilter:
    """One filter, as plain text: it pickles to a machine that has no such file and is compiled there on first use.

    Parameter objects do not travel (their class lives in the filter's file): send the plain values, and build the
    object with `params_model.model_validate(values)` where the filter runs.

    Attributes:
        name: the name of the file and of the function.
        file: where the source was read from, for messages only.
        source: the text of the file.
        digest: of what the source does: comments, layout and docstrings do not count.
        doc: the docstring of the function.
        reasons: the drop reasons that are written in the source, in order.
    """

    name: str
    file: Path
    source: str
    digest: str
    doc: str
    reasons: tuple[str, ...]

    @property
    def params_model(self) -> type[Params]:
        """The model of its parameters; a filter without any has an empty model."""
        return self._compiled.params_model

    @property
    def needs(self) -> tuple[str, ...]:
        """What its measuring half has to be given by keyword, such as a student."""
        return self._compiled.mark.needs

    @property
    def measures(self) -> bool:
        """Whether it has a measuring half."""
        return self._compiled.mark.measure is not None

    def decide(self, trace: Trace, params: Params) -> Any:
        """Call the filter's function as it is; `apply` is the same with failures told apart from decisions."""
        compiled = self._compiled
        return compiled.decide(trace, params) if compiled.takes_params else compiled.decide(trace)

    def run_measure(self, trace: Trace, params: Params, **needs: object) -> Any:
        """Call the measuring half as it is; `measure` is the same, checked."""
        function = self._compiled.mark.measure
        if function is None:
            raise TypeError(f"filter {self.name!r} measures nothing")
        return function(trace, params, **needs)

    @property
    def _compiled(self) -> _Compiled:
        return _compile(self.name, str(self.file), self.source)


class FilterSet(Mapping[str, LoadedFilter]):
    """The filters of a project, by name."""

    def __init__(self, filters: Mapping[str, LoadedFilter]) -> None:
        self._filters = dict(sorted(filters.items()))

    def __getitem__(self, name: str) -> LoadedFilter:
        return self._filters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._filters)

    def __len__(self) -> int:
        return len(self._filters)

    def named(self, name: str) -> LoadedFilter:
        """Return the filter called `name`.

        Raises:
            UserError: with the nearest name.
        """
        if name not in self._filters:
            raise UserError(Mistake(f"unknown filter {name!r}", hint=nearest(name, self._filters)))
        return self._filters[name]


def load_filters(folder: Path) -> FilterSet:
    """Load every `*.py` of a folder as a filter; a folder that does not exist holds none.

    Raises:
        UserError: with everything that is wrong in any of the files, as file:line.
    """
    filters: dict[str, LoadedFilter] = {}
    mistakes: list[Mistake] = []
    for file in sorted(folder.glob("*.py")):
        try:
            loaded = _load(file)
        except UserError as error:
            mistakes += error.mistakes
        else:
            filters[loaded.name] = loaded
    if mistakes:
        raise UserError(mistakes)
    return FilterSet(filters)


def apply(loaded: LoadedFilter, trace: Trace, params: Params) -> Decision:
    """Return what a filter decides for a trace.

    Raises:
        FilterFailed: when the filter raises or returns anything but a Decision; the caller records an error row.
    """
    try:
        decision = loaded.decide(trace, params)
    except Exception as error:
        raise FilterFailed(loaded.name, trace.id, _traceback_text(error, str(loaded.file))) from error
    if not isinstance(decision, Decision):
        raise FilterFailed(loaded.name, trace.id, f"it returned {decision!r} instead of KEEP or drop(...)")
    return decision


def measure(loaded: LoadedFilter, trace: Trace, params: Params, **needs: object) -> dict[str, float]:
    """Return what a filter measures on a trace, named "<filter>/<name>" as `trace.measures` holds it.

    Raises:
        FilterFailed: when it raises, or returns anything but a mapping of names to finite numbers.
    """
    try:
        measured = loaded.run_measure(trace, params, **needs)
    except Exception as error:
        raise FilterFailed(loaded.name, trace.id, _traceback_text(error, str(loaded.file))) from error
    fits = isinstance(measured, Mapping) and all(
        isinstance(name, str) and isinstance(value, (int, float)) and math.isfinite(value)
        for name, value in measured.items()
    )
    if not fits:
        raise FilterFailed(loaded.name, trace.id, f"it measured {measured!r} instead of names with finite numbers")
    return {f"{loaded.name}/{name}": float(value) for name, value in measured.items()}


def _load(file: Path) -> LoadedFilter:
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source, str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise UserError(Mistake(f"not Python: {getattr(error, 'msg', error)}", file, line)) from error
    name, reasons = file.stem, check_source(file, tree)
    function = one_filter(file, tree)
    _compile(name, str(file), source)  # a filter that cannot run is found here and not on a worker
    return LoadedFilter(name, file, source, source_digest(tree), ast.get_docstring(function) or "", reasons)


@functools.lru_cache(maxsize=1024)
def _compile(name: str, file: str, source: str) -> _Compiled:
    """Run the source as a module of its own and check the function in it.

    Raises:
        UserError: when the module does not run or the function is not a filter.
    """
    module = types.ModuleType(f"tracefactory_filter_{name}_{digest(source)[:12]}")
    module.__file__ = file
    # Models and dataclasses look their module up by name; tracebacks look their lines up by file name, and the file
    # need not exist on this machine.
    sys.modules[module.__name__] = module
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        line = next((f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == file), None)
        raise UserError(Mistake(f"does not load: {type(error).__name__}: {error}", Path(file), line)) from error
    function = getattr(module, name, None)
    mark = mark_of(function)
    if not isinstance(function, types.FunctionType) or mark is None:
        raise UserError(Mistake(f"{name} is not a function decorated with trace_filter", Path(file)))
    params_model = check_function(function, mark, Path(file))
    return _Compiled(function, params_model is not None, params_model or Params, mark)


def _traceback_text(error: Exception, file: str) -> str:
    """Return the traceback from the filter's own file on: the frames of the engine above it tell a user nothing."""
    step = error.__traceback__
    while step is not None and step.tb_frame.f_code.co_filename != file:
        step = step.tb_next
    return "".join(traceback.format_exception(type(error), error, step or error.__traceback__))
