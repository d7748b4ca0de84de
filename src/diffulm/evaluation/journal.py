"""What has been computed so far, kept in a file, so that an interrupted evaluation goes on where it was. No torch in here."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")

Progress = Callable[[str, int, int], None]
"""Told (what is being done, how many are done, of how many)."""


class Journal:
    """Results by what they are the results of. path None: nothing is kept.

    A line a group of items, appended and flushed when the group is done; a half-written last line (a killed run) is dropped.
    """

    def __init__(self, path: Path | None = None, progress: Progress | None = None) -> None:
        self.path, self.progress = path, progress
        self.known: dict[str, Any] = {}
        if path is not None and path.exists():
            kept = 0
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                self.known[row["key"]] = row["results"]
                kept += len(line)
            if kept < path.stat().st_size:
                os.truncate(path, kept)

    def map(
        self, name: str, items: Sequence[Item], run: Callable[[list[Item]], list[Any]], together: int = 64
    ) -> list[Any]:
        """`run` over `items`, `together` at a time: one result for each, in their order; what is known is not run again.

        name: what the results are, settings included, in a run's own words (it is part of the key). items: their `repr` is
        the rest of the key. Results are what JSON can hold. Groups are cut from the whole list, so their composition does not
        depend on where a run was interrupted.
        """
        results: list[Any] = []
        for start in range(0, len(items), together):
            group = list(items[start : start + together])
            key = hashlib.sha256(repr((name, group)).encode("utf-8", "surrogatepass")).hexdigest()
            if key not in self.known:
                if self.progress:
                    self.progress(name, start, len(items))
                found = run(group)
                assert len(found) == len(group), f"{name}: {len(found)} results for {len(group)} items"
                # as JSON gives them back, so that a run that was interrupted does not differ from one that was not
                self.known[key] = json.loads(json.dumps(found))
                self._append({"key": key, "results": found})
            results += self.known[key]
        if self.progress and items:
            self.progress(name, len(items), len(items))
        return results

    def _append(self, row: dict[str, Any]) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
