"""Trains a small network on handwritten digits with JAX: ReLU against Leaky ReLU.

    python examples/train_jax.py --plot losses.svg

The activations are those of relu_ops; --activations jax takes JAX's own. Dead units,
which pass on no gradient for any image, are counted before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import digits
import jax
import jax.numpy as jnp
import numpy as np

from relu_ops.interop import jax as relu_ops_jax

Activation = Callable[[Any], Any]
Parameters = list[tuple[Any, Any]]

ACTIVATIONS: dict[str, dict[str, Activation]] = {
    "relu_ops": {
        "ReLU": relu_ops_jax.relu,
        "Leaky ReLU": lambda x: relu_ops_jax.leaky_relu(x, 0.125),
    },
    "jax": {"ReLU": jax.nn.relu, "Leaky ReLU": lambda x: jax.nn.leaky_relu(x, 0.125)},
}


def forward(parameters: Parameters, x: Any, act: Activation) -> list[Any]:
    """What every layer gives before its activation; the last are the ten scores."""
    made = []
    for weight, bias in parameters[:-1]:
        made.append(x @ weight + bias)
        x = act(made[-1])
    weight, bias = parameters[-1]
    return [*made, x @ weight + bias]


def train(act: Activation) -> tuple[list[float], int, int, float]:
    """Losses of every step, dead units before and after, and how many digits are right."""
    images, labels = digits.load()
    parameters: Parameters = [
        (jnp.asarray(w), jnp.zeros(w.shape[1], jnp.float32)) for w in digits.layers()
    ]

    def loss_of(parameters: Parameters, x: Any, label: Any) -> Any:
        scores = jax.nn.log_softmax(forward(parameters, x, act)[-1])
        return -jnp.take_along_axis(scores, label[:, None], 1).mean()

    @jax.jit
    def step(parameters: Parameters, x: Any, label: Any) -> tuple[Parameters, Any]:
        loss, gradients = jax.value_and_grad(loss_of)(parameters, x, label)
        return jax.tree.map(lambda p, g: p - digits.RATE * g, parameters, gradients), loss

    def dead(parameters: Parameters) -> int:
        hidden = forward(parameters, images, act)[:-1]
        slope = jax.grad(lambda z: act(z).sum())
        return digits.dead([np.asarray(slope(z)) for z in hidden])

    before = dead(parameters)
    losses = []
    for chosen in digits.batches(len(images)):
        parameters, loss = step(parameters, images[chosen], labels[chosen])
        losses.append(float(loss))
    scores = forward(parameters, images, act)[-1]
    right = float((scores.argmax(1) == labels).mean())
    return losses, before, dead(parameters), right


if __name__ == "__main__":
    digits.main(__doc__, ACTIVATIONS, train)
