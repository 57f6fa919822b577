from __future__ import annotations

import numpy as np

from tracefactory.sampling.noise import STUDENT, TEACHER, Noise, philox4x32


def words(*values: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], dtype=np.uint64) for value in values)


def test_philox_gives_the_known_answers_of_its_authors() -> None:
    """Random123's kat_vectors for philox4x32-10."""
    known = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in known:
        assert tuple(int(word[0]) for word in philox4x32(words(*counter), words(*key))) == expected


def test_random_numbers_depend_on_positions_and_not_on_batches() -> None:
    tokens = np.arange(12).reshape(3, 4)
    together = Noise(np.array([5, 5, 9], dtype=np.uint64), np.array([0, 1, 0])).gumbel(TEACHER, tokens)
    alone = Noise(np.array([5], dtype=np.uint64), np.array([1])).gumbel(TEACHER, tokens[1:2, ::-1])
    assert (together[1] == alone[0, ::-1]).all()
    assert (
        len(np.unique(Noise(np.array([1], dtype=np.uint64), np.array([0])).uniform(0, np.arange(9999)[None]))) == 9999
    )


def test_traces_positions_and_streams_are_independent() -> None:
    tokens = np.arange(20_000)[None]

    def draw(key: int, position: int, stream: int) -> np.ndarray:
        return Noise(np.array([key], dtype=np.uint64), np.array([position])).uniform(stream, tokens)[0]

    base = draw(1, 0, STUDENT)
    for other in (draw(2, 0, STUDENT), draw(1 << 40, 0, STUDENT), draw(1, 1, STUDENT), draw(1, 0, TEACHER)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03
    assert abs(base.mean() - 0.5) < 0.01
    assert base.min() > 0
    assert base.max() < 1


def test_a_number_is_made_of_both_halves_of_the_key_and_of_its_place() -> None:
    first, second, *_ = philox4x32(words(7, 3, TEACHER, 0), words(0x13198A2E, 0xA4093822))
    drawn = Noise(np.array([0xA409382213198A2E], dtype=np.uint64), np.array([3])).uniform(TEACHER, np.array([[7]]))
    assert drawn[0, 0] == (((int(first[0]) >> 5) << 26) + (int(second[0]) >> 6) + 0.5) / 2**53
