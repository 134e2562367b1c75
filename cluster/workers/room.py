"""Whether ranks and actors fit the nodes, counted before any of them starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

Bundle = dict[str, float]
"""Cores ("CPU"), GPUs ("GPU") and other resources that one process reserves, as Ray's placement groups take them."""
Node = Mapping[str, float]
"""All that one node has, by the same names."""

ROUNDING = 1e-6
"""Ray counts in steps of a ten-thousandth."""


@dataclass(frozen=True)
class Demand:
    """Workers of one kind."""

    kind: str
    """For messages: what they are."""
    key: str
    """For messages: the config key that says how many."""
    count: int
    bundle: Bundle
    strategy: str = "PACK"
    """Ray's: STRICT_PACK puts all on one node, STRICT_SPREAD no two."""


def shortage(nodes: Sequence[Node], ranks: Demand, actors: Demand) -> str | None:
    """Why ``ranks`` and ``actors`` can't be placed on ``nodes`` together, in one line; None when they can."""
    for demand in (ranks, actors):
        if demand.count and not any(times(node, demand.bundle) for node in nodes):
            return f"{_needs(demand)}; no node has that: {_offer(nodes, demand.bundle)}"
    if fits(nodes, ranks, actors):
        return None
    if not fits(nodes, ranks, replace(actors, count=0)) and ranks.strategy.startswith("STRICT"):
        return f"{_needs(ranks)} under cluster.strategy {ranks.strategy}; {_offer(nodes, ranks.bundle)}"
    return f"the run needs {_sum(nodes, ranks, actors)}; {_offer(nodes, ranks.bundle | actors.bundle)}"


def fits(nodes: Sequence[Node], ranks: Demand, actors: Demand) -> bool:
    """Whether some placement has room for all. Each actor lies on one node, whatever the ranks' strategy."""
    if ranks.strategy == "STRICT_PACK" and ranks.count:
        whole = {name: amount * ranks.count for name, amount in ranks.bundle.items()}
        return fits(nodes, replace(ranks, count=1, bundle=whole, strategy="PACK"), actors)
    return ranks_beside(nodes, ranks, actors)[-1] >= ranks.count


def may_hold(node: Node, demand: Demand) -> bool:
    """Whether a node is large enough for one worker of a kind."""
    return times(node, demand.bundle) > 0


def ranks_beside(nodes: Sequence[Node], ranks: Demand, actors: Demand) -> list[float]:
    """For 0, 1, … ``actors.count`` actors: the most ranks that fit beside so many; -inf where the actors do not fit."""
    most = [0.0] + [-inf] * actors.count
    for node in nodes:
        here = _by_actors(node, ranks, actors)
        most = [
            max(most[total - own] + here[own] for own in range(min(total, len(here) - 1) + 1))
            for total in range(actors.count + 1)
        ]
    return most


def _by_actors(node: Node, ranks: Demand, actors: Demand) -> list[int]:
    """Ranks that fit one node beside 0, 1, … actors."""
    rooms = []
    for own in range(min(times(node, actors.bundle), actors.count) + 1):
        left = {name: amount - own * actors.bundle.get(name, 0.0) for name, amount in node.items()}
        room = min(times(left, ranks.bundle), ranks.count)
        rooms.append(min(room, 1) if ranks.strategy == "STRICT_SPREAD" else room)
    return rooms


def times(node: Node, bundle: Bundle) -> int:
    """How many of a bundle a node holds."""
    return int(min((node.get(name, 0.0) + ROUNDING) // amount for name, amount in bundle.items() if amount))


def _needs(demand: Demand) -> str:
    each = ", ".join(_amount(amount, name) for name, amount in demand.bundle.items())
    return f"{demand.key} {demand.count} needs {each} for each"


def _sum(nodes: Sequence[Node], ranks: Demand, actors: Demand) -> str:
    """Such as ``8 GPUs for ranks + 2 for actors = 10``: what there is too little of, else everything."""
    short, all_of_them = [], []
    for name in dict.fromkeys((*ranks.bundle, *actors.bundle)):
        parts = [(demand.count * demand.bundle.get(name, 0.0), demand.kind) for demand in (ranks, actors)]
        (first, kind), *others = [part for part in parts if part[0]] or parts
        text = f"{_amount(first, name)} for {kind}" + "".join(f" + {amount:g} for {other}" for amount, other in others)
        total = first + sum(amount for amount, _ in others)
        all_of_them.append(f"{text} = {total:g}" if others else text)
        if total > sum(node.get(name, 0.0) for node in nodes) + ROUNDING:
            short.append(all_of_them[-1])
    return ", ".join(short or all_of_them)


def _offer(nodes: Sequence[Node], bundle: Bundle) -> str:
    """What the nodes have of a bundle's kinds, equal ones counted: ``the cluster has 1 node with 8 GPUs, 96 CPUs``."""
    names = sorted(bundle, key=lambda name: name != "GPU")
    counted = Counter(", ".join(_amount(node.get(name, 0.0), name) for name in names) for node in nodes)
    kinds = [f"{count} node{'s' * (count > 1)} with {text}" for text, count in counted.items()]
    return f"the cluster has {' and '.join(kinds) or 'no node'}"


def _amount(amount: float, name: str) -> str:
    """Such as ``8 GPUs``; other kinds by their own names."""
    return f"{amount:g} {name}{'s' * (amount != 1)}" if name in ("CPU", "GPU") else f"{name} {amount:g}"
