"""The dataset card: a README.md with the metadata of the Hugging Face Hub, made only from the records of the run.

The card states numbers and limitations, without judgements. Values from data, models and users are escaped, so that
they cannot add markup, links or metadata to the card. The metadata block follows
https://huggingface.co/docs/hub/datasets-cards.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from pydantic import Field, model_validator

from tracefactory.core.prices import dollars
from tracefactory.core.rows import Frozen
from tracefactory.engine.lengths import LengthLine
from tracefactory.publish.command import RecipeLine
from tracefactory.publish.taught import TaughtLine
from tracefactory.publish.training import trainers_of
from tracefactory.trainers import Data

# The `license:` identifiers of the Hub (https://huggingface.co/docs/hub/repositories-licenses) for data and models; any
# other licence is written as `other` with a name.
# fmt: off
_HUB_LICENCES = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc",
    "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa",
    "unlicense", "zlib", "pddl", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma",
    "unknown",
})
# fmt: on
_SIZES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
}
_SHORT = 200  # characters of a changed value in a table; the pipeline has all of it
_TAGS = ("tracefactory", "synthetic", "reasoning", "chain-of-thought", "distillation")
_PLAIN = re.compile(r"[\w./:@+=-]+( [\w./:@+=-]+)*", re.ASCII)
_MARKUP = re.compile(r"([\\`*_\[\]|~$]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
_BLOCK_START = re.compile(r"^(\d*)([#+=.)-])")


class StageLine(Frozen):
    """One stage of the funnel. `reasons` counts dropped and failed rows; tokens are prompt plus completion.

    `cost` is in US dollars, None where it is unknown, and without the `unpriced` requests, whose price is unknown.

    Raises ValueError when the rows do not add up, because a card must not show a funnel with lost rows.
    """

    id: str
    verb: str
    rows_in: int
    kept: int
    dropped: int = 0
    errors: int = 0
    reasons: Mapping[str, int] = Field(default_factory=dict)
    requests: int = 0
    tokens: int = 0
    cost: float | None = 0.0
    unpriced: int = 0

    @model_validator(mode="after")
    def _adds_up(self) -> StageLine:
        if self.rows_in != self.kept + self.dropped + self.errors:
            raise ValueError(
                f"stage {self.id}: {self.rows_in} rows in, but {self.kept}+{self.dropped}+{self.errors} out"
            )
        if sum(self.reasons.values()) != self.dropped + self.errors:
            raise ValueError(f"stage {self.id}: the reasons do not add up to the rows dropped and failed")
        return self


class MixLine(Frozen):
    """One part of a mix: the requested share, in 0..1, and its number of units."""

    stage: str
    part: str
    unit: str
    asked: float = Field(ge=0, le=1)
    got: int = Field(ge=0)


class ModelLine(Frozen):
    """A model of the dataset; `role` is teacher, student, rewriter, judge, or several; empty if not recorded."""

    name: str
    role: str
    model: str
    revision: str = ""
    licence: str = ""


class PruneLine(Frozen):
    """The rows that one stage pruned: the median share of characters kept, and the `unit` that are saved in all."""

    stage: str
    pruner: str
    rows: int
    kept_share: float
    saved: int
    unit: str


class BillLine(Frozen):
    """What the completions of one model cost at one price, in US dollars, without the `unpriced` ones.

    `gpu_hours` are those of all runs of this version, which are on the line of the model's GPUs.
    """

    model: str
    price: str
    requests: int = 0
    tokens: int = 0
    cost: float | None = 0.0
    unpriced: int = 0
    gpu_hours: float = 0.0


class PromptLine(Frozen):
    """A prompt and the digest of its text."""

    name: str
    digest: str


class SourceLine(Frozen):
    """A source of problems. `rows` is the number of problems of its stage."""

    name: str
    revision: str = ""
    licence: str = ""
    rows: int = 0


class VerifierLine(Frozen):
    """A verifier and the number of published rows with each of its outcomes."""

    name: str
    version: str
    outcomes: Mapping[str, int] = Field(default_factory=dict)


class MeasureLine(Frozen):
    """One column that stages added to the rows: its description, unit and better direction."""

    name: str
    about: str
    unit: str = ""
    direction: str = ""
    source: str = ""


class MissingLine(Frozen):
    """The rows of one stage that are missing because their requests failed: `rows` of `of`, with the reasons."""

    stage: str
    rows: int
    of: int
    reasons: Mapping[str, int]


class SiblingLine(Frozen):
    """Another dataset that the same pipeline publishes under the same version: its name, stage and repository."""

    name: str
    stage: str
    repo: str | None = None


class CardInputs(Frozen):
    """The content of a card, recorded by the run or written by its author.

    `licence` is the licence that the author declares, `recipe` reproduces it. `notes` are sentences, such
    as the shortfall of a mix. `repo` is the Hub repository, if there is one. `sft_weight` is the weight of the SFT loss
    beside DPO in the recipe, 0 for none. The limitations are made from `decontaminated_against`,
    `near_duplicates_removed` and `reviewed_rows` (rows read by a person). `taught` is from `tracefactory teach`.
    """

    title: str
    summary: str = ""
    licence: str | None = None
    repo: str | None = None
    siblings: tuple[SiblingLine, ...] = ()
    sft_weight: float = 0.0
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    stages: tuple[StageLine, ...] = ()
    bills: tuple[BillLine, ...] = ()
    mix: tuple[MixLine, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[MissingLine, ...] = ()
    lengths: tuple[LengthLine, ...] = ()
    pruned: tuple[PruneLine, ...] = ()
    models: tuple[ModelLine, ...] = ()
    prompts: tuple[PromptLine, ...] = ()
    sources: tuple[SourceLine, ...] = ()
    verifiers: tuple[VerifierLine, ...] = ()
    measures: tuple[MeasureLine, ...] = ()
    decontaminated_against: tuple[str, ...] = ()
    near_duplicates_removed: bool = False
    reviewed_rows: int = 0
    control_tokens: str = ""
    recipe: RecipeLine | None = None
    taught: tuple[TaughtLine, ...] = ()


class ViewColumn(Frozen):
    """One column of a configuration."""

    name: str
    type: str
    about: str


class ConfigLine(Frozen):
    """One configuration of the release: a view, its summary (Markdown), its rows and the pattern of its files."""

    name: str
    summary: str
    rows: int
    files: str
    columns: tuple[ViewColumn, ...] = ()


class _Safe(str):
    """Markdown text that must not be escaped."""


def render(inputs: CardInputs, *, version: str, configs: tuple[ConfigLine, ...]) -> str:
    """Return the README.md of a release: YAML metadata and the text. Equal arguments give equal bytes.

    Args:
        inputs: the content of the card.
        version: the version of the release.
        configs: its configurations; the first one is the default.
    """
    body = _template().render(
        card=inputs,
        version=version,
        configs=configs,
        rows=max((config.rows for config in configs), default=0),
        limits=limits(inputs),
        loading=_loading(inputs.repo, version, configs),
        trainers=trainers_of([config.name for config in configs], _data(inputs, version)),
        mix_total={name: sum(m.got for m in inputs.mix if m.stage == name) for name in {m.stage for m in inputs.mix}},
    )
    return f"---\n{metadata(inputs, configs)}\n---\n\n{body}"


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    """Return the template of cards, which takes a tenth of a second to compile."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.finalize = lambda value: value if isinstance(value, _Safe) else escape(str(value))
    environment.filters.update(
        code=_code,
        fence=_fence,
        markdown=_Safe,
        reasons=_reasons,
        number=lambda value: _Safe(f"{value:,}"),
        short=lambda text: text if len(text) <= _SHORT else f"{text[:_SHORT]} ...",
        percent=lambda value: _Safe(f"{100 * value:.1f}%"),
        hours=lambda value: _Safe(f"{value:,.2f}" if value else "-"),
        usd=lambda line: _Safe(dollars(line.cost, line.unpriced, line.requests)),
    )
    return environment.from_string(Path(__file__).with_name("card_template.md.j2").read_text("utf-8"))


def metadata(inputs: CardInputs, configs: tuple[ConfigLine, ...]) -> str:
    """Return the YAML metadata of the card, without the `---` lines."""
    rows = max((config.rows for config in configs), default=0)
    licence = (inputs.licence or "").strip()
    known = licence.lower() if licence.lower() in _HUB_LICENCES else "other"
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-") or "other"
    extra: dict[str, Any] = {"license_name": slug} if licence and known == "other" else {}
    from huggingface_hub import DatasetCardData  # takes 0.1 s to import

    data = DatasetCardData(
        language=list(inputs.languages) or None,
        license=known if licence else None,
        pretty_name=" ".join(inputs.title.split()),
        size_categories=[next((name for limit, name in _SIZES.items() if rows < limit), "1B<n<10B")],
        task_categories=["text-generation"],
        tags=list(dict.fromkeys((*_TAGS, *inputs.tags))),
        configs=[
            {
                "config_name": config.name,
                "data_files": [{"split": "train", "path": config.files}],
                **({"default": True} if index == 0 else {}),
            }
            for index, config in enumerate(configs)
        ],
        **extra,
    )
    return str(data.to_yaml())


def limits(inputs: CardInputs) -> list[str]:
    """Return sentences about what was not checked or is not known about the dataset."""
    found = []
    if inputs.verifiers:
        found.append(
            "Verification is by rules on the final answer. The reasoning was not checked: a trace can reach a correct "
            "answer by wrong steps, and rules can accept a wrong answer or refuse a correct one."
        )
    else:
        found.append("No answer in this dataset was verified.")
    unproven = sum(n for line in inputs.verifiers for outcome, n in line.outcomes.items() if outcome != "correct")
    if unproven:
        found.append(f"{unproven:,} of the published rows have a verdict other than correct.")
    if inputs.decontaminated_against:
        names = ", ".join(inputs.decontaminated_against)
        found.append(f"Problems were compared with these benchmarks and no others: {names}.")
    else:
        found.append("No decontamination: the problems were not compared with any benchmark.")
    if not inputs.near_duplicates_removed:
        found.append("Near-duplicate problems were not removed.")
    if conflicting := sum(stage.reasons.get("conflicting_answers", 0) for stage in inputs.stages):
        repeats = f"{conflicting:,} rows of the sources repeat a question with another answer"
        found.append(f"{repeats}: the first one was kept, and nobody has checked which is right.")
    reviewed = f"{inputs.reviewed_rows:,} rows were" if inputs.reviewed_rows else "No row was"
    found.append(f"{reviewed} read by a person.")
    for model in inputs.models:
        if not model.revision:
            found.append(f"The revision of {model.model} is not recorded: the same name may serve other weights later.")
        if not model.licence:
            found.append(f"The licence of {model.model} is not recorded: check what it allows for its outputs.")
    found.extend(f"The licence of the source {s.name} is not recorded." for s in inputs.sources if not s.licence)
    if not inputs.licence:
        found.append("The author declared no licence for this dataset.")
    for bill in inputs.bills:
        if bill.unpriced:
            found.append(
                f"The price of {bill.unpriced:,} completions of {bill.model} is unknown: costs are without it."
            )
        elif bill.cost is None:
            found.append(f"The price of the GPU-hours of {bill.model} is unknown: costs are without it.")
    if inputs.lengths:
        found.append("Lengths are in the tokens of each teacher; a student's tokenizer gives other numbers.")
    return found


def _loading(repo: str | None, version: str, configs: tuple[ConfigLine, ...]) -> str:
    """Return Python code that loads the first configuration, from the Hub at this version or from the folder."""
    data = Data(repo or "PATH/TO/THIS/FOLDER", hub=repo is not None, revision=f"v{version}" if repo else "")
    return f"from datasets import load_dataset\n\nrows = {data.loaded(configs[0].name if configs else '')}"


def _data(inputs: CardInputs, version: str) -> Data:
    """Return the dataset and its student as trainers name them; without a student, a name to be replaced."""
    place, revision = (inputs.repo, f"v{version}") if inputs.repo else ("PATH/TO/THIS/FOLDER", "")
    student = next((one.model for one in inputs.models if one.role == "student"), "STUDENT")
    return Data(place, hub=inputs.repo is not None, revision=revision, student=student, sft_weight=inputs.sft_weight)


def escape(text: str) -> str:
    """Return text as one line of Markdown without markup, HTML, table cells or automatic links."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    return _BLOCK_START.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", one_line))


def _code(value: object) -> _Safe:
    """Return an identifier as code if that needs no escaping, else as escaped text; a dash if it is empty."""
    text = str(value)
    if not text:
        return _Safe("-")
    return _Safe(f"`{text}`" if _PLAIN.fullmatch(text) else escape(text))


def _fence(text: str, language: str) -> _Safe:
    """Return a fenced block with a fence longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return _Safe(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def _reasons(counts: Mapping[str, int]) -> _Safe:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _Safe(", ".join(f"{_code(name)} {number:,}" for name, number in ordered) or "-")
