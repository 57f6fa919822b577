"""`use: fake`: the deterministic fake teacher in a separate process; see `tracefactory.serving.fake_server`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.model import MODELS, Endpoint, ModelSpec
from tracefactory.serving.fake_script import FakeScript
from tracefactory.serving.managed import ManagedEndpoint


@MODELS.register("fake")
class FakeSpec(ModelSpec):
    """A scripted teacher for tests of pipelines, filters and clients."""

    provider_label: ClassVar[str] = "fake"
    sends_bills = False

    use: Literal["fake"] = Field(default="fake", description="The kind of model.")
    model: str = Field(default="fake", description="A name; another one is another model.")
    script: FakeScript = Field(default_factory=FakeScript, description="How it behaves.")
    request_log: EnvStr = Field(
        default=EnvStr(""), description="A file, from the project's folder, that every request is appended to."
    )

    def identity(self, environment: Environment | None = None) -> dict[str, Any]:
        """Return what decides completions: of the script, not the faults and latencies."""
        return {**super().identity(environment), "script": self.script.identity()}

    def endpoint(self, environment: Environment) -> Endpoint:
        """Return the server process, not started yet."""
        options: dict[str, str | int | float] = {"script": self.script.model_dump_json()}
        if self.request_log:
            options["request-log"] = str(environment.root / self.request_log.resolve(environment.environ))
        return ManagedEndpoint(f"fake model {self.model}", "tracefactory.serving.fake_server", options)
