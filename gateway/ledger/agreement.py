"""Agreement between reviewers beyond what chance would give. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple


class Agreement(NamedTuple):
    """kappa: 1 is full agreement, 0 what chance gives, None where only one value was ever given. items: how many."""

    kappa: float | None
    items: int


def cohen(pairs: Sequence[tuple[Hashable, Hashable]]) -> Agreement:
    """Cohen's kappa of two reviewers, from their answers to the same items (J. Cohen, 1960).

    kappa = (po - pe) / (1 - pe): po is the share of items with equal answers, pe what the shares of each one's answers
    would give.
    """
    count = len(pairs)
    if not count:
        return Agreement(None, 0)
    observed = sum(one == other for one, other in pairs) / count
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    expected = sum(first[value] * second[value] for value in first) / count**2
    return Agreement(_kappa(observed, expected), count)


def fleiss(items: Sequence[Sequence[Hashable]]) -> Agreement:
    """Fleiss' kappa of any number of reviewers, from all answers to each item (J. L. Fleiss, 1971).

    Items with one answer say nothing about agreement and are left out; the others may have different numbers of
    answers: each has the share of its pairs that agree.
    """
    shared = [Counter(answers) for answers in items if len(answers) > 1]
    if not shared:
        return Agreement(None, 0)
    agreeing = 0.0
    for answers in shared:
        total = sum(answers.values())
        agreeing += sum(count * (count - 1) for count in answers.values()) / (total * (total - 1))
    given: Counter[Hashable] = Counter()
    for answers in shared:
        given.update(answers)
    total = sum(given.values())
    expected = sum((count / total) ** 2 for count in given.values())
    return Agreement(_kappa(agreeing / len(shared), expected), len(shared))


def pairwise(answers: Mapping[str, Mapping[str, Hashable]]) -> dict[tuple[str, str], Agreement]:
    """Cohen's kappa of every two reviewers who share an item. `answers`: by item, then by reviewer."""
    pairs: dict[tuple[str, str], list[tuple[Hashable, Hashable]]] = {}
    for given in answers.values():
        names = sorted(given)
        for at, one in enumerate(names):
            for other in names[at + 1 :]:
                pairs.setdefault((one, other), []).append((given[one], given[other]))
    return {names: cohen(both) for names, both in sorted(pairs.items())}


def _kappa(observed: float, expected: float) -> float | None:
    # With one value alone chance agrees always: there is nothing to be measured.
    return None if 1 - expected < 1e-12 else (observed - expected) / (1 - expected)
