"""`tracefactory filters`."""

from __future__ import annotations

from pathlib import Path

from tracefactory.cli.options import Json, ProjectFolder
from tracefactory.config.project import find_project
from tracefactory.core.fingerprint import canonical
from tracefactory.filters import LoadedFilter, load_filters


def filters(project: ProjectFolder = Path(), json: Json = False) -> None:
    """List the filters of the project with their parameters and drop reasons."""
    found = load_filters(find_project(project).filters)
    if json:
        facts = [
            {"name": one.name, "doc": one.doc, "params": _parameters(one), "reasons": one.reasons, "digest": one.digest}
            for one in found.values()
        ]
        print(canonical(facts))
        return
    for one in found.values():
        print(f"{one.name}: {' '.join(one.doc.split())}")
        for name, about in _parameters(one).items():
            print(f"    {name}: {about}")
        print(f"    drops for: {', '.join(one.reasons)}")


def _parameters(one: LoadedFilter) -> dict[str, str]:
    return {
        name: f"{getattr(field.annotation, '__name__', field.annotation)}"
        + ("" if field.is_required() else f" = {field.get_default(call_default_factory=True)!r}")
        for name, field in one.params_model.model_fields.items()
    }
