"""Models served with a plugin: how their servers start, and that a plugin's modules stand alone."""

import json
import subprocess
import sys

import pytest

from tracefactory.decoding.vllm_specs import DraftingSpec, FusedSpec
from tracefactory.serving.vllm.plugins.plugin_dir import PACKAGE, PLUGINS, write_plugin


def option(plan, name):
    return plan.arguments[plan.arguments.index(name) + 1]


def test_a_drafting_server_is_the_same_model_with_the_plugin_and_is_shared_with_no_other(stand_in):
    environment, plain = stand_in.environment(), stand_in.spec()
    spec = DraftingSpec.model_validate(plain.model_dump())
    plan = spec.plan(environment)
    assert spec.identity(environment) == plain.identity(environment)
    assert spec.sharing_key(environment) != plain.sharing_key(environment)
    assert (plan.plugin, option(plan, "--logits-processors")) == ("noise", "tracefactory_vllm.draft_noise:DraftNoise")
    assert plan.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert plain.plan(environment).plugin == ""


def test_a_fused_server_has_the_student_as_target_and_the_teacher_as_draft_model(stand_in, tmp_path):
    environment = stand_in.environment()
    teacher = stand_in.spec()
    longer = {"speculative_config": {"num_speculative_tokens": 3}}
    for given, length in (({}, 8), (longer, 3)):
        student = stand_in.spec(engine_args=given)
        plan = FusedSpec.of(student, teacher, environment).plan(environment)
        assert plan.arguments.count("--speculative-config") == 1
        speculative = json.loads(option(plan, "--speculative-config"))
        assert speculative == {
            "method": "draft_model",
            "model": teacher.checkpoint(environment).model,
            "num_speculative_tokens": length,
        }
        assert "--no-async-scheduling" in plan.arguments
        assert plan.plugin == "fused"
    other = FusedSpec.of(stand_in.spec(), teacher.model_copy(update={"model": student.model}), environment)
    renamed = FusedSpec.model_validate({**other.model_dump(), "teacher": "/another"})
    assert other.sharing_key(environment) != renamed.sharing_key(environment)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugins_modules_need_nothing_of_this_package(plugin, tmp_path):
    """vLLM's environment has numpy and torch, and not what this package needs."""
    write_plugin(tmp_path / "plugin", plugin)
    code = f"""
import importlib, importlib.metadata, sys
sys.path = [one for one in sys.path if one]
for module in ("noise", "candidates", "acceptance", *{[PLUGINS[plugin]] if plugin == "fused" else []}):
    importlib.import_module("{PACKAGE}." + module)
print([one for one in sys.modules if one.split(".")[0] in ("tracefactory", "pydantic", "pyarrow")])
print([one.value for one in importlib.metadata.entry_points(group="vllm.general_plugins")])
"""
    environ = {"PYTHONPATH": str(tmp_path / "plugin"), "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    found, points = done.stdout.splitlines()
    assert found == "[]"
    assert points == (f"['{PACKAGE}.fused_decoding:install']" if plugin == "fused" else "[]")
    for file in (tmp_path / "plugin" / PACKAGE).glob("*.py"):
        assert "tracefactory." not in file.read_text()
