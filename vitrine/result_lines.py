"""The table of kept results: each line says in what it differs from the others, and nothing else."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from vitrine.answer_lines import bounds_of_fit

# How results of one question name what they were asked, in the order in which a reader looks for it.
_FIRST = (
    "features",
    "feature_set",
    "kind",
    "on",
    "layer",
    "selection",
    "selection_made_on",
    "k",
    "metric",
    "standardise",
    "l2",
    # Which tokens a probe was asked about: evaluators share these words, so they are compared across evaluators too.
    "train_split",
    "test_split",
    "hold_out",
    "seed",
    "scored",
    "converged",
    "memory",
    "max_passes",
    "sample",
    "split",
    "n_taken",
    "n_views",
)
# What an evaluator found of what it was asked, such as the split that `auto` stood for.
_FOUND = ("selection_made_on", "l2", "split", "n_taken", "n_views")
# What the same words of the question say, or what the evaluator found and nobody asked.
_TAKEN_ELSEWHERE = ("evaluator", "parameters", "backend")


def result_rows(found: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[tuple[object, ...]], dict[str, str]]:
    """The rows of the table, and what all results have alike.

    Args:
        found: (evaluator, record with key, result and digest), as `all_results` gives them.

    Returns:
        One row a result: evaluator, all in which it differs from another of its evaluator, score, time, digest; and by
        name what every result says alike.
    """
    facts = [_facts(record) for _, record in found]
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for (evaluator, _), said in zip(found, facts, strict=True):
        for name in {name for other in facts for name in other}:
            values[evaluator][name].add(said.get(name, "-"))
    names = sorted({name for said in facts for name in said}, key=_place)
    everywhere = {name: {value for of in values.values() for value in of[name]} for name in names}
    alike = {name: next(iter(seen)) for name, seen in everywhere.items() if len(seen) == 1}
    rows: list[tuple[object, ...]] = []
    for (evaluator, record), said in zip(found, facts, strict=True):
        words = [
            f"{name}={said[name]}"
            for name in names
            if name in said and (len(values[evaluator][name]) > 1 or (name in _FIRST and name not in alike))
        ]
        result = record["result"]
        score = result.get("miou", result.get("accuracy"))
        rows.append((evaluator, " ".join(words), score, _time(result.get("computed")), record["digest"][:8]))
    return rows, {name: alike[name] for name in names if name in alike}


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Everything that decided a result, and the names it goes by, as short words."""
    key, result = record["key"], record["result"]
    asked = dict(key.get("parameters") or {})
    said: dict[str, Any] = {
        "features": result.get("features"),
        "feature_set": str(key.get("feature_set"))[:8],
        **{name: value for name, value in key.items() if name not in {*_TAKEN_ELSEWHERE, "feature_set", "selection"}},
        **asked.pop("subject", {}),
        **asked,
        "labels": str(key.get("annotations"))[:8],
        "selection": _selection(key.get("selection"), result.get("selection")),
        **{name: result[name] for name in _FOUND if name in result},
        # A fit that has converged is the usual one.
        "converged": "no" if result.get("converged") is False else None,
        **bounds_of_fit({**result, "parameters": asked}),
    }
    del said["annotations"]
    said.pop("memory_bytes", None)
    if str(said["features"]).endswith(said["feature_set"]):
        del said["feature_set"]
    return {name: _word(value) for name, value in said.items() if value not in (None, False, [], ())}


def _selection(digest: Any, name: Any) -> str | None:
    """A name may be given anew to another choice of features, so the digest stands with it."""
    return None if digest is None else f"{name}@{str(digest)[:8]}"


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text[:8] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _place(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _time(computed: Any) -> str:
    """To the minute, in UTC; results of earlier versions do not say."""
    return "-" if computed is None else str(computed)[:16].replace("T", " ")
