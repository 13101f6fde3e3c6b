"""Policy: from the state of all versions of a model to the next single action. Pure, stateless, idempotent.

The rules keep a model available: the highest wanted version is loaded first; a version that is no longer wanted is
unloaded only when a wanted one serves, or when none is wanted at all; a version that failed is not wanted, so the
one before it is; and a newer version displaces an older one only once it serves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.models.config import VersionRule


@dataclass(frozen=True, slots=True)
class VersionView:
    """One version as the policy sees it.

    `present`: its files are there. `serving`: it answers requests. `startable`: complete files that are not being
    served and did not fail. `busy`: being tried or loaded. `failed`: its present files were refused.
    """

    version: int
    present: bool = True
    serving: bool = False
    startable: bool = False
    busy: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator asked for through the API, on top of the rule. `all_held`: the model was unloaded."""

    all_held: bool = False
    held: frozenset[int] = field(default_factory=frozenset)
    pinned: frozenset[int] = field(default_factory=frozenset)


class Action(NamedTuple):
    """What to do next, to one version."""

    verb: Literal["load", "unload"]
    version: int


def aspired(
    views: Iterable[VersionView], rule: VersionRule, aliased: Collection[int], wishes: Wishes
) -> frozenset[int]:
    """The versions that should serve: those of the rule, the targets of aliases, and what the operator pinned."""
    views = tuple(views)
    usable = {view.version for view in views if view.present and (view.serving or not view.failed)}
    pinned = usable & wishes.pinned
    if wishes.all_held:
        return frozenset(pinned)
    usable -= wishes.held
    if rule.policy == "all":
        chosen = usable
    elif rule.policy == "specific":
        chosen = usable & set(rule.only)
    else:
        serving = usable & {view.version for view in views if view.serving}
        chosen = set(sorted(usable)[-rule.count :])
        if not chosen <= serving:
            chosen |= set(sorted(serving)[-rule.count :])
    return frozenset(chosen | (usable & set(aliased)) | pinned)


def next_action(views: Collection[VersionView], wanted: Collection[int]) -> Action | None:
    """The one thing to do now, or None. One version of a model is loaded at a time, the highest first."""
    if not any(view.busy for view in views):
        startable = [view.version for view in views if view.startable and view.version in wanted]
        if startable:
            return Action("load", max(startable))
    surplus = [view.version for view in views if view.serving and view.version not in wanted]
    if surplus and (not wanted or any(view.serving and view.version in wanted for view in views)):
        return Action("unload", min(surplus))
    return None
