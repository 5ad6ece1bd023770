"""The machine and the step of `launch.benchmark_memory` once more, in torch.

It is built as loudinthecloud/pytorch-ntm is, the public implementation: a module for
each head, a Python loop over time, and loops over the batch for the circular
convolution and for the writing. The numbers are those of `dl_core.nn.memory`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dl_core.nn.memory import Memory
from launch.benchmark_memory import DECAY, MOMENTUM, RATE, Case


class Head(nn.Module):
    """What one head asks for, and where it finds it."""

    def __init__(self, c: Memory, *, writes: bool):
        super().__init__()
        self.sizes = [c.width, 1, 1, c.shifts, 1] + [c.width] * (2 * writes)
        self.linear = nn.Linear(c.hidden, sum(self.sizes))

    def forward(
        self, hidden: torch.Tensor, memory: torch.Tensor, previous: torch.Tensor
    ) -> list[torch.Tensor]:
        """Returns the weighting, and what a writing head erases and adds."""
        asked = self.linear(hidden).split(self.sizes, dim=1)
        key, strength, gate, steps, sharpness, *more = asked
        key = key.view(len(key), 1, -1)
        similar = functional.cosine_similarity(memory, key, dim=-1)
        content = functional.softmax(functional.softplus(strength) * similar, dim=1)
        gate = torch.sigmoid(gate)
        gated = gate * content + (1 - gate) * previous
        steps = functional.softmax(steps, dim=1)
        moved = torch.zeros_like(gated)
        for row in range(len(gated)):
            moved[row] = _circular(gated[row], steps[row])
        power = moved ** (1 + functional.softplus(sharpness))
        return [power / (power.sum(1, keepdim=True) + 1e-16), *more]


def _circular(weighting: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    reach = len(steps) // 2
    padded = torch.cat([weighting[-reach:], weighting, weighting[:reach]])
    return functional.conv1d(padded.view(1, 1, -1), steps.flip(0).view(1, 1, -1))[0, 0]


class Machine(nn.Module):
    """An NTM of one LSTM and one pair of heads, with the parameters of ours."""

    def __init__(self, case: Case, variables: Mapping[str, Any]):
        super().__init__()
        c, params = case.memory, variables["params"]
        self.lstm = nn.LSTM(case.inputs + c.width, c.hidden)
        self.read, self.write = Head(c, writes=False), Head(c, writes=True)
        self.output = nn.Linear(c.hidden + c.width, case.outputs)
        self.state = nn.Parameter(_tensor(params["state"][0]))
        self.reads = nn.Parameter(_tensor(params["reads"]))
        self.register_buffer("memory", _tensor(variables["constants"]["memory"]).T)
        layer = _tensor(params["layer_0"]["kernel"]).T
        ins = case.inputs + c.width
        _write(self.lstm.weight_ih_l0, layer[:, :ins])
        _write(self.lstm.weight_hh_l0, layer[:, ins:])
        _write(self.lstm.bias_ih_l0, _tensor(params["layer_0"]["bias"]))
        _write(self.lstm.bias_hh_l0, torch.zeros(4 * c.hidden))
        _write(self.output.weight, _tensor(params["output"]["kernel"]).T)
        _write(self.output.bias, _tensor(params["output"]["bias"]))
        # In ours what both heads ask for lies side by side, kind by kind.
        rows = torch.cat(
            [
                _tensor(params["heads"]["kernel"]).T,
                _tensor(params["heads"]["bias"])[:, None],
            ],
            dim=1,
        )
        *pairs, erase, add = rows.split(
            [2 * size for size in self.read.sizes] + [c.width] * 2
        )
        for i, head in enumerate((self.read, self.write)):
            parts = [pair.chunk(2)[i] for pair in pairs] + [erase, add][: 2 * i]
            _write(head.linear.weight, torch.cat(parts)[:, :-1])
            _write(head.linear.bias, torch.cat(parts)[:, -1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits; both are "time batch features"."""
        batch = x.shape[1]
        cell, hidden = (s.repeat(1, batch, 1) for s in self.state.split(1))
        memory = self.memory.repeat(batch, 1, 1)
        reads = self.reads.repeat(batch, 1)
        places = [torch.zeros(batch, memory.shape[1])] * 2
        outputs = []
        for now in x:
            both = torch.cat([now, reads], dim=1)[None]
            top, (hidden, cell) = self.lstm(both, (hidden, cell))
            (places[0],) = self.read(top[0], memory, places[0])
            reads = torch.matmul(places[0].unsqueeze(1), memory).squeeze(1)
            places[1], erase, add = self.write(top[0], memory, places[1])
            erase, new = torch.sigmoid(erase), torch.empty_like(memory)
            for row in range(batch):
                lost = torch.outer(places[1][row], erase[row])
                gained = torch.outer(places[1][row], add[row])
                new[row] = memory[row] * (1 - lost) + gained
            memory = new
            outputs.append(self.output(torch.cat([top[0], reads], dim=1)))
        return torch.stack(outputs)


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values))


def _write(target: torch.Tensor, values: torch.Tensor) -> None:
    target.data.copy_(values)


def step(
    case: Case, variables: Mapping[str, Any], batch: tuple[np.ndarray, np.ndarray]
) -> Callable[[], float]:
    """Returns a call that takes one more step, and returns the loss before it.

    Args:
      case: the machine and its batch.
      variables: with which it begins, of our machine.
      batch: sequences, and the bits wanted.
    """
    machine = Machine(case, variables)
    optimizer = torch.optim.RMSprop(
        machine.parameters(), RATE, alpha=DECAY, momentum=MOMENTUM
    )
    x, bits = (torch.tensor(part).transpose(0, 1).contiguous() for part in batch)

    def call():
        loss = functional.binary_cross_entropy_with_logits(machine(x), bits)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(machine.parameters(), 10)
        optimizer.step()
        return loss.item()

    return call
