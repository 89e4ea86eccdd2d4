"""`npy`: a folder with one array, a CSV of its rows, and what it is. numpy.load opens it, `vitrine import` takes it."""

from pathlib import Path

import numpy as np

from feature_store.canonical import pretty_json
from feature_store.exports.atomic import appearing_folder
from feature_store.exports.subject import CSV_COLUMNS, ExportSubject, csv_lines, plain_rows


def write_npy(subject: ExportSubject, place: Path, *, overwrite: bool) -> None:
    """Write `KIND.npy` [rows, ...], `rows.csv` and `export.json` into the folder `place`.

    Raises:
        ExportRefusedError: something stands at `place`.
    """
    with appearing_folder(place, overwrite=overwrite) as folder:
        shape = (len(subject.rows), *subject.row_shape)
        dtype = np.dtype(subject.dtype).newbyteorder("<")
        with (folder / f"{subject.kind}.npy").open("wb") as file, (folder / "rows.csv").open("w", newline="") as table:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            table.write(",".join(CSV_COLUMNS) + "\n")
            for block in subject.blocks():
                file.write(np.ascontiguousarray(block.values, dtype=dtype).data)
                table.write(csv_lines(plain_rows(block)))
        (folder / "export.json").write_bytes(pretty_json(subject.record("npy")))
