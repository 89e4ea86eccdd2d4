"""identity: equal settings have equal digests, and a record from a stranger asks for nothing impossible."""

import json
from dataclasses import replace
from typing import Any

import pytest

from feature_store import CorruptError, FeatureSetSpec, Identity, IdentityMismatchError
from feature_store.canonical import digest_of, parse_json, pretty_json
from feature_store.identity import require_same
from tests.feature_store.samples import make_spec


def _stored(spec: FeatureSetSpec) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(pretty_json(spec.to_json()))
    return value


def test_a_record_is_read_back_as_the_same_feature_set() -> None:
    spec = make_spec(kinds=("patches", "cls", "registers"))
    again = FeatureSetSpec.from_json(parse_json(pretty_json(spec.to_json()), name="x"))
    assert again.identity.digest == spec.identity.digest
    require_same(again, spec)
    assert pretty_json(again.to_json()) == pretty_json(spec.to_json())


def test_tuples_in_settings_do_not_tell_a_new_identity_from_a_stored_one() -> None:
    spec = make_spec()
    assert isinstance(spec.identity.preprocessing["mean"], tuple)
    require_same(FeatureSetSpec.from_json(_stored(spec)), spec)


@pytest.mark.parametrize(
    "change",
    [
        {"views_digest": "c" * 64},
        {"weights_sha256": "c" * 64},
        {"architecture": {"name": "another"}},
        {"preprocessing": {"size": 5}},
        {"compute_dtype": "bfloat16"},
        {"extraction_schema": 2},
    ],
)
def test_whatever_decides_numbers_changes_both_digests(change: dict[str, Any]) -> None:
    identity = make_spec().identity
    changed: Identity = replace(identity, **change)
    assert changed.digest != identity.digest
    assert changed.computation != identity.computation


@pytest.mark.parametrize("change", [{"layers": (3,)}, {"token_kinds": ("cls",)}, {"storage_dtype": "float32"}])
def test_what_is_stored_of_a_computation_changes_the_identity_alone(change: dict[str, Any]) -> None:
    identity = make_spec().identity
    changed: Identity = replace(identity, **change)
    assert changed.digest != identity.digest
    assert changed.computation == identity.computation


def test_two_identities_are_refused_with_both_values_of_every_field_that_differs() -> None:
    stored, wanted = make_spec(), make_spec(weights="c" * 64, batch_size=8)
    with pytest.raises(IdentityMismatchError) as caught:
        require_same(stored, wanted)
    message = str(caught.value)
    assert f"identity.weights_sha256: stored '{'b' * 64}', this run '{'c' * 64}'" in message
    assert "batch_size: stored 4, this run 8" in message
    assert "Use another --store, or the stored settings." in message
    assert "n_rows" not in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_rows", 0, "'n_rows' is 0, and must be within 1..2147483648"),
        ("n_rows", 1 << 40, "'n_rows' is 1099511627776, and must be within"),
        ("n_rows", 1 << 30, "1073741824 rows in shards of 8 are more than 262144 shards"),
        ("n_rows", "21", "'n_rows' is '21', and must be a whole number"),
        ("n_rows", 21.0, "'n_rows' is 21.0, and must be a whole number"),
        ("n_rows", True, "'n_rows' is True, and must be a whole number"),
        ("rows_per_shard", 12, "'rows_per_shard' is 12, and must be a multiple of 8"),
        ("rows_per_shard", 0, "'rows_per_shard' is 0, and must be within 8"),
        ("grid", [2], "'grid' has 1 values, and must have height and width"),
        ("grid", [2, -2], "'grid' is -2, and must be within 1"),
        ("grid", "22", "'grid' is '22', and must be a list"),
        ("grid", [1 << 14, 1 << 14], "a row of 'patches' has 805306368 values"),
        ("n_features", None, "'n_features' is None, and must be a whole number"),
        ("n_registers", -1, "'n_registers' is -1, and must be within 0"),
        ("model", 3, "'model' is 3, and must be a text"),
        ("digest", "0" * 64, "the digest is .*, so the file was changed after it was written"),
        ("identity", [], r"'identity' is \[\], and must be an object"),
        ("identity.layers", [], r"'layers' is \[\], and must be block numbers in ascending order"),
        ("identity.layers", [2, 1], r"'layers' is \[2, 1\], and must be block numbers in ascending order"),
        ("identity.layers", [1, 1], r"'layers' is \[1, 1\], and must be block numbers in ascending order"),
        ("identity.layers", [0], "'layers' is 0, and must be within 1"),
        ("identity.layers", [True], "'layers' holds True, and must hold whole numbers"),
        ("identity.token_kinds", ["cls", "patches"], "'token_kinds' is .*, and must be some of"),
        ("identity.token_kinds", ["pixels"], "'token_kinds' is .*, and must be some of"),
        ("identity.token_kinds", ["patches", "registers"], "a row of 'registers' has 0 values"),
        ("identity.token_kinds", ["patches", "attention"], "a row of 'attention' has 0 values"),
        ("n_heads", "12", "'n_heads' is '12', and must be a whole number"),
        ("identity.storage_dtype", "object", "'storage_dtype' is 'object', and must be one of float16, float32"),
        ("identity.compute_dtype", "int8", "'compute_dtype' is 'int8', and must be one of"),
        ("identity.preprocessing", [], "'preprocessing' is .*, and must be an object"),
        ("identity.views_digest", "../" * 21 + "a", "'views_digest' is .*, and must be 64 lower-case hexadecimal"),
        ("identity.surprise", 1, r"the identity has \['surprise'\], which this Vitrine does not know"),
    ],
)
def test_an_impossible_record_is_refused(key: str, value: Any, message: str) -> None:
    stored = _stored(make_spec())
    *outer, last = key.split(".")
    target = stored[outer[0]] if outer else stored
    target[last] = value
    if outer:
        # A stranger can make the digest fit; the record must be refused all the same.
        stored["digest"] = digest_of(stored["identity"])
    with pytest.raises(CorruptError, match=f"^here: {message}"):
        FeatureSetSpec.from_json(stored, name="here")


@pytest.mark.parametrize("key", sorted(set(make_spec().to_json()) - {"computation"}))
def test_a_missing_field_is_named(key: str) -> None:
    stored = _stored(make_spec())
    del stored[key]
    with pytest.raises(CorruptError, match=f"^here: '{key}' is missing. Restore it from a copy, or move"):
        FeatureSetSpec.from_json(stored, name="here")
