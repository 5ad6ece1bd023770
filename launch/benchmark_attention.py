"""The benchmark of attention: torch's time over ours, and beams over greedy decoding.

First steps of training of Transformers, in torch from its own layers, whose attention
is a fused kernel: both from the same weights, on the same batch, with cross-entropy and
Adam (torch's fused one). Then attention alone, causal, forwards and backwards, by every
lowering of `dl_core.ops.attention` for CPUs, with the memory that each needs besides
its arguments and results. Then beam search against greedy decoding, both of as many
tokens. Torch comes with the test tools (`pip install -e .[test]`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from dl_core.models import seq2seq, transformer
from dl_core.models.seq2seq import Seq2Seq
from dl_core.models.transformer import Transformer
from dl_core.ops import decode
from dl_core.ops.attention import scaled_dot_product
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState
from launch.benchmark_conv import measure, require_torch, spread, stepping

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Training:
    """A step of training of a Transformer, with an encoder or without."""

    network: Transformer
    batch: int
    time: int
    vocabulary: int
    encoder: bool = False

    @property
    def model(self) -> nn.Module:
        """The network."""
        if self.encoder:
            sizes = self.vocabulary, self.vocabulary
            return transformer.EncoderDecoder(self.network, *sizes)
        return transformer.Decoder(self.network, self.vocabulary)

    def __str__(self) -> str:
        net = self.network
        kind = "encoder-decoder" if self.encoder else "decoder"
        size = f"{net.layers} layers, {net.features} features, {net.heads} heads"
        return f"Transformer {kind}, {size}, {self.batch}×{self.time} tokens"


@dataclasses.dataclass(frozen=True)
class Attention:
    """Causal self-attention alone."""

    batch: int
    time: int
    heads: int
    depth: int

    def __str__(self) -> str:
        shape = (self.batch, self.time, self.heads, self.depth)
        return "attention of {}×{}, {} heads of {}".format(*shape)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Translations of as many tokens by each decoder."""

    network: Seq2Seq | Transformer
    batch: int = 32
    time: int = 24
    vocabulary: int = 4_000
    width: int = 5

    @property
    def model(self) -> nn.Module:
        """The network."""
        kind = transformer if isinstance(self.network, Transformer) else seq2seq
        return kind.EncoderDecoder(self.network, self.vocabulary, self.vocabulary)

    def __str__(self) -> str:
        names = {Seq2Seq: "recurrent", Transformer: "Transformer"}
        return f"{names[type(self.network)]} decoder, {self.batch}×{self.time} tokens"


_TRANSLATOR = Transformer(features=256, heads=8, layers=3, hidden=512, longest=24)
TRAINING = (
    Training(_TRANSLATOR, 32, 24, 4_000, encoder=True),
    Training(Transformer(layers=4, longest=256), 16, 256, 64),
)
ATTENTION = (
    Attention(32, 24, 8, 32),
    Attention(16, 256, 4, 32),
    Attention(4, 1024, 4, 32),
)
LOWERINGS = ("auto", "einsum", "blocks", "xla")
DECODING = (Decoding(_TRANSLATOR), Decoding(Seq2Seq(features=256, embedding=256)))
RATE = 1e-3


def run(repeats: int) -> None:
    """Prints times, and their ratios with the range over the measurements.

    Args:
      repeats: measurements of each.

    Raises:
      UserError: if torch is not installed.
    """
    torch = require_torch("attention")
    print(f"a step of training; torch has {torch.get_num_threads()} threads")
    for case in TRAINING:
        _training(case, repeats)
    print("causal attention alone, forwards and backwards, and the memory it needs")
    for case in ATTENTION:
        _attention(case, repeats)
    print("decoding")
    for case in DECODING:
        _decoding(case, repeats)


def _training(case: Training, repeats: int) -> None:
    from launch import benchmark_attention_torch

    theirs = benchmark_attention_torch.step(case, initial(case), batch(case))
    times = measure({"ours": our_step(case), "torch": theirs}, repeats)
    print(case)
    print(f"    ours {spread(times['ours'], 'ms')}")
    print(f"    torch {spread(times['torch'], 'ms')}")
    print(f"    torch's time over ours {spread(times['torch'], over=times['ours'])}")


def _attention(case: Attention, repeats: int) -> None:
    from launch import benchmark_attention_torch

    functions, memory = {}, {}
    for name in LOWERINGS:
        functions[name], memory[name] = attention(case, name)
    functions["torch"] = benchmark_attention_torch.attention(arrays(case))
    times = measure(functions, repeats)
    print(case)
    print(f"    torch {spread(times['torch'], 'ms')}")
    for name, needed in memory.items():
        print(f"    {name} {spread(times[name], 'ms')}, {needed / 2**20:.1f} MiB")
        print(f"    torch's time over ours {spread(times['torch'], over=times[name])}")


def _decoding(case: Decoding, repeats: int) -> None:
    times = measure({"greedy": greedy(case), "beam": beam(case)}, repeats)
    print(case)
    print(f"    greedy {spread(times['greedy'], 'ms')}")
    print(f"    beam of {case.width} {spread(times['beam'], 'ms')}")
    print(f"    beam over greedy {spread(times['beam'], over=times['greedy'])}")


@functools.cache
def batch(case: Training | Decoding) -> Batch:
    """Returns tokens, the next ones, and for an encoder sources of several lengths."""
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.integers, 0, case.vocabulary, dtype=np.int32)
    tokens = draw((case.batch, case.time + 1))
    return {
        "source": draw((case.batch, case.time)),
        "source_lengths": rng.integers(
            case.time // 2, case.time + 1, case.batch, dtype=np.int32
        ),
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
    }


def _arguments(case: Training | Decoding) -> tuple[np.ndarray, ...]:
    drawn = batch(case)
    if isinstance(case, Training) and not case.encoder:
        return (drawn["inputs"],)
    return drawn["source"], drawn["source_lengths"], drawn["inputs"]


@functools.cache
def initial(case: Training | Decoding) -> Mapping[str, Any]:
    """Returns the parameters from which both start."""
    init = functools.partial(case.model.init, train=False)
    return jax.jit(init)(jax.random.key(0), *_arguments(case))


def our_step(case: Training) -> Callable[[], float]:
    """Returns a call that takes one more step, and returns the loss before it."""
    optimizer = Optimizer(learning_rate=RATE).make()
    state = TrainState.create(initial(case), optimizer)

    def step(state, inputs, targets):
        def loss(params):
            logits, _ = case.model.apply({"params": params}, *inputs, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return losses.mean()

        return state.descend(loss, optimizer)

    return stepping(step, state, _arguments(case), batch(case)["targets"])


@functools.cache
def arrays(case: Attention) -> tuple[np.ndarray, ...]:
    """Returns queries, keys, values, and the gradient of what they give."""
    rng = np.random.default_rng(0)
    shape = (4, case.batch, case.time, case.heads, case.depth)
    return tuple(rng.normal(size=shape).astype(np.float32))


@functools.cache
def attention(
    case: Attention, lowering: str
) -> tuple[Callable[[], tuple[jax.Array, ...]], int]:
    """Returns a call that gives attention and its gradients, and the bytes it needs.

    Args:
      case: the shapes.
      lowering: as for `scaled_dot_product`.
    """
    call = functools.partial(scaled_dot_product, causal=True, lowering=lowering)

    def both(*arrays):
        y, backward = jax.vjp(call, *arrays[:3])
        return y, *backward(arrays[3])

    given = jax.device_put(arrays(case))
    compiled = jax.jit(both).lower(*given).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(*given)), needed


@functools.cache
def greedy(case: Decoding) -> Callable[[], jax.Array]:
    """Returns a call that decodes greedily, sequences "batch time"."""
    return _decoder(case, decode.greedy)


@functools.cache
def beam(case: Decoding) -> Callable[[], jax.Array]:
    """Returns a call that decodes by beam search, sequences "batch width time"."""
    search = functools.partial(decode.beam, width=case.width, length_penalty=0.6)
    return _decoder(case, search, case.width)


def _decoder(case, search, width=1):
    source, lengths, inputs = _arguments(case)
    params = initial(case)["params"]

    @jax.jit
    def translate(params, source, lengths, first):
        step, state = seq2seq.decoding(case.model, params, source, lengths, width)
        # Without an end all sequences have as many tokens.
        return search(step, state, first, -1, case.time)[0]

    given = jax.device_put((params, source, lengths, inputs[:, 0]))
    return lambda: jax.block_until_ready(translate(*given))
