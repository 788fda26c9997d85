"""Results that a run keeps, so that the next one goes on from there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from known import versions
from report import commit
from runner import Result, Worker


class Journal:
    """A file with a line for the run, and one for each operator that is done. Without a path nothing is kept."""

    def __init__(self, path: Path | None, worker: Worker) -> None:
        self.path = path
        self.results: list[Result] = []
        head = {"column": worker.column, "samples": worker.samples, "eager": worker.eager}
        head |= {"versions": versions(), "commit": commit()}
        if path is None:
            return
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head) + "\n")
            return
        first, *lines = path.read_text().splitlines()
        if json.loads(first) != head:
            raise SystemExit(f"{path} is of a different run. Delete it, or choose a different file.\nIt has {first}")
        self.results = [Result(**fields) for line in lines for fields in json.loads(line)]

    @property
    def done(self) -> set[str]:
        """The operators that need not run again."""
        return {result.op for result in self.results}

    def add(self, results: list[Result]) -> None:
        """Keep all results of one operator."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(list(map(asdict, results))) + "\n")
