"""What an upgrade of this package changes about the verdicts that a stage has stored; `tracefactory plan` prints it."""

from __future__ import annotations

from tracefactory.core.rows import Frozen, Outcome


class ChangedVerdicts(Frozen):
    """Stored verdicts that would change in the same way.

    `reason` is the rule that leaves the answers undecided now, "" where they are decided. `row` is the id of one of the
    rows, and `text` the part of its text that was read.
    """

    before: Outcome
    after: Outcome
    reason: str = ""
    count: int
    row: str
    text: str

    def __str__(self) -> str:
        # Quoted, because it is the text of a model, and may hold what a terminal obeys; TeX stays as it is written.
        text = repr(self.text).replace("\\\\", "\\")
        notes = [*([self.reason] if self.reason else []), f"e.g. trace {self.row}: {text}"]
        return f"{self.count:,} {self.before} -> {self.after} ({', '.join(notes)})"


class ComparedVerdicts(Frozen):
    """Stored verdicts, compared with those that the verifiers give now without a process or a request.

    Of the `stored` verdicts, `compared` were compared; `needs_process` were not, because their answers need computer
    algebra or run code; the others were left out to save time. `changed` has the most frequent first.
    """

    stored: int
    compared: int
    needs_process: int
    changed: tuple[ChangedVerdicts, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The numbers as a sentence, then a line for every kind of change."""
        if not self.stored:
            return ("no verdict is stored",)
        skipped = self.stored - self.compared - self.needs_process
        left = [f"{self.needs_process:,} need computer algebra or run code"] if self.needs_process else []
        left += [f"{skipped:,} were left out to save time"] if skipped else []
        beside = f" ({', '.join(left)})" if left else ""
        count = sum(one.count for one in self.changed)
        what = f"{count:,} would change" if count else "no verdict changes" if self.compared else "nothing is known"
        total = f"of {self.stored:,} stored verdicts {self.compared:,} were compared{beside}: {what}"
        return (total, *map(str, self.changed))


class Upgrade(Frozen):
    """What other versions of its code change about the rows of a stage.

    `words` are sentences about the versions; `verdicts` is None where stored verdicts were not compared.
    """

    words: tuple[str, ...] = ()
    verdicts: ComparedVerdicts | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """Everything as sentences."""
        return (*self.words, *(() if self.verdicts is None else self.verdicts.lines))
