"""What is in a file, as lines for a person: its validity, counters, shapes, options and events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hpcdml.storage.contents import Contents
from hpcdml.storage.run_reader import RunReader
from hpcdml.storage.tables import TABLES
from hpcdml.storage.tree import TensorArray

_LONGEST = 100  # characters of a value


def describe(contents: Contents, few: int | None = 12) -> list[str]:
    """Lines about a verified file.

    Args:
        contents: from ``storage.contents.read_contents``.
        few: how many parameters, events and entries of a state are named at most; None: all.
    """
    lines = [f"{contents.path}: a {_KINDS[contents.kind]}, {megabytes(contents.path.stat().st_size)}"]
    run, checkpoint = contents.run, contents.checkpoint
    if run is not None:
        lines += _run(run, contents.sealed, few)
    else:
        lines.append("validity     every byte is as it was written")
    if checkpoint is not None:
        lines += [
            f"version      {checkpoint.version} of the global parameters",
            f"written      {checkpoint.created}, number {checkpoint.ordinal} of the run",
        ]
    if contents.parameters is not None:
        lines += _parameters(contents.parameters, few)
    if checkpoint is not None:
        lines += _state("server", checkpoint.server, few)
        for rank, tree in checkpoint.workers.items():
            lines += _state(f"worker {rank}", tree, few)
    for title, values in (("options", contents.config), ("environment", contents.environment)):
        if values:
            lines += ["", title, *(f"  {name} = {_short(value)}" for name, value in values.items())]
    return lines


_KINDS = {"run": "record of a run", "checkpoint": "checkpoint", "parameters": "file of parameters"}


def megabytes(count: float) -> str:
    """A number of bytes for a person."""
    return f"{count:,.0f} B" if count < 1000 else f"{count / 1000:,.1f} kB" if count < 1e6 else f"{count / 1e6:,.1f} MB"


def _run(run: RunReader, sealed: bool, few: int | None) -> list[str]:
    rows = {table.name: len(run.table(table.name)) for table in TABLES}
    events = run.events()
    unreadable = ", ".join(f"{n} of {name}" for name, n in run.unreadable.items() if n)
    if sealed:
        validity = "every byte is as it was written"
    else:
        validity = "every row is; the file is being written, or its writer was killed, and has no seal yet"
        if unreadable:
            validity += f"; rows at the end that cannot be read: {unreadable}"
    kinds = Counter(kind for _, _, kind, _ in events)
    lines = [
        f"validity     {validity}",
        f"status       {'finished' if run.finished else 'not finished'}, {run.workers} workers, made {run.created}",
        f"rows         {', '.join(f'{n:,} {name}' for name, n in rows.items())}",
        "",
        "events" + (f" ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})" if kinds else ""),
    ]
    shown = events if few is None else events[-few:]
    if len(shown) < len(events):
        lines.append(f"  ({len(events) - len(shown):,} earlier ones; --all names them)")
    return lines + [
        f"  {time:10.3f} s  rank {rank}  {kind}  {_short(text)}".rstrip() for time, rank, kind, text in shown
    ]


def _parameters(parameters: Mapping[str, TensorArray], few: int | None) -> list[str]:
    values = sum(entry.values.size for entry in parameters.values())
    size = sum(entry.values.nbytes for entry in parameters.values())
    entries = [f"  {name}  {_shape(entry)}{_range(entry.values)}" for name, entry in parameters.items()]
    title = f"parameters   {len(parameters)} of {values:,} values, {megabytes(size)}"
    return ["", title, *_first(entries, few)]


def _state(title: str, tree: Any, few: int | None) -> list[str]:
    leaves = list(_leaves(tree, ""))
    size = sum(_values(leaf).nbytes for _, leaf in leaves if isinstance(leaf, (np.ndarray, TensorArray)))
    lines = [f"  {path} = {_leaf(leaf)}" for path, leaf in leaves]
    count = "1 entry" if len(leaves) == 1 else f"{len(leaves):,} entries"
    return ["", f"{title:<12} {count}, {megabytes(size)} of arrays", *_first(lines, few)]


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All entries of a tree with their paths; lists of plain values count as one."""
    items: Any = None
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)) and any(isinstance(x, (dict, list, np.ndarray, TensorArray)) for x in tree):
        items = enumerate(tree)
    if items is None or not tree:
        yield path or "/", tree
        return
    for key, item in items:
        yield from _leaves(item, f"{path}/{key}" if path else str(key))


def _first(lines: list[str], few: int | None) -> list[str]:
    if few is None or len(lines) <= few:
        return lines
    return [*lines[:few], f"  and {len(lines) - few:,} more; --all names them"]


def _shape(array: TensorArray | np.ndarray) -> str:
    kind = array.torch_dtype if isinstance(array, TensorArray) else array.dtype.name
    return f"{kind}{list(_values(array).shape)}"


def _leaf(leaf: Any) -> str:
    if not isinstance(leaf, (np.ndarray, TensorArray)):
        return _short(leaf)
    return repr(_values(leaf).item()) if _values(leaf).ndim == 0 else _shape(leaf)


def _values(array: TensorArray | np.ndarray) -> np.ndarray:
    return array.values if isinstance(array, TensorArray) else array


def _range(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    text = f"  from {finite.min():.6g} to {finite.max():.6g}" if finite.size and values.dtype.kind not in "cb" else ""
    odd = values.size - finite.size
    return text + (f"  and {odd:,} not finite" if odd else "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
