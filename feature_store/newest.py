"""Which of several feature sets is the newest, and whether they differ by age alone.

Where one grew out of the other, the chain of their datasets says which is newer, and no clock is asked. Between chains
the times of runs decide; a feature set that no run tells of (a copy from another store) is older than any that one
does.
"""

from collections.abc import Callable, Mapping, Sequence

from feature_store.identity import FeatureSetSpec, Identity
from feature_store.layout import dataset_of

# The times of runs by feature set, as `RunHistory.latest` gives them; asked for only where they decide.
RunTimes = Callable[[], Mapping[str, str]]


def chain_position(identity: Identity) -> tuple[str, int]:
    """The chain that a feature set's dataset belongs to, and its place in it."""
    grown = identity.grown_from
    return (identity.views_digest, 0) if grown is None else (grown.origin, grown.generation)


def newest_first(specs: Mapping[str, FeatureSetSpec], run_times: RunTimes) -> list[str]:
    """The names, newest first.

    Args:
        specs: the record of each feature set, by its name.
        run_times: gives the id of the latest run of each feature set, which sorts by time.
    """
    positions = {name: chain_position(spec.identity) for name, spec in specs.items()}
    chains = {origin for origin, _ in positions.values()}
    if len(chains) == 1 and len(set(positions.values())) == len(positions):
        return sorted(positions, key=lambda name: positions[name], reverse=True)
    times = run_times()

    def age(name: str) -> tuple[str, int, str, str]:
        origin, generation = positions[name]
        # A predecessor that was extended later, or by a clock that is ahead, does not make it newer than what grew out
        # of it: that counts as made no earlier than all before it.
        of_chain = [each for each, (of, number) in positions.items() if of == origin and number <= generation]
        return max(times.get(each, "") for each in of_chain), generation, times.get(name, ""), name

    return sorted(positions, key=age, reverse=True)


def heads_of_chains(ordered: Sequence[str], specs: Mapping[str, FeatureSetSpec]) -> list[str]:
    """The first name of each chain.

    Args:
        ordered: the names, as `newest_first` gives them.
        specs: the record of each feature set, by its name.
    """
    heads: dict[str, str] = {}
    for name in ordered:
        heads.setdefault(chain_position(specs[name].identity)[0], name)
    return list(heads.values())


def differ_by_age_alone(specs: Mapping[str, FeatureSetSpec]) -> bool:
    """Whether these are states of one dataset name at different times, all made by one recipe with the same arrays.

    Whether two chains are of one dataset is said by the views of their heads, which a record does not have.

    Args:
        specs: the record of each feature set, by its name.
    """
    kinds = {
        (dataset_of(name), spec.identity.recipe, spec.identity.layers, spec.identity.token_kinds, spec.model)
        for name, spec in specs.items()
    }
    dtypes = {spec.identity.storage_dtype for spec in specs.values()}
    # In a chain the same views may come again, when a removed one came back; otherwise age does not tell them apart.
    states = {(spec.identity.views_digest, spec.identity.grown_from) for spec in specs.values()}
    return len(kinds) == len(dtypes) == 1 and len(states) == len(specs)
