"""`vitrine doctor`: what the storage under a store really promises."""

from typing import TYPE_CHECKING, Any

import typer

from vitrine.options import Json, Store

if TYPE_CHECKING:
    from feature_store.probing import Probe


def doctor(store: Store, json: Json = False) -> None:
    """Probe whether the storage under a store keeps what a store rests on: fsync, rename, listing, ranges ...

    The place need not hold a store yet. Some 50 MB are written to a temporary folder there and removed again. Exit
    code 0 when the storage suffices, 1 when not.

    \b
    vitrine doctor features
    vitrine doctor s3://bucket/features --json
    """
    from feature_store.probing import diagnose
    from vitrine import exits
    from vitrine.output import console, print_json, print_table

    diagnosis = diagnose(store)
    if json:
        print_json(
            {
                "store": diagnosis.url,
                "suffices": diagnosis.suffices,
                "probes": [_record(probe) for probe in diagnosis.probes],
            }
        )
    else:
        rows = [(probe.name, _verdict(probe), probe.found) for probe in diagnosis.probes]
        print_table(f"{diagnosis.url}", ("promise", "kept", "found"), rows)
        for probe in diagnosis.probes:
            if probe.kept is False:
                console().print(f"{probe.name}: {probe.risk}", markup=False)
        verdict = "suffices for a store" if diagnosis.suffices else "does not suffice for a store: choose another place"
        console().print(f"the storage {verdict}", markup=False)
    raise typer.Exit(exits.DONE if diagnosis.suffices else exits.FAILED)


def _record(probe: "Probe") -> dict[str, Any]:
    return {
        "name": probe.name,
        "kept": probe.kept,
        "needed": probe.needed,
        "found": probe.found,
        "risk": probe.risk if probe.kept is False else None,
    }


def _verdict(probe: "Probe") -> str:
    if probe.kept is None:
        return ""
    return "yes" if probe.kept else "NO" if probe.needed else "no"
