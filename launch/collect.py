"""Gathers a sweep's runs into tables: python -m launch.collect FOLDER…

results.parquet   a row a run: config, status, final metrics, time, code, device
results.csv       the same; arrays as JSON
metrics.parquet   a row a measurement: sweep, point, step, stage, metric, value

They are written into each folder, or with `--out` into one for all sweeps; `sweep` and
`point` say which run a row is of. Runs that have not finished are there with what they
have, but for `--finished`. A metric that is an array is in `values`, flat, its lengths
in `shape`; the final metrics keep arrays as they are. A run that diverged has the last
metrics that were finite.
"""

import concurrent.futures
import csv
import dataclasses
import io
import json
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet
from absl import flags

from dl_core.errors import UserError
from dl_core.files import write_atomically
from dl_core.train.records import FINISHED, read_rows
from launch import app, sweep_folder
from launch import flags as shared
from launch.sweep_folder import Point, SweepFolder

FLAGS = flags.FLAGS
flags.declare_key_flag("workdir", flag_values=shared.FLAGS)
flags.DEFINE_string("out", None, "Write the tables of all sweeps into this folder.")
flags.DEFINE_bool("finished", False, "Leave out runs that have not finished.")

_NUMBERS = pa.list_(pa.float64())
_SCHEMA = pa.schema(
    [
        ("sweep", pa.dictionary(pa.int32(), pa.string())),
        ("point", pa.int32()),
        ("step", pa.int64()),
        ("stage", pa.dictionary(pa.int32(), pa.string())),
        ("metric", pa.dictionary(pa.int32(), pa.string())),
        ("value", pa.float64()),
        ("values", _NUMBERS),
        ("shape", pa.list_(pa.int64())),
    ]
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it is found: its sweep and point, its status, and its rows."""

    sweep: SweepFolder
    point: Point
    status: str
    rows: pa.Table
    """A column a metric, empty where a row does not have it."""

    @classmethod
    def read(cls, sweep: SweepFolder, point: Point) -> Self:
        """Reads it from its directory, if it has one."""
        rows = _rows(point.path / "metrics.jsonl") if point.path else pa.table({})
        return cls(sweep, point, point.status(), rows)


def main(args: list[str]) -> None:
    """Writes the tables of the given sweeps."""
    sweeps = sweep_folder.given(args)
    groups = [(sweeps, pathlib.Path(FLAGS.out))] if FLAGS.out else None
    for group, out in groups or [([sweep], sweep.path) for sweep in sweeps]:
        try:
            _collect(group, out)
        except OSError as error:
            raise UserError(f"{error.filename or out}: {error.strerror}") from None


def _collect(sweeps: Sequence[SweepFolder], out: pathlib.Path) -> None:
    start = time.monotonic()
    points = [(sweep, point) for sweep in sweeps for point in sweep.points]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(Run.read, *zip(*points, strict=True)))
    runs = [run for run in found if run.status in FINISHED or not FLAGS.finished]
    if not runs:
        raise UserError(
            f"{', '.join(str(s.path) for s in sweeps)}: no run has finished; without "
            "--finished the others are gathered too"
        )
    results, metrics = results_table(runs), metrics_table(runs)
    out.mkdir(parents=True, exist_ok=True)
    for name, table in (("results", results), ("metrics", metrics)):
        buffer = io.BytesIO()
        pa.parquet.write_table(table, buffer, compression="zstd")
        write_atomically(out / f"{name}.parquet", buffer.getvalue())
    write_atomically(out / "results.csv", _csv(results))
    print(
        f"{out}: {results.num_rows} runs in results.parquet and results.csv, "
        f"{metrics.num_rows} measurements in metrics.parquet "
        f"({time.monotonic() - start:.1f} s)"
    )


def results_table(runs: Iterable[Run]) -> pa.Table:
    """Returns a table of a row a run."""
    rows = [_result(run) for run in runs]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({n: _column([row.get(n) for row in rows]) for n in names})


def metrics_table(runs: Iterable[Run]) -> pa.Table:
    """Returns a table of a row a measurement."""
    tables = [
        _measurements(run, name)
        for run in runs
        for name in run.rows.column_names
        if "/" in name
    ]
    return pa.concat_tables([_SCHEMA.empty_table(), *tables]).unify_dictionaries()


def _result(run: Run) -> dict[str, Any]:
    from dl_core.config import flatten

    point, result = run.point, run.point.result()
    config = flatten(point.config() or run.sweep.base)
    if not point.config():
        config |= point.changes
    measured, step = result.get("metrics"), result.get("step")
    if not result and run.rows.num_rows:
        names = [name for name in run.rows.column_names if "/" in name]
        measured = {n: run.rows[n].drop_null()[-1].as_py() for n in names}
        step = run.rows["step"][-1].as_py()
    measured = measured or {}
    return {
        "experiment": run.sweep.experiment,
        "sweep": str(run.sweep.path),
        "point": point.number,
        "status": run.status,
        "step": step,
        **{f"config.{name}": value for name, value in config.items()},
        **{name: measured[name] for name in sorted(measured)},
        **{name: result.get(name) for name in ("seconds", "trained_together")},
        **{name: result.get(name) for name in ("commit", "device")},
        "text": result.get("text") or point.error() or None,
    }


def _column(values: Sequence[Any]) -> pa.Array:
    """Returns values of one type as they are, and others as JSON."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if v is None else json.dumps(v) for v in values])


def _rows(path: pathlib.Path) -> pa.Table:
    """Returns a metrics file as a table with a column a metric."""
    if not path.exists() or not path.stat().st_size:
        return pa.table({})
    schema = pa.schema([("step", pa.int64()), ("stage", pa.string())])
    options = pa.json.ParseOptions(explicit_schema=schema)
    try:
        return pa.json.read_json(path, parse_options=options)
    except pa.ArrowInvalid:  # The last line is torn, or a number is not finite.
        rows = read_rows(path)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({n: pa.array([row.get(n) for row in rows]) for n in names})


def _measurements(run: Run, metric: str) -> pa.Table:
    """Returns the measurements of one metric."""
    rows = run.rows.select(["step", "stage", metric])
    rows = rows.filter(pc.is_valid(rows[metric])).combine_chunks()
    count, found = rows.num_rows, rows[metric].combine_chunks()
    if pa.types.is_list(found.type):
        value, (values, shape) = pa.nulls(count, pa.float64()), _flat(found)
    else:
        value = found.cast(pa.float64())
        values = shape = pa.nulls(count, _NUMBERS)
    columns: Mapping[str, Any] = {
        "sweep": _same(str(run.sweep.path), count),
        "point": pa.repeat(pa.scalar(run.point.number, pa.int32()), count),
        "step": rows["step"],
        "stage": rows["stage"].combine_chunks().dictionary_encode(),
        "metric": _same(metric, count),
        "value": value,
        "values": values,
        "shape": shape.cast(_SCHEMA.field("shape").type),
    }
    return pa.table(columns, schema=_SCHEMA)


def _flat(arrays: pa.ListArray) -> tuple[pa.ListArray, pa.ListArray]:
    """Returns nested lists, each of which is an array, flat; and their shapes."""
    offsets, lengths, inner = arrays.offsets, [], arrays
    while pa.types.is_list(inner.type):
        # The first of each, which tells of the others; of an empty one there is none.
        first = offsets.to_numpy()[:-1].clip(max=len(inner) - 1) if lengths else ...
        lengths.append(pc.list_value_length(inner).to_numpy()[first])
        offsets = inner.offsets.take(offsets) if len(lengths) > 1 else offsets
        inner = inner.values
    values = pa.ListArray.from_arrays(offsets, inner.cast(pa.float64()))
    shapes = np.stack(lengths, 1)
    ends = np.arange(len(shapes) + 1) * len(lengths)
    return values, pa.ListArray.from_arrays(pa.array(ends, pa.int32()), shapes.ravel())


def _same(text: str, count: int) -> pa.DictionaryArray:
    zeros = pa.repeat(pa.scalar(0, pa.int32()), count)
    return pa.DictionaryArray.from_arrays(zeros, [text])


def _csv(table: pa.Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    columns = (column.to_pylist() for column in table.columns)
    for row in zip(*columns, strict=True):
        writer.writerow(
            [x if x is None or isinstance(x, str) else json.dumps(x) for x in row]
        )
    return text.getvalue()


if __name__ == "__main__":
    app.run(main, sweep_folder.flags_anywhere)
