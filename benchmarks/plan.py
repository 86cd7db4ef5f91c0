"""What is injected and in which order, so that a part of it is spread over commands, kinds of calls and positions."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .injections import Bench, Errand, Expected


@dataclass(frozen=True)
class Survey:
    """An errand's undisturbed run, and how many calls of each kind there are in it.

    seconds: what it took. calls: on paths in its folder, by kind. of_source: those on its source alone. allocations:
    the larger ones. changed: digests of what may come of a source that is changed meanwhile, by the change's name.
    """

    expected: Expected
    seconds: float
    calls: Mapping[str, int]
    of_source: Mapping[str, int]
    allocations: int
    changed: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Injection:
    """One fault: its row (`kind`) and `column`, `where` it happens, and `work`, which gives the outcome and words.

    rank: the how-manieth it is of those that differ from it in their position only.
    """

    errand: Errand
    kind: str
    column: str
    where: str
    rank: int
    work: Callable[[Bench], tuple[str, str]]


def positions(calls: int, most: int) -> list[int]:
    """At most `most` of the calls 1 ... `calls`, the first and the last among them."""
    if calls <= most:
        return list(range(1, calls + 1))
    return sorted({1 + round(at * (calls - 1) / max(most - 1, 1)) for at in range(most)})


def ranks(count: int) -> list[int]:
    """By place in a row of `count`: when it comes if every beginning is to be spread evenly (ends, middle, ...)."""
    order = list(dict.fromkeys([0, count - 1][:count]))
    gaps = [(0, count - 1)]
    for low, high in gaps:
        middle = (low + high) // 2
        if low < middle:
            order.append(middle)
            gaps += (low, middle), (middle, high)
    return [rank for _, rank in sorted((at, rank) for rank, at in enumerate(order))]


def ranked(calls: int, most: int) -> Iterator[tuple[int, int]]:
    """`positions`, each with its rank."""
    chosen = positions(calls, most)
    return zip(chosen, ranks(len(chosen)), strict=True)


def in_turn(injections: Sequence[Injection]) -> list[int]:
    """Their places in the order in which they are best done: one position of everything, then another, and so on."""
    places = list(range(len(injections)))
    random.Random(0).shuffle(places)
    return sorted(places, key=lambda at: injections[at].rank)


def rounds_done(injections: Sequence[Injection], done: Mapping[int, object]) -> int:
    """Of everything at least so many positions are among `done`, or all that there are."""
    return min((injection.rank for at, injection in enumerate(injections) if at not in done), default=0)
