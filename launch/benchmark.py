"""Measures speed, each ratio within one run: python -m launch.benchmark NAME

loop       the training loop against a bare hand-written JAX loop on the same step,
           which takes about 10 ms on two cores (change it with --width and
           --batch_size)
vmap       points a minute of small sweeps: all runs at once, in turn, in processes
conv       convolutions of every kind against torch, and inside a loop against outside
gan        a step of DCGAN, critic and generator, against the same networks in torch
sequence   steps of TCN, LSTM and GRU against torch, generation with and without memory
attention  steps of Transformers against torch, beam search against greedy
memory     a step of the Neural Turing Machine against one as published, in torch
embeddings CBOW, words a second, against gensim
detection  suppression, RoI align, evaluation, and a step of SSD, against libraries
"""

import pathlib
import statistics
import sys
import tempfile
import time

from absl import flags

from dl_core.errors import UserError, nearest
from launch import app

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 5, "Measurements of each, interleaved.", lower_bound=1)
flags.DEFINE_integer("steps", 500, "Steps of a measurement.", lower_bound=10)
flags.DEFINE_integer("width", 384, "loop: width of the network.", lower_bound=1)
flags.DEFINE_integer("batch_size", 384, "loop: examples in a batch.", lower_bound=1)
flags.DEFINE_float(
    "peak_tflops", None, "gan: the accelerator's peak, bfloat16.", lower_bound=0.0
)
flags.DEFINE_string("data_dir", None, "Folder of the data sets (default: as for TFDS).")


def main(args: list[str]) -> None:
    """Runs the benchmark that the argument names."""
    others = (sequence, attention, memory, embeddings, detection)
    functions = (loop, vmap, conv, gan, *others)
    benchmarks = {function.__name__: function for function in functions}
    if len(args) != 1 or args[0] not in benchmarks:
        given = " ".join(args)
        raise UserError(
            f"give one of {', '.join(benchmarks)}, not {given!r}"
            f"{nearest(given, benchmarks)}"
        )
    benchmarks[args[0]]()


def loop() -> None:
    """Prints the time of a step in the loop and in a bare loop, and their ratio."""
    import jax

    from dl_core.config import replace, to_arrays
    from launch import registry

    experiment = registry.load("classification.batch_norm")
    config = replace(
        experiment.config_class(),
        {"model.width": FLAGS.width, "batch_size": FLAGS.batch_size},
    )
    (stage,) = experiment.stages
    batches = stage.data(config, _data_dir()).train
    resident = jax.device_put(batches.resident)
    arrays = to_arrays(config)

    def step(state, inputs, key):
        batch = batches.assemble(arrays, resident, inputs, key)
        return stage.train_step(
            arrays, state, batch, jax.random.fold_in(key, state.step)
        )

    step = jax.jit(step, donate_argnums=0)
    key = jax.random.key(0)

    def bare(steps: int) -> float:
        state = jax.jit(stage.init)(arrays, key)
        start = time.perf_counter()
        for i in range(steps):
            inputs = jax.tree.map(lambda x: x[0], batches.train_inputs(0, i, 1))
            state, metrics = step(state, inputs, key)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    def ours(steps: int) -> float:
        changes = {"steps": steps, "eval_every": steps, "checkpoint_every": steps}
        return _train(experiment, replace(config, changes))

    # The time of n steps less that of none leaves out compiling, the evaluations before
    # and after, and the last checkpoint, which a bare loop does not have.
    few = FLAGS.steps // 10
    measured = {"bare": [], "ours": []}
    for function in (bare, ours):
        function(few)
    for _ in range(FLAGS.repeats):
        for name, function in (("bare", bare), ("ours", ours)):
            seconds = function(FLAGS.steps + few) - function(few)
            measured[name].append(1e3 * seconds / FLAGS.steps)
    for name, values in measured.items():
        print(f"{name:<6} {statistics.median(values):8.3f} ms a step {_range(values)}")
    pairs = zip(measured["ours"], measured["bare"], strict=True)
    ratios = [ours / bare for ours, bare in pairs]
    print(f"ratio  {statistics.median(ratios):8.3f} {_range(ratios)}")


def vmap() -> None:
    """Prints points a minute of a sweep: all at once, in turn, in processes."""
    from launch import benchmark_vmap

    benchmark_vmap.run(FLAGS.steps)


def conv() -> None:
    """Prints torch's time over ours for convolutions of every kind."""
    from launch import benchmark_conv

    benchmark_conv.run(FLAGS.repeats)


def gan() -> None:
    """Prints images a second of a GAN's step, ours and torch's, and their ratio."""
    from launch import benchmark_gan

    benchmark_gan.run(FLAGS.repeats, FLAGS.peak_tflops)


def sequence() -> None:
    """Prints torch's time over ours for networks over time, and of generation."""
    from launch import benchmark_sequence

    benchmark_sequence.run(FLAGS.repeats)


def attention() -> None:
    """Prints torch's time over ours for Transformers, and beam search's over greedy."""
    from launch import benchmark_attention

    benchmark_attention.run(FLAGS.repeats)


def memory() -> None:
    """Prints the time of the Neural Turing Machine's step, ours and as published."""
    from launch import benchmark_memory

    benchmark_memory.run(FLAGS.repeats)


def embeddings() -> None:
    """Prints words a second of CBOW, ours and gensim's, and their ratio."""
    from launch import benchmark_embeddings

    benchmark_embeddings.run(FLAGS.repeats)


def detection() -> None:
    """Prints ratios to the libraries that are known for parts of detectors."""
    from launch import benchmark_detection

    benchmark_detection.run(FLAGS.repeats)


def _train(experiment, config) -> float:
    """Returns the seconds that training takes, directory and all."""
    from dl_core.train import loop as train_loop
    from dl_core.train.layout import make_layout
    from dl_core.train.run_directory import open_run

    options = train_loop.Options(
        data_dir=_data_dir(),
        layout=make_layout(),
        steps_per_call=train_loop.default_steps_per_call(),
        say=lambda text: None,
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with open_run(pathlib.Path(folder, "run"), experiment.name, config) as run:
            train_loop.train(experiment, [run], options)
        return time.perf_counter() - start


def _data_dir() -> pathlib.Path:
    from dl_core.data import default_data_dir

    return pathlib.Path(FLAGS.data_dir) if FLAGS.data_dir else default_data_dir()


def _range(values: list[float]) -> str:
    return f"({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    app.run(main)
    sys.exit()
