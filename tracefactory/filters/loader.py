"""Load and check filter files; a loaded filter runs on any machine from its source alone."""

from __future__ import annotations

import ast
import functools
import linecache
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tracefactory.core.decisions import Decision
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Kind, Row
from tracefactory.core.source_code import line_of, source_digest
from tracefactory.core.tables import frame_of
from tracefactory.filters.api import FilterFailed, FilterMark, Params, Rule, mark_of
from tracefactory.filters.checks import check_function, check_source


@dataclass(frozen=True)
class _Compiled:
    function: Callable[..., Any]
    params_model: type[Params]
    takes_params: bool
    mark: FilterMark
    kind: Kind | None


@dataclass(frozen=True)
class LoadedFilter:
    """One filter as text, which can be pickled to a machine without the file and is compiled there on first use.

    Parameter objects cannot be pickled, because their class is in the filter's file: send the plain values, and build
    the object with `params_model.model_validate(values)` where the filter runs.

    Attributes:
        name: the name of the file and of the function.
        file: where the source was read from, for messages only.
        source: the text of the file.
        digest: the digest of the source, without comments, layout and docstrings, and of the files that it declares.
        doc: the docstring of the function.
        reasons: the drop reasons that are written in the source, in order.
        files: the texts of the files it declares, by name.
    """

    name: str
    file: Path
    source: str
    digest: str
    doc: str
    reasons: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def params_model(self) -> type[Params]:
        """The model of its parameters; it is empty for a filter without parameters."""
        return self._compiled.params_model

    @property
    def on_columns(self) -> bool:
        """Whether it decides from columns alone."""
        return self._compiled.mark.columns

    @property
    def kind(self) -> Kind | None:
        """The kind of its rows; None for a filter on both kinds, or on columns, which takes all rows that have them."""
        return self._compiled.kind

    def rules(self, params: Params) -> list[Rule]:
        """Return the rules of a filter on columns."""
        return list(self._call(params))

    def decide(self, row: Row, params: Params) -> Any:
        """Return the result of the filter's function for a row; `apply` also checks it and reports failures."""
        if self.on_columns:
            return first_rule(frame_of([row]), self.rules(params))[0]
        return self._call(row, params)

    def _call(self, *arguments: Any) -> Any:
        compiled = self._compiled
        given = arguments if compiled.takes_params else arguments[:-1]
        return compiled.function(*given, **({"files": self.files} if compiled.mark.files else {}))

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
        """Return the filter with a name.

        Raises:
            UserError: for an unknown name, with the nearest one.
        """
        if name not in self._filters:
            raise UserError(Mistake(f"unknown filter {name!r}", hint=nearest(name, self._filters)))
        return self._filters[name]


def load_filters(folder: Path) -> FilterSet:
    """Load every filter of a folder, see `read_filters`.

    Raises:
        UserError: with the mistakes of all files, as file:line.
    """
    mistakes: list[Mistake] = []
    filters = read_filters(folder, mistakes)
    if mistakes:
        raise UserError(mistakes)
    return filters


def read_filters(folder: Path, mistakes: list[Mistake]) -> FilterSet:
    """Load the valid `*.py` files of a folder as filters; there are none when the folder does not exist.

    The files that a filter declares are relative to the project, which is the parent of the folder.

    Args:
        folder: the folder.
        mistakes: the list to which the mistakes in other files are added, as file:line.
    """
    filters: dict[str, LoadedFilter] = {}
    for file in sorted(folder.glob("*.py")):
        try:
            loaded = _load(file)
        except UserError as error:
            mistakes += error.mistakes
        else:
            filters[loaded.name] = loaded
    return FilterSet(filters)


def apply(loaded: LoadedFilter, row: Row, params: Params) -> Decision:
    """Return the decision of a filter on a row.

    Raises:
        FilterFailed: when the filter raises, or returns something other than a Decision; the caller records a failed
            row.
    """
    try:
        decision = loaded.decide(row, params)
    except Exception as error:
        step = error.__traceback__  # without the frames of the engine above those of the filter's file
        while step is not None and step.tb_frame.f_code.co_filename != str(loaded.file):
            step = step.tb_next
        text = "".join(traceback.format_exception(type(error), error, step or error.__traceback__))
        raise FilterFailed(loaded.name, row.id, text) from error
    if not isinstance(decision, Decision):
        raise FilterFailed(loaded.name, row.id, f"it returned {decision!r} instead of KEEP or drop(...)")
    return decision


def first_rule(frame: pl.DataFrame, rules: list[Rule]) -> list[Decision]:
    """Return the decision on each row of a frame; the first rule that is true drops it.

    Args:
        frame: the rows.
        rules: the rules, in order.
    """
    found = with_rules(frame, rules)
    return [Decision(reason, detail) for reason, detail in found.select("reason", "detail").iter_rows()]


def with_rules(frame: pl.DataFrame, rules: list[Rule]) -> pl.DataFrame:
    """Return a frame with `reason` and `detail` of the first rule that is true for each row.

    Args:
        frame: the rows; a column that it lacks is null in the rules.
        rules: the rules, in order.
    """
    needed = {name for rule in rules for one in (rule.when, rule.detail) for name in one.meta.root_names()}
    absent = [pl.lit(None, pl.Float64).alias(name) for name in sorted(needed - set(frame.columns))]
    frame = frame.with_columns(absent)
    reason, detail = pl.lit(None, pl.String), pl.lit(None, pl.String)
    for rule in reversed(rules):
        reason = pl.when(rule.when).then(pl.lit(rule.reason)).otherwise(reason)
        detail = pl.when(rule.when).then(rule.detail).otherwise(detail)
    return frame.with_columns(reason=reason, detail=detail)


def _load(file: Path) -> LoadedFilter:
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source, str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise UserError(Mistake(f"not Python: {getattr(error, 'msg', error)}", file, line)) from error
    name = file.stem
    function, reasons = check_source(file, tree)
    compiled = _compile(name, str(file), source)  # so that a filter that cannot run fails here and not on a worker
    files = _read_files(compiled.mark.files, file, function.lineno)
    own = source_digest(tree)
    whole = digest({"source": own, "files": {one: digest(text) for one, text in files.items()}}) if files else own
    return LoadedFilter(name, file, source, whole, ast.get_docstring(function) or "", reasons, files)


def _read_files(names: tuple[str, ...], file: Path, line: int) -> dict[str, str]:
    root = file.parent.parent
    found: dict[str, str] = {}
    mistakes: list[Mistake] = []
    for name in names:
        path = root / name
        try:
            found[name] = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            beside = [one.name for one in path.parent.glob("*")] if path.parent.is_dir() else []
            hint = nearest(path.name, beside) or f"looked for in {root}"
            mistakes.append(Mistake(f"its file {name!r} is not there", file, line, hint))
        except UnicodeDecodeError as error:
            mistakes.append(Mistake(f"its file {name!r} is no UTF-8 text: {error.reason}", file, line))
    if mistakes:
        raise UserError(mistakes)
    return found


@functools.lru_cache(maxsize=1024)
def _compile(name: str, file: str, source: str) -> _Compiled:
    """Run the source as a new module and check the function in it.

    Raises:
        UserError: when the module does not run or the function is not a filter.
    """
    module = types.ModuleType(f"tracefactory_filter_{name}_{digest(source)[:12]}")
    module.__file__ = file
    # Models and dataclasses look up their module by name. Tracebacks look up lines by file name, and the file may not
    # exist on this machine.
    sys.modules[module.__name__] = module
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        message = f"does not load: {type(error).__name__}: {error}"
        raise UserError(Mistake(message, Path(file), line_of(error, file))) from error
    function = getattr(module, name, None)
    mark = mark_of(function)
    if not isinstance(function, types.FunctionType) or mark is None:
        raise UserError(Mistake(f"{name} is not a function decorated with trace_filter or column_filter", Path(file)))
    kind, params_model = check_function(function, mark, Path(file))
    return _Compiled(function, params_model or Params, params_model is not None, mark, kind)
