"""`vitrine ls`, `show` and `results`: what is in a store."""

from typing import TYPE_CHECKING, Any

from vitrine.options import Features, Json, Store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


def ls(store: Store, json: Json = False) -> None:
    """List the feature sets of a store.

    \b
    vitrine ls features
    """
    from feature_store import open_store
    from feature_store.runs import RunHistory, run_time
    from vitrine.output import console, count_of_rows, counted, print_json, print_table, size

    opened = open_store(store)
    sets, broken = opened.readable(partial=True)
    latest = RunHistory(opened.root).latest([features.name for features in sets])
    extracted = {name: run_time(run_id) for name, run_id in latest.items()}
    opened.root.side_by_side(lambda features: features.standing, sets)
    if json:
        listed = [_listed(each, extracted) for each in sets]
        texts = {name: str(error) for name, error in broken.items()}
        print_json({"store": opened.url, "feature_sets": listed, "broken": texts})
        return
    rows = [
        (
            features.name,
            features.spec.title,
            count_of_rows(features),
            ",".join(map(str, features.spec.identity.layers)),
            ",".join(features.spec.identity.token_kinds),
            f"{len(features.standing)}/{len(features.shards)}",
            size(_standing_bytes(features)),
            f"{time:%Y-%m-%d %H:%M}" if (time := extracted.get(features.name)) else None,
        )
        for features in sets
    ]
    print_table(
        f"{opened.url}: {counted(len(rows), 'feature set')}",
        ("features", "model", "rows", "layers", "tokens", "shards", "size", "extracted (UTC)"),
        rows,
    )
    for name, reason in broken.items():
        console().print(f"{name} cannot be read: {reason}", markup=False)


def _listed(features: Any, extracted: "Mapping[str, datetime | None]") -> dict[str, Any]:
    time = extracted.get(features.name)
    return {
        **_summary(features, n_committed=len(features.standing), stored_bytes=_standing_bytes(features)),
        "extracted": None if time is None else time.isoformat(),
    }


def _standing_bytes(features: Any) -> int:
    """Bytes of the token rows that stand there."""
    from feature_store.arrays import row_bytes

    return int(row_bytes(features.spec) * sum(shard.n_rows for shard in features.standing))


def _summary(features: Any, *, n_committed: int, stored_bytes: int) -> dict[str, Any]:
    spec = features.spec
    return {
        "name": features.name,
        "digest": features.digest,
        "model": spec.model,
        "title": spec.title,
        "rows": spec.n_rows,
        "removed": features.n_removed,
        "layers": list(spec.identity.layers),
        "token_kinds": list(spec.identity.token_kinds),
        "shards": len(features.shards),
        "committed": n_committed,
        "complete": n_committed == len(features.shards),
        "stored_bytes": stored_bytes,
    }


def show(store: Store, features: Features = None, json: Json = False) -> None:
    """Show one feature set: its identity in full, its dataset, and the rows that have no tokens.

    \b
    vitrine show features --features camvid/demo
    """
    from feature_store.runs import earlier_environments
    from vitrine.opened import open_features
    from vitrine.output import print_json

    found = open_features(store, features, partial=True)
    environments = earlier_environments(found.root, found.folder)
    record = {
        **_summary(found, n_committed=len(found.receipts), stored_bytes=found.stored_bytes),
        "identity": found.spec.identity.to_json(),
        "computation": found.spec.identity.computation,
        "assumed": list(found.spec.assumed),
        "batch_size": found.spec.batch_size,
        "attention_kernel": found.spec.attention_kernel,
        "rows_per_shard": found.spec.rows_per_shard,
        "grid": list(found.spec.grid),
        "n_features": found.spec.n_features,
        "dataset": _dataset(found),
        "invalid_rows": [{"row": entry.row, "reason": entry.reason} for entry in found.invalid_rows],
        "environments": environments,
        "mixed_environment": len(environments) > 1,
    }
    if json:
        print_json(record)
    else:
        _print_record(record, found)


def _dataset(found: Any) -> dict[str, Any]:
    dataset = found.dataset
    return {
        "name": dataset.spec.name,
        "classes": list(dataset.spec.classes),
        "void": dataset.spec.void,
        "license": dataset.spec.license,
        "views_digest": dataset.views_digest,
        "annotations_digest": dataset.annotations_digest,
    }


def _compression(found: Any) -> dict[str, str]:
    made = found.spec.identity.compression
    return {} if made is None else {"compressed": f"{made.words}, from {made.source[:8]}, fitted on {made.fitted_on}"}


def _print_record(record: dict[str, Any], found: Any) -> None:
    import numpy as np

    from vitrine.output import assumed_pairs, count_of_rows, print_pairs, print_table, size

    identity = record["identity"]
    n_invalid = len(record["invalid_rows"]) - found.n_removed
    print_pairs(
        record["name"],
        {
            "model": record["title"],
            **assumed_pairs(record["assumed"]),
            "shards": f"{record['committed']} of {record['shards']} committed, {record['rows_per_shard']} rows each",
            "rows": f"{count_of_rows(found)}, {n_invalid} of them invalid",
            "tokens": f"{', '.join(identity['token_kinds'])}; layers {', '.join(map(str, identity['layers']))}; "
            f"grid {record['grid'][0]} x {record['grid'][1]}; {record['n_features']} features; "
            f"{identity['storage_dtype']}",
            **_compression(found),
            "size": size(record["stored_bytes"]),
            "dataset": f"{record['dataset']['name']}, {len(record['dataset']['classes'])} classes, "
            f"void {record['dataset']['void']}, license: {record['dataset']['license'] or 'not stated'}",
            "digest": record["digest"],
            "views digest": identity["views_digest"],
            "annotations digest": record["dataset"]["annotations_digest"],
            "weights sha256": identity["weights_sha256"],
            "architecture": ", ".join(f"{k}={v}" for k, v in sorted(identity["architecture"].items())),
            "preprocessing": ", ".join(f"{k}={v}" for k, v in sorted(identity["preprocessing"].items())),
            "compute": f"{identity['compute_dtype']}, batch {record['batch_size']}, "
            f"{record['attention_kernel']} attention",
            "environments": "; ".join(
                ", ".join(f"{k} {v}" for k, v in sorted(e.items())) for e in record["environments"]
            )
            + (" (MIXED: last bits may differ between rows)" if record["mixed_environment"] else ""),
        },
    )
    if record["invalid_rows"]:
        from feature_store.query.rows import FeatureRows

        shown = record["invalid_rows"][:50]
        uris = FeatureRows(found, np.array([entry["row"] for entry in shown])).column("uri")
        rows = [(entry["row"], entry["reason"], uri) for entry, uri in zip(shown, uris, strict=True)]
        print_table(f"rows without tokens ({len(record['invalid_rows'])})", ("row", "reason", "image"), rows)


def results(store: Store, json: Json = False) -> None:
    """List every result kept in a store, each with all in which it differs from the others.

    \b
    vitrine results features
    """
    from feature_store import open_store
    from feature_store.results import all_results
    from vitrine.output import console, counted, print_json, print_table
    from vitrine.result_lines import result_rows

    opened = open_store(store)
    found = all_results(opened.root)
    if json:
        kept = [{"evaluator": name, **record} for name, record in found]
        print_json({"store": opened.url, "results": kept})
        return
    rows, alike = result_rows(found)
    print_table(
        f"{opened.url}: {counted(len(rows), 'result')}",
        ("evaluator", "of what", "score", "computed (UTC)", "digest"),
        rows,
    )
    if alike:
        console().print("alike in all: " + ", ".join(f"{name}={value}" for name, value in alike.items()), markup=False)
