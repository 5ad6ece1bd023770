"""Ends a sweep: python -m launch.cancel FOLDER

What runs saves and stops, and nothing more is started; the sweep's command goes on from
there when it is given again. Slurm's jobs are ended by scancel, and `--points=3,5` ends
some of them alone.
"""

import time

from absl import flags

from dl_core.errors import UserError
from dl_core.files import write_json
from dl_core.train.records import FINISHED
from launch import app, sweep_folder
from launch import flags as shared
from launch.sweep_folder import counts

FLAGS = flags.FLAGS
flags.declare_key_flag("workdir", flag_values=shared.FLAGS)
flags.DEFINE_string("points", None, "End these points alone (Slurm), such as 0-3,7.")


def main(args: list[str]) -> None:
    """Ends the sweep, or some of its points."""
    sweep = sweep_folder.one(args)
    if FLAGS.points is not None and not sweep.on_slurm:
        raise UserError(
            f"--points={FLAGS.points}: single points can be ended where Slurm runs "
            "them; without --points the whole sweep is"
        )
    before = sweep.statuses()
    chosen = {
        point.number: before[point.number] for point in sweep.select(FLAGS.points)
    }
    if set(chosen.values()) <= set(FINISHED):
        print(f"{sweep.path}: nothing is left to end ({counts(chosen)})")
        return
    if FLAGS.points is None:
        try:
            write_json(sweep.cancelled, {"time": time.time()})
        except OSError as error:
            raise UserError(f"{sweep.cancelled}: {error.strerror}") from None
    running = sum(status == "running" for status in chosen.values())
    waiting = sum(status not in (*FINISHED, "running") for status in chosen.values())
    told = f"{running} running save and stop, {waiting} more are not started"
    if sweep.on_slurm:
        from launch import slurm

        ended = slurm.cancel(sweep.path, None if FLAGS.points is None else [*chosen])
        told = f"Slurm has ended {len(ended)} queued or running"
    print(f"{sweep.path}: cancelled; {told}")
    if not sweep.on_slurm and not running:
        print(
            "on Kubernetes: kubectl delete jobs,jobsets --selector=dl-core/sweep=… "
            "(the whole line was told when the manifest was made)"
        )


if __name__ == "__main__":
    app.run(main, sweep_folder.flags_anywhere)
