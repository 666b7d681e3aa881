"""Trains a small network on handwritten digits with torch: ReLU against Leaky ReLU.

    python examples/train_torch.py --plot losses.svg

The activations are those of relu_ops; --activations torch takes torch's own, which give the same
losses, bit for bit. Dead units, which pass on no gradient for any image, are counted before
and after.
"""

from __future__ import annotations

from collections.abc import Callable

import digits
import torch

from relu_ops.interop import torch as relu_ops_torch

Activation = Callable[[torch.Tensor], torch.Tensor]

ACTIVATIONS: dict[str, dict[str, Activation]] = {
    "relu_ops": {
        "ReLU": relu_ops_torch.relu,
        "Leaky ReLU": lambda x: relu_ops_torch.leaky_relu(x, 0.125),
    },
    "torch": {
        "ReLU": torch.relu,
        "Leaky ReLU": lambda x: torch.nn.functional.leaky_relu(x, 0.125),
    },
}


def forward(
    weights: list[torch.Tensor], biases: list[torch.Tensor], x: torch.Tensor, act: Activation
) -> list[torch.Tensor]:
    """What every layer gives before its activation; the last are the ten scores."""
    made = []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        made.append(x @ weight + bias)
        x = act(made[-1])
    return [*made, x @ weights[-1] + biases[-1]]


def train(act: Activation) -> tuple[list[float], int, int, float]:
    """Losses of every step, dead units before and after, and how many digits are right."""
    images, labels = (torch.from_numpy(a) for a in digits.load())
    weights = [torch.from_numpy(w).requires_grad_() for w in digits.layers()]
    biases = [torch.zeros(w.shape[1], requires_grad=True) for w in weights]
    optimizer = torch.optim.SGD([*weights, *biases], digits.RATE)

    def dead() -> int:
        hidden = forward(weights, biases, images, act)[:-1]
        derivatives = (torch.autograd.grad(act(z).sum(), z)[0] for z in hidden)
        return digits.dead([d.numpy() for d in derivatives])

    before = dead()
    losses = []
    for chosen in torch.from_numpy(digits.batches(len(images))):
        scores = forward(weights, biases, images[chosen], act)[-1]
        loss = torch.nn.functional.cross_entropy(scores, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        scores = forward(weights, biases, images, act)[-1]
    right = (scores.argmax(1) == labels).float().mean().item()
    return losses, before, dead(), right


if __name__ == "__main__":
    digits.main(__doc__, ACTIVATIONS, train)
