"""Committing a shard that another feature set of the store has already, byte for byte, without writing it again.

On a disk each object gets a second name (a hard link); an object store copies it by itself; where neither is possible
it is copied. No object is ever written in place, whatever its names: writers write anew and rename, `repair` moves
names. So two feature sets that share an object stay as independent as two copies would be, and either may be removed.
"""

from concurrent.futures import ThreadPoolExecutor

from feature_store.arrays import shard_objects
from feature_store.errors import CorruptError
from feature_store.identity import FeatureSetSpec
from feature_store.intact import object_crc32c
from feature_store.objects import ObjectRoot
from feature_store.reader import FeatureSet
from feature_store.receipts import Receipt, StoredObject
from feature_store.receipts_index import drop_index
from feature_store.shards import Shard
from feature_store.writer import commit_shard

# Objects of one shard that are linked, or read, at a time.
_AT_A_TIME = 4


def link_shard(source: FeatureSet, folder: str, spec: FeatureSetSpec, shard: Shard) -> Receipt:
    """Commit a shard that holds what the same shard of another feature set holds: its objects, then its receipt.

    What stands under the new names is read once, and held to the checksums that the source's receipt states.

    Args:
        source: another feature set of the same store, which has every array of this one.
        folder: the feature set to commit to.
        spec: its record.
        shard: rows that are the same in both, the invalid ones among them.

    Raises:
        CorruptError: an object of the source is not what its receipt states; the shard is not committed.
        StoreNotFoundError: an object of the source is gone; the shard is not committed.
        OSError: the store cannot be written.
    """
    root, theirs = source.root, source.receipts[shard.index]
    stated = {each.path: each for each in theirs.objects}
    objects = tuple(stated[path.removeprefix(f"{folder}/")] for path in shard_objects(folder, spec, shard))
    drop_index(root, folder)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        list(pool.map(lambda each: _link(root, source.folder, folder, each), objects))
    return commit_shard(root, folder, spec, shard, objects, theirs.invalid)


def _link(root: ObjectRoot, source: str, target: str, stated: StoredObject) -> None:
    root.share(f"{source}/{stated.path}", f"{target}/{stated.path}")
    # After the link, so that the very bytes are checked that the receipt will speak of.
    if object_crc32c(root, f"{target}/{stated.path}") != stated.crc32c:
        raise CorruptError(
            f"{source}/{stated.path} is not what its receipt says (checksum). Run `vitrine verify --deep` and "
            "`vitrine repair`."
        )
