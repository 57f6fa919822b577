"""A pipeline file becomes a pipeline, or everything that is wrong with it at once."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from tracefactory.config import check_project, load_pipeline, resolved, unset_variables
from tracefactory.config.project import find_project
from tracefactory.core.errors import UserError
from tracefactory.core.fingerprint import canonical
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.refs import FoundRef, Ref, find_refs
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import stage_of

PIPELINE = """\
name: math-mix
version: "2026.11.1"
models:
  teacher: {use: openai, model: r1, base_url: env:TEACHER_URL, api_key: env:TEACHER_KEY}
  helper: {use: fake}
stages:
  - {id: problems, source: files, with: {paths: problems.jsonl}}
  - {id: long, sample: chat, with: {model: teacher, prompt: math_long, samples: 4}}
  - {id: short, sample: chat, from: problems, with: {model: helper, prompt: math_short}}
  - {id: checked, verify: auto, from: [long, short], run: {concurrency: 3}}
  - id: clean
    filter:
      - closed
      - length: {max_tokens: 16000}
  - {id: mixed, mix: long_short, with: {long: 0.2, short: 0.8, seed: 7}}
  - {id: dataset, publish: dataset, with: {views: [sft, raw]}}
run: {workers: 3}
profiles:
  laptop:
    models: {teacher: {use: fake, script: {accuracy: 0.5}}}
    stages:
      long:
        with: {samples: 2}
        run: {concurrency: 4}
    run: {executor: inline}
  hosted:
    models: {teacher: {model: r2}}
"""
FILTERS = {
    "closed": """\
        \"\"\"Drop what does not end.\"\"\"
        from tracefactory.filters import KEEP, Decision, Trace, drop, trace_filter

        @trace_filter
        def closed(trace: Trace) -> Decision:
            \"\"\"Keep what ends.\"\"\"
            return KEEP if trace.finish_reason == "stop" else drop("open")
        """,
    "length": """\
        \"\"\"Drop what is long.\"\"\"
        from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter

        class LengthParams(Params):
            max_tokens: int = 100
            part: str = "all"

        @trace_filter
        def length(trace: Trace, params: LengthParams) -> Decision:
            \"\"\"Keep what is short.\"\"\"
            return KEEP if trace.completion_tokens <= params.max_tokens else drop("too_long")
        """,
}
ENVIRON = {"TEACHER_URL": "http://127.0.0.1:9/v1", "TEACHER_KEY": "secret-value"}


class Maker:
    """A project on disk that a test can break and load."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("pipelines", "prompts", "filters"):
            (root / folder).mkdir(parents=True)
        for style in ("long", "short"):
            (root / "prompts" / f"math_{style}.md").write_text(f"---\nstyle: {style}\n---\n{{{{ question }}}}\n")
        for name, source in FILTERS.items():
            (root / "filters" / f"{name}.py").write_text(re.sub(r"(?m)^ {8}", "", source))
        (root / "problems.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
        self.file = root / "pipelines" / "mix.yaml"
        self.write(PIPELINE)

    def write(self, text: str) -> None:
        self.file.write_text(text)

    def change(self, before: str, after: str) -> None:
        text = self.file.read_text()
        assert text.count(before) == 1, before
        self.write(text.replace(before, after))

    def load(self, **options: Any) -> Pipeline:
        return load_pipeline(self.file, **{"environ": ENVIRON, **options})

    def told(self, **options: Any) -> list[str]:
        """Load what is broken and return the mistakes, with the folder left out."""
        with pytest.raises(UserError) as caught:
            self.load(**options)
        text = str(caught.value)
        for jargon in ("pydantic", "https://", "Traceback", "Input should", "validation error", "Extra inputs"):
            assert jargon not in text
        assert "secret-value" not in text
        return [str(mistake).replace(f"{self.root}/", "") for mistake in caught.value.mistakes]


@pytest.fixture
def project(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "project")


# ---------------------------------------------------------------------------------------------------- what is read


def test_a_pipeline_is_read(project: Maker) -> None:
    pipeline = project.load()
    assert (pipeline.name, pipeline.version, pipeline.run.workers) == ("math-mix", "2026.11.1", 3)
    assert [(stage.id, f"{stage.verb}:{stage.name}", stage.inputs) for stage in pipeline.stages] == [
        ("problems", "source:files", ()),
        ("long", "sample:chat", ("problems",)),
        ("short", "sample:chat", ("problems",)),
        ("checked", "verify:auto", ("long", "short")),
        ("clean", "filter:chain", ("checked",)),
        ("mixed", "mix:long_short", ("clean",)),
        ("dataset", "publish:dataset", ("mixed",)),
    ]
    assert [stage.line for stage in pipeline.stages] == [7, 8, 9, 10, 11, 15, 16]
    assert [stage.op for stage in pipeline.stages] == [f"{stage.verb}:{stage.name}" for stage in pipeline.stages]
    assert [stage_of(stage).name for stage in pipeline.stages] == [stage.name for stage in pipeline.stages]
    assert pipeline.stage("checked").run.concurrency == 3
    assert pipeline.models["teacher"].model == "r1"
    assert sorted(pipeline.prompts) == ["math_long", "math_short"]
    assert sorted(pipeline.filters) == ["closed", "length"]
    with pytest.raises(KeyError):
        pipeline.stage("none")


def test_filters_carry_their_parameters_with_defaults(project: Maker) -> None:
    written = project.load().stage("clean").params.model_dump(by_alias=True)
    expected = [{"name": "closed", "with": {}}, {"name": "length", "with": {"max_tokens": 16000, "part": "all"}}]
    assert written == {"filters": tuple(expected)} or written == {"filters": expected}


def test_one_filter_takes_its_parameters_from_with(project: Maker) -> None:
    project.change(
        "    filter:\n      - closed\n      - length: {max_tokens: 16000}\n",
        "    filter: length\n    with: {part: x}\n",
    )
    (use,) = project.load().stage("clean").params.model_dump(by_alias=True)["filters"]
    assert use == {"name": "length", "with": {"max_tokens": 100, "part": "x"}}


def test_a_pipeline_cannot_be_changed_and_travels_to_workers(project: Maker) -> None:
    pipeline = project.load(limit=5, profile="laptop")
    with pytest.raises(Exception, match="frozen"):
        pipeline.limit = 6  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(pipeline))
    assert resolved(again) == resolved(pipeline)
    assert again.written == pipeline.written
    assert again.stage("long").params == pipeline.stage("long").params


def test_set_overrides_the_profile_and_nothing_else_changes(project: Maker) -> None:
    plain, laptop, hosted = project.load(), project.load(profile="laptop"), project.load(profile="hosted")
    assert plain.stage("long").params.model_dump()["samples"] == 4
    assert laptop.stage("long").params.model_dump()["samples"] == 2
    assert laptop.stage("long").params.model_dump()["prompt"] == "math_long"
    assert (laptop.stage("long").run.concurrency, laptop.run.executor, laptop.run.workers) == (4, "inline", 3)
    assert (laptop.models["teacher"].use, laptop.models["teacher"].model) == ("fake", "fake")
    assert (hosted.models["teacher"].use, hosted.models["teacher"].model) == ("openai", "r2")
    sets = ["stages.long.with.samples=8", "run.executor=ray", "models.teacher.model='7'", "version=2026.11.2"]
    both = project.load(profile="laptop", sets=sets)
    assert both.stage("long").params.model_dump()["samples"] == 8
    assert (both.run.executor, both.models["teacher"].model, both.version) == ("ray", "7", "2026.11.2")
    assert (both.profile, both.limit) == ("laptop", None)


def test_a_profile_may_begin_elsewhere_and_leave_stages_out(project: Maker) -> None:
    old = "  hosted:\n    models: {teacher: {model: r2}}\n"
    begins = "      problems: {source: traces, with: {paths: env:TRACES, response: solution}}\n"
    project.change(old, f"  ready:\n    stages:\n{begins}      long: null\n      short: null\n      checked: null\n")
    traces = project.root / "traces.jsonl"
    traces.write_text('{"question": "What is 2 + 2?", "answer": "4", "solution": "<think>2 + 2</think>It is 4."}\n')
    pipeline = project.load(profile="ready", environ={"TRACES": "traces.jsonl"})
    assert [stage.id for stage in pipeline.stages] == ["problems", "clean", "mixed", "dataset"]
    first = pipeline.stage("problems")
    assert (first.verb, first.name, str(first.params.model_dump()["paths"])) == ("source", "traces", "env:TRACES")
    assert pipeline.stage("clean").inputs == ("problems",)
    (told,) = project.told(profile="ready", environ={})
    assert "stage 'problems': the environment variable TRACES is not set" in told


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stages.clean.filter.length.max_tokens=7", {"max_tokens": 7, "part": "all"}),
        ("stages.clean.filter.1.length.part=reasoning", {"max_tokens": 16000, "part": "reasoning"}),
        ("stages.clean.filter.length={part: answer}", {"max_tokens": 100, "part": "answer"}),
    ],
)
def test_filters_of_a_list_can_be_set_by_name(project: Maker, path: str, value: dict[str, Any]) -> None:
    use = project.load(sets=[path]).stage("clean").params.model_dump(by_alias=True)["filters"][1]
    assert use == {"name": "length", "with": value}


def test_set_adds_sections_that_the_file_does_not_have(project: Maker) -> None:
    pipeline = project.load(
        sets=["version=2026.10", "stages.mixed.run.concurrency=2", "stages.checked.with.policy={}", "description=a b"]
    )
    assert pipeline.version == "2026.10"  # text, and no number that lost a digit
    assert pipeline.stage("mixed").run.concurrency == 2
    assert pipeline.description == "a b"


def test_resolved_is_canonical_and_reads_as_the_same_pipeline(project: Maker) -> None:
    pipeline = project.load(profile="laptop", sets=["stages.long.with.samples=3"], limit=2)
    data = resolved(pipeline)
    canonical(data)
    assert (data.pop("profile"), data.pop("limit")) == ("laptop", 2)
    assert data["stages"][2]["with"]["temperature"] == 0.7  # a default, written out
    project.write(yaml.safe_dump(data, sort_keys=False))
    again = resolved(project.load())
    assert {**again, "profile": "laptop", "limit": 2} == resolved(pipeline)


def test_what_options_changed_is_recorded(project: Maker) -> None:
    assert project.load().written.changes == ()
    sets = ["stages.long.with.samples=8", "stages.long.with.samples=3", "description=it", "stages.mixed.with.seed=7"]
    written = project.load(profile="hosted", sets=sets).written
    assert (written.file, written.text, written.sets) == ("pipelines/mix.yaml", PIPELINE, tuple(sets))
    changes = {one.path: (one.before, one.after) for one in written.changes}
    assert changes == {
        "description": ("", '"it"'),
        "models.teacher.model": ('"r1"', '"r2"'),
        "stages.long.with.samples": ("4", "3"),
    }
    project.change("    models: {teacher: {model: r2}}\n", "    stages: {short: null, checked: {with: {x: {}}}}\n")
    project.change("from: [long, short]", "from: [long]")
    with pytest.raises(UserError, match="'x'"):
        project.load(profile="hosted")


LITERAL = "hf_0123456789abcdef"
REPLACED = {
    "a value that --set replaces": (
        [f"models.teacher.api_key={LITERAL}", "models.teacher.api_key=env:TEACHER_KEY"],
        "",
    ),
    "a model that --set replaces": (
        [f"models.teacher={{use: fake, api_key: {LITERAL}}}", "models.teacher={use: fake}"],
        "",
    ),
    "an address that --set replaces": (
        [f"models.teacher.base_url=http://u:{LITERAL}@h/", "models.teacher.base_url=http://h/"],
        "",
    ),
    "a token that --set replaces": (
        [f"stages.dataset.with.token={LITERAL}", "stages.dataset.with.token=env:TEACHER_KEY"],
        "",
    ),
    "the file, replaced by --set": (["models.teacher.api_key=env:TEACHER_KEY"], "api_key: env:TEACHER_KEY"),
    "a profile that is not used": ([], "teacher: {model: r2"),
}


@pytest.mark.parametrize("case", sorted(REPLACED))
def test_a_secret_that_an_option_replaces_is_refused(project: Maker, case: str) -> None:
    """It is not in the pipeline, but it would be shown with the text of the file or of the command."""
    sets, before = REPLACED[case]
    if before:
        after = f"api_key: {LITERAL}" if before.startswith("api_key") else f"{before}, api_key: {LITERAL}"
        project.change(before, after)
    told = project.told(sets=sets)
    assert "write env:NAME" in told[0]
    assert LITERAL not in "".join(told)


def test_an_argument_that_is_no_text_is_refused(project: Maker) -> None:
    (told,) = project.told(sets=["description=\udcff"])
    assert "not UTF-8" in told


def test_a_resolved_pipeline_has_the_names_of_secrets_only(project: Maker) -> None:
    data = resolved(project.load())
    assert data["models"]["teacher"]["api_key"] == "env:TEACHER_KEY"
    assert "secret-value" not in canonical(data) + repr(project.load())


# -------------------------------------------------------------------------------------------------- what is refused

BROKEN = {
    "unknown key": ("samples: 4", "sampels: 4", 8, "stage 'long': unknown key 'sampels' (did you mean 'samples'?)"),
    "wrong type": ("samples: 4", "samples: four", 8, "samples must be a whole number, found the text 'four'"),
    "missing prompt": ("math_long", "math_lon", 8, "prompt: unknown prompt 'math_lon' (did you mean 'math_long'?)"),
    "two verbs": ("verify: auto", "verify: auto, mix: long_short", 10, "has 2 verbs, `verify:` and `mix:`"),
    "cycle": (
        "sample: chat, from: problems",
        "sample: chat, from: checked",
        9,
        "makes a cycle: short <- checked <- short",
    ),
    "duplicate id": ("id: short", "id: long", 9, "two stages are called 'long' (the first in line 8)"),
    "unknown filter parameter": (
        "{max_tokens: 16000}",
        "{max_token: 1}",
        14,
        "'max_token' (did you mean 'max_tokens'?)",
    ),
    "bad ratio": ("short: 0.8", "short: 0.9", 15, "stage 'mixed': long + short must be 1"),
    "list for a mapping": ("{views: [sft, raw]}", "[sft, raw]", 16, "stage 'dataset' must be a mapping, found a list"),
    "float version": ('"2026.11.1"', "2026.10", 2, 'found the number 2026.10 (quote it: "2026.10")'),
    "no version": ('version: "2026.11.1"\n', "", 1, "version is missing"),
    "bad name": ("name: math-mix", "name: a/b", 1, "name must be text that matches"),
    "unknown section": ("run: {workers", "runs: {workers", 17, "unknown key 'runs' (did you mean 'run'?)"),
    "run option": ("workers: 3", "worker: 3", 17, "unknown key 'worker' in run (did you mean 'workers'?)"),
    "shards": ("workers: 3", "shards: 3", 17, "must be 'auto' or a power of two, found 3"),
    "duplicate key": ("seed: 7", "seed: 7, seed: 8", 15, "the key 'seed' is given twice"),
    "no kind": ("{use: fake}", "{model: x}", 5, "model 'helper': use is missing"),
    "unknown kind": ("{use: fake}", "{use: fak}", 5, "no kind of model `use: fak` (did you mean 'fake'?)"),
    "model key": ("{use: fake}", "{use: fake, concurency: 2}", 5, "(did you mean 'concurrency'?)"),
    "deep key": (
        "{use: fake}",
        "{use: fake, script: {acuracy: 1}}",
        5,
        "'acuracy' in script (did you mean 'accuracy'?)",
    ),
    "model name": ("  helper:", "  a b:", 5, "model 'a b': a name consists of letters and digits"),
    "secret in file": ("env:TEACHER_KEY", "secret-value", 4, "write env:NAME"),
    "secret of a wrong type": ("env:TEACHER_KEY", "12345", 4, "api_key must be text"),
    "model of a stage": ("model: teacher", "model: techer", 8, "unknown model 'techer' (did you mean 'teacher'?)"),
    "no verb": ("verify: auto", "verfy: auto", 10, "'verfy' is not a verb (did you mean 'verify'?)"),
    "verb without name": (
        "verify: auto",
        "verify: [auto]",
        10,
        "`verify:` takes a name, found a list (one of: auto, consensus, judge)",
    ),
    "unknown name": (
        "mix: long_short",
        "mix: long_shrt",
        15,
        "there is no `mix: long_shrt` (did you mean 'long_short'?)",
    ),
    "no id": ("id: mixed, ", "", 15, "stage 6 has no `id:`"),
    "bad id": ("id: mixed", "id: Mixed Up", 15, "an id consists of lower-case words"),
    "unknown input": ("[long, short]", "[long, shrt]", 10, "unknown stage 'shrt' in `from:` (did you mean 'short'?)"),
    "forward": (
        "sample: chat, from: problems",
        "sample: chat, from: spare",
        9,
        "'spare' in `from:` is below; it must be above",
    ),
    "itself": ("[long, short]", "[long, checked]", 10, "makes a cycle: checked <- checked"),
    "input twice": ("[long, short]", "[long, long]", 10, "names 'long' twice"),
    "input of a wrong type": ("[long, short]", "{long: short}", 10, "takes the id of a stage or a list of ids"),
    "source with input": ("source: files,", "source: files, from: long,", 7, "takes no rows"),
    "kinds": (
        "verify: auto, from: [long, short]",
        "verify: auto, from: problems",
        10,
        "takes traces, but stage 'problems'",
    ),
    "kinds by default": (
        "  - {id: long, sample: chat,",
        "  - {id: early, verify: auto}\n  - {id: long, sample: chat, from: problems,",
        8,
        "name its input stage with `from:`",
    ),
    "unknown filter": ("- closed", "- closd", 13, "unknown filter 'closd' (did you mean 'closed'?)"),
    "filter entry": ("- closed", "- {closed: , length: }", 13, "a filter is its name"),
    "with of a filter list": (
        "  - id: clean\n",
        "  - id: clean\n    with: {max_tokens: 1}\n",
        12,
        "a list of filters has no `with:`",
    ),
    "misplaced parameter": ("prompt: math_short}", "prompt: math_short}, samples: 2", 9, "put it under `with:`"),
    "stage run": ("{concurrency: 3}", "{concurency: 3}", 10, "stage 'checked': run: unknown key 'concurency'"),
    "stage is no mapping": (
        "  - {id: mixed",
        "  - mixed\n  - {id: mixed",
        15,
        "stage 6 must be a mapping, found the text 'mixed'",
    ),
    "profile key": ("    run: {executor", "    runn: {executor", 25, "profile 'laptop': unknown key 'runn'"),
    "profile model": ("models: {teacher: {model: r2}}", "models: {techer: {model: r2}}", 27, "unknown model 'techer'"),
    "profile stage": (
        "      long:\n",
        "      lnog:\n",
        22,
        "profile 'laptop': unknown stage 'lnog' (did you mean 'long'?)",
    ),
    "profile source": (
        "        run: {concurrency",
        "        source: files\n        run: {concurrency",
        24,
        "profile 'laptop': stage 'long': only a source can be replaced by another source",
    ),
    "profile stage key": ("        run: {concurrency", "        rn: {concurrency", 24, "unknown key 'rn'"),
    "missing file": ("problems.jsonl", "problem.jsonl", 7, "stage 'problems': "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_mistake_is_reported_at_its_line(project: Maker, case: str) -> None:
    before, after, line, output = BROKEN[case]
    if case == "forward":
        project.change("run: {workers", "  - {id: spare, source: files, with: {paths: problems.jsonl}}\nrun: {workers")
    project.change(before, after)
    told = project.told()
    assert told[0].startswith(f"pipelines/mix.yaml:{line}: "), told
    assert output in told[0]
    # One mistake is one message; a name that is gone is missed by those who use it.
    assert len(told) == 1 or case in ("two verbs", "model name", "no id", "bad id", "duplicate id"), told


def test_an_unset_variable_is_reported_where_it_is_named(project: Maker) -> None:
    assert project.told(environ={"TEACHER_URL": "http://x", "TEACHER_KEY": ""}) == [
        "pipelines/mix.yaml:4: model 'teacher': the environment variable TEACHER_KEY is not set"
    ]


def test_variables_of_models_that_are_not_used_may_be_unset(project: Maker) -> None:
    assert project.load(profile="laptop", environ={})
    assert project.load(sets=["stages.long.with.model=helper"], environ={})
    assert len(project.told(profile="hosted", environ={})) == 2


def test_missing_weights_of_a_used_model_are_reported(project: Maker) -> None:
    project.change("helper: {use: fake}", "helper: {use: local, model: none.gguf}")
    (told,) = project.told()
    assert told.startswith("pipelines/mix.yaml:5: model 'helper': there is no model file")
    assert project.load(sets=["stages.short.with.model=teacher"])
    assert check_project(find_project(project.file, {})) == []


def test_missing_libraries_of_a_used_model_are_reported(project: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.root / "weights").mkdir()
    project.change("helper: {use: fake}", "helper: {use: transformers, model: ./weights}")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else found(name))
    told = [one for one in project.told() if "torch" in one]
    output = "pipelines/mix.yaml:5: model 'helper': it needs torch (pip install 'tracefactory[student]')"
    assert told == [output]


def test_all_mistakes_of_a_project_are_reported_at_once(project: Maker) -> None:
    for case in (
        "unknown key",
        "wrong type",
        "two verbs",
        "unknown filter parameter",
        "bad ratio",
        "list for a mapping",
    ):
        before, after, _, _ = BROKEN[case]
        project.write(project.file.read_text().replace(before, after))
    project.change("prompt: math_short", "prompt: math_shrt")
    project.change("model: helper", "model: halper")
    project.change("    models: {teacher: {model: r2}}", "    modles: {}")
    (project.root / "prompts" / "math_long.md").write_text("---\nstyle: long\n---\n{{ qestion }}\n")
    told = project.told(environ={}, limit=0, sets=["stages.mixd.with.seed=1"])
    assert [text.split(": ")[0] for text in told] == [
        "pipelines/mix.yaml:4",
        "pipelines/mix.yaml:4",
        "pipelines/mix.yaml:8",
        "pipelines/mix.yaml:9",
        "pipelines/mix.yaml:9",
        "pipelines/mix.yaml:10",
        "pipelines/mix.yaml:14",
        "pipelines/mix.yaml:15",
        "pipelines/mix.yaml:16",
        "pipelines/mix.yaml:27",
        "--set stages.mixd.with.seed",
        "--limit must be at least 1, found 0",
        "prompts/math_long.md:4",
    ]


def test_what_is_broken_elsewhere_does_not_stop_a_pipeline_that_does_not_name_it(project: Maker) -> None:
    (project.root / "prompts" / "spare.md").write_text("no front matter\n")
    (project.root / "filters" / "spare.py").write_text("def spare(:\n")
    assert "spare" not in project.load().filters
    told = [str(one).replace(f"{project.root}/", "") for one in check_project(project.load().project)]
    assert [text.split(": ")[0] for text in told] == ["filters/spare.py:1", "prompts/spare.md:1"]


def test_a_broken_prompt_is_not_also_an_unknown_one(project: Maker) -> None:
    (project.root / "prompts" / "math_long.md").write_text("no front matter\n")
    (told,) = project.told()
    assert told.startswith("prompts/math_long.md:1: ")


def test_a_broken_filter_is_not_also_an_unknown_one(project: Maker) -> None:
    (project.root / "filters" / "length.py").write_text("def length(:\n")
    (told,) = project.told()
    assert told.startswith("filters/length.py:1: ")


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("stages.lnog.with.samples=8", "unknown stage 'lnog' (did you mean 'long'?)"),
        ("stages.long.samples.x=8", "a stage has no 'samples' (did you mean 'sample'?)"),
        ("stages.long.temperature=1", "parameters are under with: stages.long.with.temperature"),
        ("stages.long.with.sampels=8", "stage 'long': unknown key 'sampels' (did you mean 'samples'?)"),
        ("stages.long.with.samples=many", "samples must be a whole number, found the text 'many'"),
        ("stages.long.with.samples=0", "samples must be greater than or equal to 1, found the number 0"),
        ("stages.long.with.model.x=1", "stages.long.with.model is the text 'teacher' and has no 'x'"),
        ("stages.long.with=[1", "not valid YAML"),
        ("stages.long.with.stop=[no]", "read as a boolean"),
        ("stages.long=3", "name a stage and one of its keys"),
        ("stages.clean.filter.lenght.max_tokens=1", "stages.clean.filter has no item 'lenght'"),
        ("stages.clean.filter.9=length", "stages.clean.filter has no item '9'"),
        ("models.techer.model=x", "unknown model 'techer' (did you mean 'teacher'?)"),
        ("models.teacher.modl=x", "unknown key 'modl' (did you mean 'model'?)"),
        ("models.teacher=", "model 'teacher' must be a mapping, found nothing"),
        ("models=x", "name a model"),
        ("profiles.laptop.run.workers=1", "'profiles' cannot be set"),
        ("run.executor=rya", "must be 'auto', 'ray' or 'inline', found the text 'rya' (did you mean 'ray'?)"),
        ("samples", "write it as path=value"),
        ("stages..x=1", "write it as path=value"),
    ],
)
def test_a_wrong_set_is_reported_with_its_path(project: Maker, given: str, output: str) -> None:
    told = project.told(sets=[given])
    assert told[0].startswith(f"--set {given.partition('=')[0]}: ")
    assert output in told[0]
    assert len(told) == 1 or given == "models.teacher="


def test_a_secret_given_by_set_is_not_repeated(project: Maker) -> None:
    (told,) = project.told(sets=["models.teacher.api_key=secret-value"])
    assert told.startswith("--set models.teacher.api_key: ")


def test_an_unknown_profile_is_refused_with_the_nearest_name(project: Maker) -> None:
    (told,) = project.told(profile="lapto")
    assert told == "pipelines/mix.yaml:18: unknown profile 'lapto' (did you mean 'laptop'?)"


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("", "a pipeline is a mapping with `name:`, found nothing"),
        ("- a\n", "a pipeline is a mapping with `name:`, found a list"),
        ("name: [\n", "not valid YAML"),
        ('name: a\nversion: "1"\n', "stages is missing"),
        ('name: a\nversion: "1"\nstages: {}\n', "stages must be a list of stages, found a mapping"),
        ('name: a\nversion: "1"\nstages: []\n', "stages must be a list of stages, found an empty list"),
        ('name: a\nversion: "1"\nstages: [{id: b, verify: auto}]\n', "needs rows, and there is no stage above it"),
        (
            'name: a\nversion: "1"\nmodels: [x]\nstages: [{id: s, source: files, with: {paths: problems.jsonl}}]\n',
            "models",
        ),
        (
            'name: a\nversion: "1"\nprofiles: 3\nstages: [{id: s, source: files, with: {paths: problems.jsonl}}]\n',
            "profiles",
        ),
    ],
)
def test_an_empty_or_broken_file_is_refused(project: Maker, text: str, output: str) -> None:
    project.write(text)
    (told,) = project.told()
    assert told.startswith("pipelines/mix.yaml:")
    assert output in told


# ------------------------------------------------------------------------------------------------- a whole project


def test_check_project_finds_nothing_wrong_offline(project: Maker) -> None:
    assert check_project(find_project(project.file, {})) == []


def test_check_project_looks_at_every_pipeline_profile_prompt_and_filter(project: Maker) -> None:
    project.change("with: {samples: 2}", "with: {samples: 0}")
    (project.root / "pipelines" / "other.yaml").write_text(
        PIPELINE.replace("name: math-mix", "name: other", 1).replace("source: files", "source: fils")
    )
    (project.root / "prompts" / "unused.md").write_text("---\nstyle: x\n---\n{{ qestion }}\n")
    (project.root / "filters" / "unused.py").write_text("x = 1\n")
    told = [str(mistake).replace(f"{project.root}/", "") for mistake in check_project(find_project(project.root, {}))]
    places = [text.split(": ")[0] for text in told]
    assert places[1:3] == ["pipelines/mix.yaml:23", "pipelines/other.yaml:7"]
    assert places[0].startswith("filters/unused.py:")
    assert places[3:] == ["prompts/unused.md:4"]


def test_unset_variables_of_a_project_are_listed_apart(project: Maker) -> None:
    notes = unset_variables(find_project(project.file, {}), {"TEACHER_URL": "x"})
    assert [(note.file, note.line) for note in notes] == [(project.file, 4)]
    assert "TEACHER_KEY" in notes[0].message


# ------------------------------------------------------------------------------------------------------- references


class Judge(Frozen):
    model: Annotated[str, Ref("model")]
    weight: float = 1.0


class Params(Frozen):
    teacher: Annotated[str, Ref("model")] | None = None
    prompts: tuple[Annotated[str, Ref("prompt")], ...] = ()
    judges: tuple[Judge, ...] = ()
    by_stage: dict[Annotated[str, Ref("stage")], Annotated[str, Ref("prompt")]] = Field(default_factory=dict)
    free: str = "text"


def test_references_are_found_in_nested_parameters() -> None:
    data = {"teacher": "t", "prompts": ["p", "q"], "judges": [{"model": "m"}], "by_stage": {"s": "r"}, "free": "f"}
    found = [
        FoundRef("model", "t", ("teacher",)),
        FoundRef("prompt", "p", ("prompts", 0)),
        FoundRef("prompt", "q", ("prompts", 1)),
        FoundRef("model", "m", ("judges", 0, "model")),
        FoundRef("stage", "s", ("by_stage", "s")),
        FoundRef("prompt", "r", ("by_stage", "s")),
    ]
    assert find_refs(Params, Params.model_validate(data)) == found
    assert find_refs(Params, {**data, "unknown": 1, "free": 3}) == found
    assert find_refs(Params, Params()) == []


# ----------------------------------------------------------------------------------------------- what is hostile


HIDDEN = "hunter2hunter2"


@pytest.mark.parametrize("address", [f"https://me:{HIDDEN}@host/v1", f"https://host/v1?api_key={HIDDEN}"])
@pytest.mark.parametrize("place", ["file", "list", "profile", "set"])
def test_credentials_in_an_address_are_refused_at_their_line(project: Maker, address: str, place: str) -> None:
    options: dict[str, Any] = {}
    if place == "set":
        options["sets"] = [f"models.teacher.base_url={address}"]
    elif place == "profile":
        options["profile"] = "laptop"
        project.change("script: {accuracy: 0.5}", f"script: {{accuracy: 0.5}}}}, helper: {{use: openai, model: m, "
                       f'base_url: "{address}"')  # fmt: skip
    else:
        written = f'"{address}"' if place == "file" else f'["http://a/v1", "{address}"]'
        project.change("base_url: env:TEACHER_URL", f"base_url: {written}")
    (told,) = project.told(**options)
    where = {"file": "pipelines/mix.yaml:4: ", "list": "pipelines/mix.yaml:4: ", "profile": "pipelines/mix.yaml:"}
    assert told.startswith(where.get(place, "--set models.teacher.base_url: "))
    assert "write the address without it, and `api_key: env:NAME`" in told
    assert HIDDEN not in told


@pytest.mark.parametrize(
    ("before", "after", "line", "output"),
    [
        ("samples: 4", "samples: " + "4" * 5000, 8, "a whole number has at most 64 bits"),
        ("samples: 4", "samples: " + "[" * 10_000, 8, "nested more than 64 levels deep"),
        ("samples: 4", "samples: 1e400", 8, "is not a finite number"),
        ("samples: 4", "samples: 4, samples: 5", 8, "given twice"),
        ('version: "2026.11.1"', "version: 0x" + "f" * 5000, 2, "a whole number has at most 64 bits"),
    ],
    ids=["digits", "brackets", "float", "twice", "hexadecimal"],
)
def test_a_hostile_value_of_a_pipeline_is_a_mistake_at_its_line(
    project: Maker, before: str, after: str, line: int, output: str
) -> None:
    project.change(before, after)
    told = project.told()
    assert told[0].startswith(f"pipelines/mix.yaml:{line}: ")
    assert output in told[0]
    assert all(len(one) < 500 for one in told)


def test_a_pipeline_of_50_megabytes_is_a_mistake(project: Maker) -> None:
    project.write(PIPELINE + "# x\n" * 12_500_000)
    assert project.told() == ["pipelines/mix.yaml:1: the file has more than 4 MiB"]


def test_a_hostile_value_of_a_set_is_a_mistake(project: Maker) -> None:
    told = project.told(sets=["stages.long.with.samples=" + "4" * 5000])
    assert told[0].startswith("--set stages.long.with.samples: a whole number has at most 64 bits")
