"""Loads a folder with FiftyOne and prints what it found; run by a Python that has FiftyOne.

FiftyOne keeps its data in MongoDB. Where mongomock is installed, that stands in for the server; everything that reads
the folder is FiftyOne's own.
"""

import importlib.util
import json
import os
import sys


def use_mongomock() -> None:
    os.environ.update(
        FIFTYONE_DISABLE_SERVICES="1",
        FIFTYONE_DATABASE_URI="mongodb://localhost:27017",
        FIFTYONE_DATABASE_VALIDATION="false",
    )
    import mongomock
    import pymongo
    from mongomock.store import ServerStore

    store = ServerStore()

    class Client(mongomock.MongoClient):  # type: ignore[misc]
        """One server for every client of this process."""

        _closed = False

        def __init__(self, *_: object, **__: object) -> None:
            super().__init__(host="localhost", _store=store)

    pymongo.MongoClient = Client  # type: ignore[misc]
    import mongoengine

    connect = mongoengine.connect
    mongoengine.connect = lambda name, **_: connect(name, mongo_client_class=Client)


def main(folder: str) -> None:
    if importlib.util.find_spec("mongomock") is not None:
        use_mongomock()
    import fiftyone

    dataset = fiftyone.Dataset.from_dir(
        dataset_dir=folder, dataset_type=fiftyone.types.FiftyOneDataset, name="vitrine-test", progress=False
    )
    samples = sorted(dataset, key=lambda sample: sample.row)
    found = {
        "filepaths": [sample.filepath for sample in samples],
        "labels": [sample.ground_truth.label for sample in samples],
        "tags": [sample.tags for sample in samples],
        "embeddings": [sample.embedding.tolist() for sample in samples],
        "digest": dataset.info["vitrine"]["digest"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
