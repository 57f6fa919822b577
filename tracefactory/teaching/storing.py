"""Store the result of a comparison: in `out/`, and on the cards of the releases that took part."""

from __future__ import annotations

from tracefactory.core.errors import UserError
from tracefactory.core.files import write_json
from tracefactory.core.pipeline import Pipeline
from tracefactory.publish.release import add_comparison
from tracefactory.teaching.report import card_line
from tracefactory.teaching.result import RESULT, Result


def store(result: Result, pipeline: Pipeline) -> list[str]:
    """Write a result to `out/NAME/VERSION/teach.json` and to the cards of its releases.

    Args:
        result: the result.
        pipeline: the pipeline of the comparison.

    Returns:
        What was written, and which cards could not be, in sentences.
    """
    file = pipeline.project.out_dir / result.name / result.version / RESULT
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result.model_dump(mode="json"))
    told = [f"the result is in {file}"]
    arms = {} if pipeline.teach is None else pipeline.teach.arms
    releases = {arms[one.name].release: one.release for one in result.datasets if one.release}
    for folder, content in releases.items():
        if not (pipeline.project.root / folder).is_dir():
            continue  # a release of the Hub, whose card belongs to its author
        try:
            add_comparison(pipeline.project.root / folder, card_line(result, content))
        except UserError as error:
            told.append(f"the result is not on a card: {error}")
        else:
            told.append(f"the result is on the card of {folder}")
    return told
