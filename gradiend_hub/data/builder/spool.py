"""Rows that grow on disk: a data set is as large as the disk, not as the memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa

_FLUSH = 10_000


class Spool:
    """Columns of text, written in batches to an Arrow file in the cache of `datasets`.

    Args:
        columns: names of the columns.
        cache_dir: folder for the file.
    """

    def __init__(self, columns: Sequence[str], cache_dir: Path | None = None) -> None:
        folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE, "gradiend_hub")
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(suffix=".arrow", dir=folder)
        os.close(descriptor)  # Arrow opens the file by its name
        self.path = Path(name)
        self._schema = pa.schema([(name, pa.string()) for name in columns])
        self._writer = pa.ipc.new_stream(str(self.path), self._schema)
        self.columns: list[list[str]] = [[] for _ in columns]
        """Rows that are not written yet, by column; fill all of them, then call `written`."""

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        if kind is not None:
            self.path.unlink()

    def written(self, *, everything: bool = False) -> None:
        """Write what has gathered, if it is much."""
        if len(self.columns[0]) >= (1 if everything else _FLUSH):
            arrays = [pa.array(column, pa.string()) for column in self.columns]
            self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
            for column in self.columns:
                column.clear()

    def table(self) -> pa.Table:
        """All rows, mapped from the file."""
        self.written(everything=True)
        self._writer.close()
        with pa.memory_map(str(self.path)) as file:
            return pa.ipc.open_stream(file).read_all()

    def dataset(self) -> datasets.Dataset:
        """All rows as a data set that reads from the file."""
        self.written(everything=True)
        self._writer.close()
        return datasets.Dataset.from_file(str(self.path))
