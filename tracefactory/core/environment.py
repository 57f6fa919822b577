"""What a declared model is read with: values from environment variables, and the surroundings of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Frozen

_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")


class EnvStr(str):
    """A string, or "env:NAME": then the value is read from the environment when it is needed and kept nowhere."""

    __slots__ = ()

    @property
    def env_name(self) -> str | None:
        """The NAME of "env:NAME", or None for a plain string."""
        found = _ENV.fullmatch(self)
        return found[1] if found else None

    def resolve(self, environ: Mapping[str, str]) -> str:
        """Return the value.

        Raises:
            UserError: when the environment variable is unset or empty.
        """
        name = self.env_name
        if name is None:
            return str(self)
        value = environ.get(name, "")
        if not value:
            raise UserError(f"the environment variable {name} is not set")
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls._checked,
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
        )

    @classmethod
    def _checked(cls, text: str) -> EnvStr:
        if text.startswith("env:") and not _ENV.fullmatch(text):
            raise ValueError("after env: comes the name of an environment variable (letters, digits, underscores)")
        return cls(text)


@dataclass(frozen=True)
class Environment:
    """The surroundings a spec is read in: the folder relative paths start from, and the environment.

    In a run also where servers of our own are placed (a `serving.vllm.replica.Placement`), and the folder that tells of
    servers kept for several runs.
    """

    root: Path = field(default_factory=Path.cwd)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    placement: Any = None
    servers: Path | None = None


def env_names(spec: Frozen) -> list[str]:
    """Return the names of the environment variables that a model, or the parameters of a stage, read."""
    names: set[str] = set()
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        for item in items:
            if isinstance(item, EnvStr) and item.env_name:
                names.add(item.env_name)
            elif isinstance(item, Frozen):
                names.update(env_names(item))
    return sorted(names)
