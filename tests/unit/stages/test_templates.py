"""Chat templates at `tracefactory check`, at publish and in `tracefactory render`, before anything is paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("transformers")

from typer.testing import CliRunner

from tests.unit.students.conftest import gguf
from tracefactory.cli import app
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.rows import Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.publish.students import StudentCheck, unrendered
from tracefactory.publish.views import VIEWS, Group
from tracefactory.serving.templates import template_at_hand
from tracefactory.students.render import Renderer
from tracefactory.testing.templates import shipped, with_template
from tracefactory.text.chat_templates import ChatTemplate, RenderError

HEAD = """\
name: sums
version: "1"
models:
  teacher: {use: transformers, model: "packaged:smollm2-135m"}
  pupil: {use: transformers, model: "packaged:smollm2-135m"TEMPLATE}
stages:
  - {id: problems, source: files, with: {paths: sums.jsonl}}
"""
DECODED = "  - {id: decoded, sample: reverse_speculative, with: {teacher: teacher, student: pupil, prompt: asked}}\n"
TRACES = "  - {id: traces, source: traces, with: {paths: traces.jsonl}}\n"
EXAMPLE = 'examples: [{user: "1 + 1", assistant: "<think>\\nOne and one.\\n</think>\\n\\n2"}]\n'


def project(folder: Path, stages: str, template: str = "", front: str = "") -> Path:
    """Write a project with one pipeline, whose student has one of the templates of TRL."""
    gguf("smollm2-135m")
    for name in ("pipelines", "prompts"):
        (folder / name).mkdir(parents=True)
    (folder / "sums.jsonl").write_text(json.dumps({"question": "What is 2 + 2?", "answer": "4"}) + "\n")
    row = {"question": "What is 2 + 2?", "response": "<think>\nTwo and two.\n</think>\n\n4", "answer": "4"}
    (folder / "traces.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "prompts" / "asked.md").write_text(f"---\nstyle: long\n{front}---\n{{{{ question }}}}\n")
    named = ""
    if template:
        (folder / "student.jinja").write_text(shipped()[template])
        named = ", chat_template: student.jinja"
    file = folder / "pipelines" / "sums.yaml"
    file.write_text(HEAD.replace("TEMPLATE", named) + stages)
    return file


def checked(file: Path) -> str:
    """Return what `tracefactory check` says, as the mistakes of the user or as its line."""
    done = CliRunner().invoke(app, ["check", str(file)])
    return done.output if done.exception is None else str(done.exception)


@pytest.mark.parametrize(
    ("template", "front", "reason", "remedy"),
    [
        ("qwen3", EXAMPLE, "example_reasoning_dropped", "write the examples into `system:` or into the body"),
        ("deepseek_r1_distill", EXAMPLE, "example_reasoning_dropped", "write the examples into `system:`"),
        ("glm4moe", EXAMPLE, "example_reasoning_dropped", "write the examples into `system:`"),
        ("gemma", "system: Be brief.\n", "no_system_role", "beginning of the body"),
        ("gptoss", 'prefill: "<think>\\n"\n', "prefill_not_in_turn", "leave `prefill:` out"),
        ("qwen3_5_nothink", 'prefill: "<think>\\n"\n', "thinking_closed_in_prompt", "leave `prefill:` out"),
        ("qwen3_training", EXAMPLE, "", ""),
        ("deepseek_r1_distill", 'prefill: "<think>\\n"\n', "", ""),
        ("gemma", "", "", ""),
    ],
)
def test_check_refuses_a_prompt_that_a_decoders_student_cannot_be_given(
    tmp_path: Path, template: str, front: str, reason: str, remedy: str
) -> None:
    printed = checked(project(tmp_path, DECODED, template, front))
    if not reason:
        assert "no mistakes" in printed
        return
    assert reason in printed
    assert remedy in printed
    assert f"sums.yaml:{8}:" in printed
    assert "stage 'decoded': prompt 'asked' under the chat template of 'pupil'" in printed


DUEL = """
from tracefactory.core.rollout import ROLLOUTS, Rollout
from tracefactory.core.stage import ModelName, PromptName

@ROLLOUTS.register("duel")
class Duel(Rollout):
    \"\"\"A writes, B answers.\"\"\"

    name, version = "duel", "1"
    a: ModelName
    b: ModelName
    prompt: PromptName
    reply: PromptName

    def requests_at_most(self):
        return {self.a: 1, self.b: 1}
ASKED_WITH
    async def run(self, row, ask):
        first = await ask(self.a, self.prompt)
        return await ask(self.b, GIVEN, after=first)
"""
TOLD = """
    def asked_with(self):
        return {self.a: [self.prompt], self.b: [self.reply]}
"""
DUELS = "  - {id: made, rollout: duel, with: {a: teacher, b: pupil, prompt: asked, reply: replied}}\n"


def duel(folder: Path, asked_with: str, given: str = "self.reply", front: str = "system: Be brief.\n") -> Path:
    """Write a project with a rollout of two models; `pupil` has Gemma's template, which has no system role."""
    file = project(folder, DUELS, "gemma", front)
    (folder / "prompts" / "replied.md").write_text("---\nstyle: long\n---\nIs that right?\n")
    (folder / "rollouts").mkdir()
    source = DUEL.replace("ASKED_WITH", asked_with).replace("GIVEN", given)
    (folder / "rollouts" / "duel.py").write_text(source)
    return file


def test_check_tries_every_prompt_of_a_rollout_on_each_of_its_models(tmp_path: Path) -> None:
    printed = checked(duel(tmp_path, ""))
    assert "stage 'made': prompt 'asked' under the chat template of 'pupil'" in printed
    assert "no_system_role" in printed
    assert "beginning of the body" in printed
    assert "say so in its `asked_with`" in printed
    assert "'teacher'" not in printed
    assert "'replied'" not in printed


def test_a_rollout_that_says_which_model_gets_a_prompt_is_tried_on_that_and_held_to_it(tmp_path: Path) -> None:
    assert "no mistakes" in checked(duel(tmp_path / "right", TOLD))
    elsewhere = TOLD.replace("self.b: [self.reply]", "'nobody': ['nothing']")
    printed = checked(duel(tmp_path / "elsewhere", elsewhere))
    assert "has 'nobody' in `asked_with`, no parameter of it" in printed
    assert "has 'nothing' in `asked_with`, no parameter of it" in printed


def test_check_says_once_which_chat_templates_it_could_not_try(tmp_path: Path) -> None:
    stages = (
        "  - {id: written, sample: chat, with: {model: far, prompt: asked}}\n"
        "  - {id: again, sample: chat, from: problems, with: {model: far, prompt: asked, seed: 1}}\n"
    )
    far = '  far: {use: openai, model: big, base_url: "http://127.0.0.1:9/v1"}\n'
    file = project(tmp_path, stages, front="system: Be brief.\n")
    file.write_text(file.read_text().replace("models:\n", f"models:\n{far}"))
    printed = checked(file)
    assert "no mistakes" in printed
    assert printed.count("note: the chat template of far is not on this machine") == 1
    (tmp_path / "prompts" / "asked.md").write_text("---\nstyle: long\n---\n{{ question }}\n")
    assert "note:" not in checked(file)  # nothing in it hangs on the template


def test_check_refuses_a_student_that_cannot_be_measured(tmp_path: Path) -> None:
    measured = TRACES + "  - {id: measured, measure: student, with: {student: pupil}}\n"
    printed = checked(project(tmp_path, measured, "deepseek_r1_distill"))
    assert "reasoning_not_rendered" in printed
    assert "deepseek_r1_distill_training.jinja" in printed
    (tmp_path / "student.jinja").write_text(shipped()["deepseek_r1_distill_training"])
    assert "no mistakes" in checked(tmp_path / "pipelines" / "sums.yaml")


def test_check_refuses_a_view_that_the_student_of_the_dataset_loses(tmp_path: Path) -> None:
    publish = "  - {id: dataset, publish: dataset, with: {views: [sft, chat, raw], student: pupil}}\n"
    file = project(tmp_path, TRACES + publish)
    printed = checked(file)
    assert "the view 'chat' under the chat template of 'pupil'" in printed
    assert "leave chat out of `views:`" in printed
    file.write_text(file.read_text().replace("chat, ", ""))
    assert "no mistakes" in checked(file)


def trace(number: int, reasoning: str) -> Trace:
    problem = Problem.make(question="What is 2 + 2?", answer="4")
    verdict = Verdict(outcome=Outcome.CORRECT, method="m", verifier="math", version="1")
    return Trace(
        id=f"{number:016d}",
        problem=problem,
        reasoning=reasoning,
        answer_text="4",
        thinking=Thinking.CLOSED if reasoning else Thinking.NONE,
        verdict=verdict,
    )


@pytest.mark.parametrize("strict", [True, False])
def test_every_row_is_rendered_and_refused_or_counted(strict: bool) -> None:
    gguf("smollm2-135m")
    renderer = Renderer(with_template(shipped()["deepseek_r1_distill_training"]), "inline")
    traces = [trace(0, "Two and two."), trace(1, ""), trace(2, "Two and two, again.")]
    made = VIEWS.get("sft").rows(Group(traces[0].problem, traces))
    check = StudentCheck({"pupil": renderer}, strict=strict)
    left, counted = check.refuse(made), check.count(check.refuse(made).rows)
    if strict:
        assert [row["id"] for row in left.rows] == [traces[0].id, traces[2].id]
        assert {one: error.reason for one, error in left.refused.items()} == {traces[1].id: "no_reasoning"}
        assert not counted
    else:
        assert len(left.rows) == 3
        assert counted == {("pupil", "no_reasoning"): 1}
        (printed,) = unrendered({"sft": counted})
        assert "1 rows" in printed
        assert "no_reasoning" in printed


def test_publish_with_a_student_leaves_out_rows_that_its_tokenizer_reads_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`<filename>` is a control token of SmolLM2 and of no chat template: it counts for this student alone."""
    publish = "  - {id: dataset, publish: dataset, with: {views: [sft, messages], licence: mit, student: pupil}}\n"
    file = project(tmp_path, TRACES + publish)
    row = json.loads((tmp_path / "traces.jsonl").read_text())
    rows = [row, {**row, "question": "Why?", "response": "<think>\nOpen <filename>.\n</think>\n\n4"}]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", str(file)])
    assert done.exit_code == 0, done.output
    assert "control_token_inside 1" in done.output
    manifest = json.loads((tmp_path / "out" / "sums" / "1" / "manifest.json").read_text())
    assert {name: one["rows"] for name, one in manifest["configs"].items()} == {"sft": 1, "messages": 1}
    file.write_text(file.read_text().replace(", student: pupil", "").replace('version: "1"', 'version: "2"'))
    done = CliRunner().invoke(app, ["run", str(file)])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "out" / "sums" / "2" / "manifest.json").read_text())
    assert manifest["configs"]["sft"]["rows"] == 2


def rendered(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["render", *map(str, arguments)])
    return done.exit_code, done.output


def test_render_prints_a_row_with_what_is_masked_and_every_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    project(tmp_path, TRACES + "  - {id: dataset, publish: dataset, with: {views: [sft, chat, raw]}}\n")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", "pipelines/sums.yaml"])
    assert done.exit_code == 0, done.output
    code, printed = rendered("sums", "--student", "pupil")
    assert code == 0, printed
    assert "<think>\nTwo and two.\n</think>\n\n4<|im_end|>[masked]\n[/masked]" in printed
    assert "\n[masked]<|im_start|>system" in printed
    assert "<|im_start|>assistant\n[/masked]<think>" in printed
    assert "tokens supervised" in printed
    assert rendered("out/sums/1", "--student", "packaged:smollm2-135m")[0] == 0
    assert rendered("--student", "pupil")[0] == 0  # the newest run
    code, printed = rendered("sums", "--student", "pupil", "--view", "chat")
    assert code == 1
    assert "problem: it drops or rewrites the reasoning (reasoning_not_rendered)" in printed
    (tmp_path / "r1.jinja").write_text(shipped()["deepseek_r1_distill"])
    code, printed = rendered("sums", "--student", "r1.jinja")
    assert code == 1
    assert "counted with" in printed or "reasoning_not_rendered" in printed
    assert rendered("sums", "--view", "raw", "--student", "pupil")[0] == 0


MISSING = [
    (["nothing"], "no published dataset 'nothing'"),
    (["sums", "--view", "nothing"], "nothing"),
    (["sums"], "names a student"),
    (["sums", "--student", "nobody"], "has a model 'nobody'"),
    (["sums", "--student", "none.jinja"], "no chat template"),
    (["sums", "--student", "pupil", "--row", "zzz"], "no row whose id begins with 'zzz'"),
    (["sums", "--student", "pupil", "--view", "tool_use"], "has no view 'tool_use'"),
]


def test_render_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, TRACES + "  - {id: dataset, publish: dataset, with: {views: [sft, raw]}}\n")
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["run", "pipelines/sums.yaml"])
    for arguments, says in MISSING:
        assert says in str(CliRunner().invoke(app, ["render", *arguments]).exception)


def test_a_template_is_read_from_a_gguf_file_and_from_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = with_template(shipped()["smollm2"])
    found = template_at_hand(Checkpoint(model=str(gguf("smollm2-135m"))))
    messages = [{"role": "user", "content": "Hello"}]
    assert found is not None
    assert found.text(messages, generate=True) == ChatTemplate.of_tokenizer(tokenizer).text(messages, generate=True)
    tokenizer.chat_template = shipped()["deepseek_r1_distill_training"]
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = template_at_hand(Checkpoint(model=str(tmp_path / "saved")))
    assert saved is not None
    assert saved.text(messages, generate=True) == ChatTemplate.of_tokenizer(tokenizer).text(messages, generate=True)
    assert template_at_hand(Checkpoint(model="org/name", revision="1")) is None
    with pytest.raises(RenderError):
        ChatTemplate.of_source("{% if %}")
