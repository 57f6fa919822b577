"""How worked solutions without a marker are read, whole and cut: `make closings` writes docs/verdicts.md.

The texts are made from GSM8K and MATH where they are at hand (../shared/data): a GSM8K solution without its `####`
line, a MATH solution whose last box is opened; the same with the gold answer of another problem; the first 60% of their
sentences; and their first sentence alone. A cut text states no answer, so a verdict on it is wrong.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tracefactory.answers.boxes import find_boxes
from tracefactory.answers.extract import extract
from tracefactory.answers.shapes import shape_of
from tracefactory.core.rows import Outcome
from tracefactory.verification.agreement import Pair, verify_pairs
from tracefactory.verifiers.math import gold_reading

DATA = next(
    (up / "shared/data/problems" for up in Path(__file__).resolve().parents if (up / "shared/data").is_dir()), None
)
DOCS = Path(__file__).parents[1] / "tracefactory" / "docs" / "verdicts.md"
COUNT = 400
FORMS = ("last_line", "concluded", "sentence")


def main() -> None:
    if DATA is None:
        raise SystemExit("../shared/data is not here: the table of docs/verdicts.md is left as it is")
    gsm, math = list(_gsm8k(DATA)), list(_math(DATA))
    lines = ["| texts | n | correct | incorrect | no verdict |", "|---|---:|---:|---:|---:|"]
    forms = [
        "| form | right solutions read right | others read wrong | cut texts read as an answer |",
        "|---|---:|---:|---:|",
    ]
    whole: Counter[tuple[str, bool]] = Counter()
    cut: Counter[str] = Counter()
    for name, worked in (("GSM8K", gsm), ("MATH", math)):
        random.Random(20261122).shuffle(worked)
        others = worked[COUNT : 2 * COUNT]
        pairs_of = zip(others, [*others[1:], others[0]], strict=True)
        sets = {
            "without a marker": [(gold, text) for gold, text, _ in worked[:COUNT]],
            "with another problem's gold": [(new, text) for (gold, text, _), (new, *_) in pairs_of if gold != new],
            "cut at 60% of the sentences": list(_before_the_answer(worked[2 * COUNT :], 0.6)),
            "first sentence": list(_before_the_answer(worked[2 * COUNT :], 0.0)),
        }
        for kind, rows in sets.items():
            pairs = [Pair(gold=gold, text=text, bare=False, label="correct") for gold, text in rows]
            verdicts = verify_pairs(pairs, workers=2)
            outcomes = Counter(verdict.outcome for verdict in verdicts)
            right, wrong = outcomes[Outcome.CORRECT], outcomes[Outcome.INCORRECT]
            lines.append(f"| {name}, {kind} | {len(rows)} | {right} | {wrong} | {len(rows) - right - wrong} |")
            for pair, verdict in zip(pairs, verdicts, strict=True):
                found = extract(pair.text, shape=shape_of(gold_reading(pair.gold)))
                if found is not None and kind == "without a marker":
                    whole[found.how, verdict.outcome is Outcome.CORRECT] += 1
                elif found is not None and kind != "with another problem's gold":
                    cut[found.how] += 1
    for form in FORMS:
        forms.append(f"| {form} | {whole[form, True]} | {whole[form, False]} | {cut[form]} |")
    text = DOCS.read_text("utf-8")
    made = "\n".join((*lines, "", *forms))
    text = re.sub(r"(?<=<!-- closings -->\n).*?(?=<!-- /closings -->)", lambda _: made + "\n", text, flags=re.DOTALL)
    DOCS.write_text(text, "utf-8")
    print(made)


Worked = tuple[str, str, int]
"""The gold answer, the solution, and the place where the solution begins to state it."""


def _gsm8k(data: Path) -> Iterator[Worked]:
    for line in (data / "gsm8k_train.jsonl").read_text("utf-8").splitlines():
        text, gold = json.loads(line)["answer"].rsplit("####", 1)
        text = re.sub(r"<<[^<>]*>>", "", text).strip()
        yield gold.strip(), text, text.rfind("\n") + 1


def _math(data: Path) -> Iterator[Worked]:
    for line in (data / "math_test.jsonl").read_text("utf-8").splitlines():
        text = json.loads(line)["solution"]
        boxes = find_boxes(text)
        if len(boxes) == 1 and boxes[0].closed and "asy]" not in text[boxes[0].start :]:
            box = boxes[0]
            yield box.text, text[: box.start] + box.text + text[box.end :], box.start


def _before_the_answer(worked: list[Worked], share: float) -> Iterator[tuple[str, str]]:
    """Yield the first sentences of solutions that state the answer only later."""
    cut = ((gold, _cut(text, share), at) for gold, text, at in worked)
    yield from islice(((gold, text) for gold, text, at in cut if len(text) <= at), COUNT)


def _cut(text: str, share: float) -> str:
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z$\\0-9])|(?<=\n)", text)
    return "".join(
        f"{one} " if one and not one.endswith("\n") else one for one in sentences[: max(1, int(len(sentences) * share))]
    ).rstrip()


if __name__ == "__main__":
    main()
