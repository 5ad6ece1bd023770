"""The benchmark of GANs: images a second of DCGAN's step, torch's against ours.

A step is the critic's updates, each on examples of its own, then one of the generator:
the hinge loss, spectral normalisation in the critic, Adam (torch's fused one), and the
moving average of the generator. Counted are the real images that the critic sees. Both
start from the same weights, and no draw of random numbers is in what is measured. Torch
comes with the test tools (`pip install -e .[test]`).
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from launch.benchmark_conv import measure, ratio, require_torch

Step = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """A game: its networks, and how it is played."""

    width: int
    critic_steps: int = 1
    refined: bool = False
    batch_norm: bool = False
    batch: int = 64
    size: int = 32
    channels: int = 3
    latent: int = 128

    def __str__(self) -> str:
        name = "standard CNN" if self.refined else "DCGAN"
        return f"{name}, width {self.width}, critic steps {self.critic_steps}"


CASES = (
    Case(64),
    Case(64, critic_steps=5),
    Case(16),
    Case(16, critic_steps=5),
    Case(16, refined=True),
)
RATE, BETAS, DECAY = 2e-4, (0.5, 0.999), 0.999
"""Adam's numbers, and what the generator's average keeps in a step."""


def run(repeats: int, peak: float | None = None) -> None:
    """Prints for each case images a second, ours and torch's, and their ratio.

    Args:
      repeats: measurements of each.
      peak: of the accelerator, TFLOP/s of products of bfloat16; of float32, which are
        made in TF32, half of it.

    Raises:
      UserError: if torch is not installed.
    """
    torch = require_torch("gan")
    import jax

    from launch import benchmark_gan_torch

    torch.set_float32_matmul_precision("high")
    accelerated = jax.default_backend() != "cpu"
    for case in CASES:
        for dtype in ("float32", "bfloat16") if accelerated else ("float32",):
            functions = {"ours": our_step(case, dtype)}
            if not accelerated:
                for layout in ("contiguous_format", "channels_last"):
                    functions[layout] = benchmark_gan_torch.step(
                        case, initial(case), arrays(case), layout
                    )
            elif torch.cuda.is_available():
                functions["compiled"] = benchmark_gan_torch.step(
                    case, initial(case), arrays(case), dtype=dtype, device="cuda"
                )
            times = measure(functions, repeats)
            print(f"{case!s:<40}{dtype}", flush=True)
            ours = times.pop("ours")
            print(f"    ours   {_speed(case, ours)}{_share(case, dtype, ours, peak)}")
            # Which layout is faster depends on the shape: torch has the better one.
            if times:
                theirs = min(times.values(), key=statistics.median)
                print(f"    torch  {_speed(case, theirs)}")
                print(f"    torch's time over ours {ratio(theirs, ours):.2f}")
            else:
                print("    torch sees no accelerator")


def _speed(case: Case, times: list[float]) -> str:
    milliseconds = statistics.median(times)
    images = 1e3 * case.critic_steps * case.batch / milliseconds
    return f"{images:8.0f} images/s, {milliseconds:.2f} ms a step"


def _share(case: Case, dtype: str, times: list[float], peak: float | None) -> str:
    """Returns what an accelerator's step has of its peak, as text."""
    import jax

    if jax.default_backend() == "cpu" or case.critic_steps > 1:
        return ""  # The compiler's analysis counts the body of a loop once.
    if peak is None:
        return ", share of peak unknown: --peak_tflops is not given"
    reached = flops(case) / statistics.median(times) / 1e9
    share = reached / (peak if dtype == "bfloat16" else peak / 2)
    return f", {reached:.1f} TFLOP/s, {share:.1%} of peak"


def flops(case: Case) -> float:
    """Returns the operations of a step, as XLA counts them, of one critic update."""
    import jax

    step, state = _program(dataclasses.replace(case, critic_steps=1), "float32", "xla")
    analysis = jax.jit(step).lower(state, *arrays(case)).compile().cost_analysis()
    return float(analysis["flops"])


@functools.cache
def arrays(case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns what the critic's updates read, stacked, and what the generator's."""
    rng = np.random.default_rng(0)
    updates = case.critic_steps, case.batch
    images = (*updates, case.size, case.size, case.channels)
    real = {
        "example": rng.uniform(-1, 1, images).astype(np.float32),
        "latent": rng.normal(size=(*updates, case.latent)).astype(np.float32),
    }
    latents = rng.normal(size=(case.batch, case.latent)).astype(np.float32)
    return real, {"latent": latents}


def networks(case: Case, lowering: str = "loop") -> tuple[Any, Any]:
    """Returns our generator and our critic."""
    from dl_core.models.dcgan import Critic, Generator

    more = {"refined": case.refined, "lowering": lowering}
    generator = Generator(case.width, case.size, case.channels, **more)
    critic = Critic(case.width, "spectral", batch_norm=case.batch_norm, **more)
    return generator, critic


@functools.cache
def initial(case: Case) -> tuple[Any, Any]:
    """Returns the variables from which everyone starts, of generator and critic."""
    import jax

    real, generated = arrays(case)
    inputs = generated["latent"], real["example"][0]
    return tuple(
        jax.jit(functools.partial(network.init, train=True))(jax.random.key(i), x)
        for i, (network, x) in enumerate(zip(networks(case), inputs, strict=True))
    )


def _program(case: Case, dtype: str, lowering: str) -> tuple[Callable, Any]:
    """Returns the step as a function of state and arrays, and the first state."""
    import jax
    import jax.numpy as jnp
    import optax

    from dl_core.train.adversarial import Game, GanState

    generator, critic = networks(case, lowering)

    def applied(network, variables, x):
        narrow = jax.tree.map(lambda x: x.astype(dtype), (variables, x))
        (y, _), collections = network.apply(
            *narrow, train=True, mutable=["batch_stats"]
        )
        return jax.tree.map(lambda x: x.astype(jnp.float32), (y, collections))

    optimizer = optax.adam(RATE, *BETAS)
    game = Game(
        lambda variables, batch: applied(generator, variables, batch["latent"]),
        lambda variables, images, _: applied(critic, variables, images),
        "hinge",
        optimizer,
        optimizer,
        decay=DECAY,
    )

    def step(state, real, generated):
        # No rule of this game draws anything.
        return game.play(state, real, generated, jax.random.key(0))

    return step, GanState.create(*initial(case), optimizer, optimizer)


def our_step(case: Case, dtype: str = "float32", lowering: str = "loop") -> Step:
    """Returns a call that takes one more step, and returns the state."""
    import jax

    step, state = _program(case, dtype, lowering)
    batches = jax.device_put(arrays(case))
    # The initial variables are everyone's: what is donated must be a copy.
    state = jax.tree.map(lambda x: x.copy(), state)
    compiled = jax.jit(step, donate_argnums=0)

    def call():
        nonlocal state
        state, losses = jax.block_until_ready(compiled(state, *batches))
        return state, losses

    return call
