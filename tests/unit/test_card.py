"""The card: valid metadata, numbers as given, nothing from data becomes markup."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from pydantic import ValidationError

from tracefactory.config.command import quoted
from tracefactory.core.pipeline import Change
from tracefactory.engine.lengths import LengthLine
from tracefactory.publish.card import (
    BillLine,
    CardInputs,
    ConfigLine,
    MissingLine,
    MixLine,
    ModelLine,
    PromptLine,
    SourceLine,
    StageLine,
    VerifierLine,
    escape,
    limits,
    render,
)
from tracefactory.publish.command import RecipeLine
from tracefactory.publish.taught import TaughtDataset, TaughtLine

CONFIGS = (
    ConfigLine(name="sft", summary="`prompt` and `completion`.", rows=1200, files="data/sft/*.parquet"),
    ConfigLine(name="raw", summary="Everything.", rows=1234, files="data/raw/*.parquet"),
)
FULL = CardInputs(
    title="Math mix",
    summary="Long and short traces.",
    licence="Apache-2.0",
    repo="org/math-mix",
    languages=("en",),
    tags=("math", "synthetic"),
    stages=(
        StageLine(id="long", verb="sample: chat", rows_in=40, kept=39, errors=1, reasons={"timeout": 1}, requests=41),
        StageLine(
            id="clean",
            verb="filter",
            rows_in=39,
            kept=30,
            dropped=9,
            reasons={"too_long": 2, "thinking_open": 7},
            tokens=123456,
            cost=1.5,
        ),
    ),
    mix=(
        MixLine(stage="mixed", part="long", unit="problems", asked=0.2, got=5),
        MixLine(stage="mixed", part="short", unit="problems", asked=0.8, got=15),
    ),
    notes=("Short of 3 long problems.",),
    lengths=(LengthLine.of("long", [5, 1, 9]),),
    models=(ModelLine(name="long", role="teacher", model="org/big", revision="abc123", licence="mit"),),
    prompts=(PromptLine(name="math_long", digest="ff00"),),
    sources=(SourceLine(name="org/math", revision="9f2c1de", licence="mit", rows=40),),
    verifiers=(VerifierLine(name="math", version="1", outcomes={"correct": 1234}),),
    recipe=RecipeLine(
        command="tracefactory run pipelines/mix.yaml", file="pipelines/mix.yaml", pipeline="name: math-mix\n"
    ),
)


def test_the_hub_client_reads_the_metadata_as_written() -> None:
    card = DatasetCard(render(FULL, version="1.0", configs=CONFIGS))
    assert card.data.to_dict() == {
        "language": ["en"],
        "license": "apache-2.0",
        "pretty_name": "Math mix",
        "size_categories": ["1K<n<10K"],
        "task_categories": ["text-generation"],
        "tags": ["tracefactory", "synthetic", "reasoning", "chain-of-thought", "distillation", "math"],
        "configs": [
            {"config_name": "sft", "data_files": [{"split": "train", "path": "data/sft/*.parquet"}], "default": True},
            {"config_name": "raw", "data_files": [{"split": "train", "path": "data/raw/*.parquet"}]},
        ],
    }


@pytest.mark.parametrize(("rows", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (5 * 10**6, "1M<n<10M")])
def test_the_size_category_matches_the_number_of_rows(rows: int, size: str) -> None:
    configs = (CONFIGS[0].model_copy(update={"rows": rows}),)
    assert DatasetCard(render(FULL, version="1", configs=configs)).data.size_categories == [size]


def test_a_licence_unknown_to_the_hub_keeps_its_name() -> None:
    card = DatasetCard(render(FULL.model_copy(update={"licence": "Acme Data Licence 2"}), version="1", configs=CONFIGS))
    assert card.data.license == "other"
    assert card.data.to_dict()["license_name"] == "acme-data-licence-2"


def test_the_card_shows_the_recorded_numbers() -> None:
    card = render(FULL, version="1.0", configs=CONFIGS)
    assert "| `clean` | `filter` | 39 | 30 | 9 | 0 | `thinking_open` 7, `too_long` 2 | 0 | 123,456 | 1.5000 |" in card
    assert "| `mixed` | `long` | problems | 20.0% | 25.0% | 5 |" in card
    assert "| `long` | 3 | 1 | 1 | 5 | 9 | 9 |" in card
    assert "| `long` | teacher | `org/big` | `abc123` | `mit` |" in card
    assert "| `math_long` | `ff00` |" in card
    assert "| `org/math` | `9f2c1de` | `mit` | 40 |" in card
    assert "- Short of 3 long problems." in card
    assert 'load_dataset("org/math-mix", "sft", revision="v1.0", split="train")' in card
    assert "tracefactory run pipelines/mix.yaml" in card


def test_the_bill_of_a_provider_has_no_gpu_hours() -> None:
    bills = (
        BillLine(model="big", price="1 in, 2 out", requests=1_200, tokens=34_567, cost=1.25),
        BillLine(model="own (GPUs)", price="2 an hour", gpu_hours=1_234.5, cost=2_469.0),
    )
    card = render(FULL.model_copy(update={"bills": bills}), version="1.0", configs=CONFIGS)
    assert "| `big` | 1 in, 2 out | 1,200 | 34,567 | - | 1.2500 |" in card
    assert "| own (GPUs) | 2 an hour | 0 | 0 | 1,234.50 | 2,469.0000 |" in card


def test_a_card_of_a_bare_run_renders() -> None:
    card = render(CardInputs(title="Bare"), version="1", configs=CONFIGS)
    assert "license" not in DatasetCard(card).data.to_dict()
    assert "No answer in this dataset was verified." in card
    assert 'load_dataset("parquet", data_files="PATH/TO/THIS/FOLDER/data/sft/*.parquet", split="train")' in card


def test_tables_render_as_tables() -> None:
    body = render(FULL, version="1.0", configs=CONFIGS).split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    assert sum(token.type == "table_open" for token in tokens) == 8
    assert not any(token.type == "inline" and token.content.startswith("|") for token in tokens)


HOSTILE = [
    "<script>alert(1)</script>",
    "a | b | c",
    "[click](https://example.org)",
    "![img](https://example.org/x.png)",
    "`code` and ``more``",
    "**bold** _it_ ~~no~~",
    "# Heading",
    "1. item",
    "- item",
    "line one\n\n# line two\n---\n",
    "back\\slash \\| pipe",
    "&lt;b&gt; & <!-- comment -->",
    "{{ card.title }} {% raw %}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_shows_literally(text: str) -> None:
    for frame in ("{}", "# {}", "- {}", "| x |\n|---|\n| {} |"):
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(frame.format(escape(text)))
        kinds = {child.type for token in tokens for child in (token.children or [])}
        assert kinds <= {"text"}, frame
        assert sum(t.type in ("heading_open", "bullet_list_open", "ordered_list_open") for t in tokens) == (
            1 if frame[0] in "#-" else 0
        )
        assert "".join(t.content for token in tokens for t in token.children or [] if t.content != "x") == " ".join(
            text.split()
        )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_inside_their_cells(text: str) -> None:
    """The document keeps its structure whatever names, notes and reasons hold."""

    def shape(inputs: CardInputs) -> list[str]:
        body = render(inputs, version="1.0", configs=CONFIGS).split("---\n", 2)[2]
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
        assert not any(
            child.type in ("link_open", "image", "html_inline") for t in tokens for child in t.children or []
        )
        return [token.type for token in tokens]

    hostile = FULL.model_copy(
        update={
            "title": text,
            "summary": text,
            "notes": (text,),
            "sources": (SourceLine(name=text, revision=text, licence=text),),
            "prompts": (PromptLine(name=text, digest=text),),
            "models": (ModelLine(name=text, role=text, model=text, revision=text, licence=text),),
            "stages": (StageLine(id=text, verb=text, rows_in=1, kept=0, dropped=1, reasons={text: 1}), FULL.stages[1]),
            "verifiers": (VerifierLine(name=text, version=text, outcomes={text: 2}),),
        }
    )
    calm = hostile.model_copy(
        update={field: getattr(FULL, field) for field in ("title", "summary", "notes", "sources", "prompts", "models")}
    ).model_copy(
        update={
            "stages": (StageLine(id="a", verb="b", rows_in=1, kept=0, dropped=1, reasons={"c": 1}), FULL.stages[1]),
            "verifiers": (VerifierLine(name="a", version="b", outcomes={"c": 2}),),
        }
    )
    assert shape(hostile) == shape(calm)


def test_hostile_metadata_stays_a_value() -> None:
    inputs = FULL.model_copy(update={"title": "x\nlicense: mit\n---\n# y", "tags": ("a: b", "- c")})
    card = render(inputs, version="1.0", configs=CONFIGS)
    data = yaml.safe_load(card.split("---\n")[1])
    assert data["pretty_name"] == "x license: mit --- # y"
    assert data["license"] == "apache-2.0"
    assert data["tags"][-2:] == ["a: b", "- c"]


def test_a_fence_in_the_pipeline_does_not_end_its_block() -> None:
    recipe = RecipeLine(command="tracefactory run x", file="x", pipeline="a: |\n  ```\n  # not a heading\n  ````\n")
    inputs = FULL.model_copy(update={"recipe": recipe})
    tokens = MarkdownIt("commonmark").parse(render(inputs, version="1", configs=CONFIGS).split("---\n", 2)[2])
    assert [token.content for token in tokens if token.type == "fence" and token.info == "yaml"] == [recipe.pipeline]


def test_the_recipe_tells_what_options_changed() -> None:
    changes = (
        Change(path="stages.long.with.samples", before="2", after="8"),
        Change(path="description", before="", after='"a | b <i>\\n"'),
        Change(path="stages.long.with.stop", before="[" + "1, " * 500 + "1]", after=""),
    )
    recipe = RecipeLine(
        command="tracefactory run a.yaml \\\n  --set 'a=```\n# b'",
        file="a.yaml",
        pipeline="name: a\n",
        resolved=True,
        changes=changes,
        limit=1000,
        environment=("HF_TOKEN", "URL"),
        tracefactory="9.9",
    )
    missing = (MissingLine(stage="long", rows=1, of=9, reasons={"timeout": 1}),)
    card = render(FULL.model_copy(update={"recipe": recipe, "missing": missing}), version="1", configs=CONFIGS)
    told = card.split("## How to reproduce\n\n")[1]
    assert told.startswith(
        "With tracefactory `9.9`, in the folder of the project, with these environment variables: `HF_TOKEN`, `URL`:\n"
    )
    tokens = MarkdownIt("commonmark").enable("table").parse(told)
    fences = [(token.info, token.content) for token in tokens if token.type == "fence"]
    assert fences == [("sh", recipe.command + "\n"), ("yaml", "name: a\n")]
    assert "| `stages.long.with.samples` | `2` | `8` |" in told
    assert "--no-requests" in told
    assert "1,000" in told
    assert max(map(len, told.splitlines())) < 400
    rows = [token for token in tokens if token.type == "tr_open"]
    assert len(rows) == 4


HOSTILE_WORDS = [
    "",
    "a b",
    'it\'s "two" $HOME `ls` $(ls) \\ \\\\ ! * ~ #',
    "-x",
    "two\nlines",
    "tab\tand\rreturn 1",
    "\x1b[31m\x7f\x01" + "7",
    "\u202ereversed\u2028 \u200b it's \\",
    "日本 é 😀",
    "[\"a\", 'b']",
]


@pytest.mark.parametrize("text", HOSTILE_WORDS)
def test_a_quoted_word_is_one_argument(text: str) -> None:
    done = subprocess.run(["bash", "-c", f"printf %s {quoted(text)}"], capture_output=True, check=True)
    assert done.stdout.decode() == text
    assert all(char.isprintable() or char == "\n" for char in quoted(text))


def test_limitations_name_the_checks_that_were_not_done() -> None:
    told = " ".join(limits(FULL))
    assert "No decontamination" in told
    assert "Near-duplicate problems were not removed." in told
    assert "by rules" in told
    assert "No row was read by a person." in told
    checked = FULL.model_copy(
        update={"decontaminated_against": ("aime24",), "near_duplicates_removed": True, "reviewed_rows": 3}
    )
    told = " ".join(limits(checked))
    assert "No decontamination" not in told
    assert "aime24" in told
    assert "3 rows were read by a person." in told
    reasons = {"conflicting_answers": 2}
    twice = StageLine(id="problems", verb="source: files", rows_in=3, kept=1, dropped=2, reasons=reasons)
    assert any(
        one.startswith("2 rows of the sources repeat a question with another answer")
        for one in limits(FULL.model_copy(update={"stages": (twice,)}))
    )
    unsure = FULL.model_copy(
        update={
            "models": (ModelLine(name="t", role="teacher", model="org/m"),),
            "sources": (SourceLine(name="files"),),
            "verifiers": (VerifierLine(name="math", version="1", outcomes={"correct": 5, "unverifiable": 1234}),),
            "licence": None,
        }
    )
    told = " ".join(limits(unsure))
    for expected in ("revision of org/m", "licence of org/m", "source files", "1,234 of the published", "no licence"):
        assert expected in told


def test_what_a_student_learned_is_told_with_what_its_intervals_are_about() -> None:
    told = {"correct": 0.41, "low": 0.38, "high": 0.44, "truncated": 0.0, "with_answer": 0.999, "tokens": 67.6}
    long = TaughtDataset(name="long", this=True, about="rows", against="", **told)
    short = TaughtDataset(name="short", this=False, about="rows", against="worse than long: -17.4 points", **told)
    line = TaughtLine(
        comparison="which@1",
        student="m",
        amount=3000,
        axis="tokens",
        seeds=1,
        questions=1043,
        baseline="long",
        datasets=(long, short),
        command="tracefactory teach x.yaml",
    )
    card = render(FULL.model_copy(update={"taught": (line,)}), version="1", configs=CONFIGS)
    assert "3,000 tokens of each dataset below, with 1 training seed, and answered 1,043" in card
    assert "they are about these students, and say nothing about other trainings" in card
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    cells = [token.content for token in tokens if token.type == "inline"]
    first, second = cells.index("`long` (this dataset)"), cells.index("`short`")
    assert cells[first + 1 : second] == ["41.0% (38.0% to 44.0%)", "", "0.0%", "99.9%", "68"]
    assert cells[second + 2] == "worse than long: -17.4 points"
    three = line.model_copy(update={"seeds": 3})
    card = render(FULL.model_copy(update={"taught": (three,)}), version="1", configs=CONFIGS)
    assert "with 3 training seeds" in card
    assert "over questions and training seeds." in card


def test_lengths_are_nearest_rank() -> None:
    line = LengthLine.of("long", range(10, 0, -1))
    assert (line.rows, line.min, line.p10, line.median, line.p90, line.max) == (10, 1, 1, 5, 9, 10)
    assert LengthLine.of("one", [7]).model_dump() == {"group": "one", "rows": 1} | dict.fromkeys(
        ("min", "p10", "median", "p90", "max"), 7
    )
    with pytest.raises(ValueError, match="no lengths"):
        LengthLine.of("none", [])


def test_a_funnel_that_loses_rows_is_refused() -> None:
    with pytest.raises(ValidationError, match="40 rows in"):
        StageLine(id="s", verb="filter", rows_in=40, kept=30, dropped=9)
    with pytest.raises(ValidationError, match="reasons do not add up"):
        StageLine(id="s", verb="filter", rows_in=40, kept=30, dropped=10, reasons={"too_long": 9})


def test_equal_inputs_render_to_equal_cards() -> None:
    assert render(FULL, version="1.0", configs=CONFIGS) == render(FULL, version="1.0", configs=CONFIGS)
