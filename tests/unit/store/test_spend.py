"""The ledger: worst cases are reserved, what is lost stays spent, and nobody exceeds a cap."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracefactory.core.budget import Cap
from tracefactory.core.errors import RunError
from tracefactory.core.prices import Price
from tracefactory.store import spend
from tracefactory.store.claims import Claims
from tracefactory.store.damage import Damage
from tracefactory.store.spend import Amount, Ledger, Refusal, Writer, rewrite

ONE = Amount.of(100, 900, 1.0)
NAME = "sums@1"


OPENED: list[Ledger] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def ledger(root: Path, writer: str = "a", alive: frozenset[str] = frozenset("ab")) -> Ledger:
    OPENED.append(Ledger(root, NAME, Writer(writer, f"run-{writer}", lambda one: one in alive)))
    return OPENED[-1]


def read(root: Path) -> Ledger:
    OPENED.append(Ledger(root, NAME))
    return OPENED[-1]


@pytest.mark.parametrize(("what", "limit"), [("usd", 3.0), ("tokens", 3000), ("requests", 3)])
def test_a_reservation_counts_until_it_is_settled(tmp_path: Path, what: spend.What, limit: float) -> None:
    book, caps = ledger(tmp_path), [Cap(what, limit)]
    numbers = [book.reserve("m", ONE, caps) for _ in range(3)]
    assert all(isinstance(one, int) for one in numbers)
    refused = book.reserve("m", ONE, caps)
    assert isinstance(refused, Refusal)
    assert not refused.final  # what is in flight may take less
    book.settle(numbers[0], Amount())  # it was not sent
    number = book.reserve("m", ONE, caps)
    assert isinstance(number, int)
    for one in (numbers[1], numbers[2], number):
        book.settle(one, ONE)
    refused = book.reserve("m", ONE, caps)
    assert isinstance(refused, Refusal)
    assert (refused.final, refused.spent, refused.asked) == (True, limit, limit / 3)


def test_a_process_that_died_has_spent_its_worst_case(tmp_path: Path) -> None:
    dead, book, caps = ledger(tmp_path, "b"), ledger(tmp_path, "a", frozenset("a")), [Cap("requests", 2)]
    dead.reserve("m", ONE)
    assert isinstance(book.reserve("m", ONE, caps), int)
    refused = ledger(tmp_path, "c", frozenset("c")).reserve("m", ONE, caps)
    assert isinstance(refused, Refusal)
    assert refused.final
    assert sum(one.usd for one in read(tmp_path).totals().values()) == 2.0


def test_a_batch_that_a_dead_process_submitted_is_billed_once(tmp_path: Path) -> None:
    dead = ledger(tmp_path, "b")
    dead.reserve("m", ONE, key="f" * 64)
    dead.reserve("m", ONE, key="0" * 64)
    book = ledger(tmp_path, "a", frozenset("a"))
    number = book.reserve("m", ONE, key="f" * 64)
    assert isinstance(number, int)
    book.settle(number, Amount.of(1, 2, 0.25), replaces="f" * 64)
    assert sum(one.usd for one in read(tmp_path).totals().values()) == 1.25


def test_caps_of_one_model_and_of_all(tmp_path: Path) -> None:
    book, caps = ledger(tmp_path), [Cap("requests", 3), Cap("requests", 1, "m")]
    assert isinstance(book.reserve("m", ONE, caps), int)
    assert isinstance(book.reserve("m", ONE, caps), Refusal)
    assert isinstance(book.reserve("n", ONE, caps), int)
    assert isinstance(book.reserve("n", ONE, caps), int)
    assert isinstance(book.reserve("n", ONE, caps), Refusal)


def test_what_was_unpriced_counts_at_the_price_that_is_known_now(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    number = book.reserve("m", Amount.of(100, 900, None))
    assert isinstance(number, int)
    book.settle(number, Amount.of(1_000_000, 2_000_000, None))
    cap = Cap("usd", 6.0)
    assert book.spent(cap, {}) == 0
    prices = {"m": Price(source="declared", input=1.0, output=2.0)}
    assert book.spent(cap, prices) == 5.0
    assert isinstance(book.reserve("m", Amount.of(1, 1, 1.5), [cap], prices), Refusal)


def test_a_line_that_a_kill_has_cut_off_is_left_out(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    first = book.reserve("m", ONE)
    assert isinstance(first, int)
    book.settle(first, Amount.of(1, 1, 0.5))
    whole = book.path.read_bytes()
    for cut in range(1, len(whole)):
        book.path.write_bytes(whole[:cut])
        spent = sum(one.usd for one in read(tmp_path).totals().values())
        assert spent == (0.0 if cut <= whole.index(b"\n") else 1.0)
        again = ledger(tmp_path, "b")
        again.reserve("m", ONE)
        assert sum(one.usd for one in read(tmp_path).totals().values()) == spent + 1.0


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for _ in range(3):
        book.reserve("m", ONE)
    whole = book.path.read_bytes()
    for place in random.Random(0).sample(range(len(whole) - 1), 60):
        changed = bytearray(whole)
        changed[place] ^= 1
        if whole[place : place + 1] == b"\n" or changed[place : place + 1] == b"\n":
            continue
        book.path.write_bytes(changed)
        with pytest.raises(RunError, match="it is not known what was spent"):
            read(tmp_path)


def test_of_a_damaged_ledger_every_other_line_counts(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for _ in range(3):
        number = book.reserve("m", ONE)
        assert isinstance(number, int)
        book.settle(number, Amount.of(1, 1, 0.25))
    whole = book.path.read_bytes().splitlines(keepends=True)
    # A settlement whose reservation is lost still counts, of no model; a reservation that is not settled, in full.
    for lost, usd in ((0, 0.75), (1, 1.5)):
        book.path.write_bytes(b"".join(b"?\n" if number == lost else line for number, line in enumerate(whole)))
        met: list[Damage] = []
        found = Ledger(tmp_path, NAME, met=met.append)
        found.close()
        assert [(one.path, one.place) for one in met] == [(book.path, f"byte {lost * len(whole[0])}")]
        assert found.spent(Cap("usd", 9), {}) == usd
        assert found.spent(Cap("usd", 9, "m"), {}) == (0.5 if lost == 0 else usd)
        rewrite(tmp_path, NAME)
        assert read(tmp_path).spent(Cap("usd", 9), {}) == usd


def test_rewriting_keeps_every_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spend, "COMPACT_BYTES", 2000)
    book, other = ledger(tmp_path), ledger(tmp_path, "b")
    other.reserve("n", ONE)
    sizes = []
    for index in range(200):
        one = (book, other)[index % 2]
        number = one.reserve("m", ONE)
        assert isinstance(number, int)
        one.settle(number, Amount.of(1, 1, 0.5))
        sizes.append(book.path.stat().st_size)
    assert max(sizes) < 6000 < 200 * 150
    for found in (book, other, read(tmp_path)):
        found.refresh()
        totals = found.totals()
        assert {key: (one.requests, one.usd) for key, one in totals.items()} == {
            ("m", "run-a"): (100, 50.0),
            ("m", "run-b"): (100, 50.0),
            ("n", "run-b"): (1, 1.0),
        }


def spend_until_refused(root: str, seed: int, sent: str) -> None:
    """In a process: reserve, "send" by appending a byte, settle, until the cap is final."""
    claims, draw = Claims(Path(root) / "claims"), random.Random(seed)
    book = Ledger(Path(root), NAME, Writer(claims.writer, str(seed), claims.is_alive))
    with open(sent, "ab", buffering=0) as file:
        while True:
            number = book.reserve("m", ONE, [Cap("requests", 300)])
            if isinstance(number, int):
                file.write(b".")
                book.settle(number, Amount.of(1, 1, draw.random()) if draw.random() < 0.9 else ONE)
            elif number.final:
                break
    book.close()
    claims.close()


def test_processes_together_never_exceed_a_cap_also_when_they_are_killed(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    context = multiprocessing.get_context("spawn")

    def start(seed: int) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=spend_until_refused, args=(str(tmp_path), seed, str(sent)))
        process.start()
        return process

    first = [start(seed) for seed in range(2)]
    deadline = time.monotonic() + 60
    while not sent.exists() or sent.stat().st_size < 50:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for process in first:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    for process in [start(seed) for seed in (3, 4)]:
        process.join(60)
        assert process.exitcode == 0
    spent = sum(one.requests for one in read(tmp_path).totals().values())
    assert spent == 300
    assert 298 <= sent.stat().st_size <= 300  # at most one of each killed process was reserved and not sent
