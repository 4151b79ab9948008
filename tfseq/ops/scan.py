"""Recurrences over time whose weight gradients are one product over all steps.

`tf.while_loop`'s own gradient adds a full-size weight gradient at every step and keeps a stack of every intermediate.
Here the forward loop only finds the states. From the states found, one pass over all steps at once gives the values that
carry gradients to weights and inputs; the backward loop carries the adjoint of the state alone. Products with weights are
kept from the forward loop: neither pass computes one twice. Where no gradient is wanted (`tracing.without_gradients`), the loop
is all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfseq.ops.linear import project
from tfseq.ops.tracing import wants_gradients

Multiply = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Step = Callable[[Any, Any, Multiply], tuple[Any, Any]]


def _arrays(like: Any, num_steps: tf.Tensor) -> list[tf.TensorArray]:
    return [tf.TensorArray(x.dtype, num_steps, element_shape=x.shape) for x in tf.nest.flatten(like)]


def loop(advance: Callable[[Any, Any], tuple[Any, Any]], initial: Any, inputs: Any, outputs: Any = ()) -> Any:
    """s_t, o_t = advance(s_{t-1}, u_t) for t = 1..T, for sampling and filtering: no gradient of its own.

    Args:
        advance: function of (state, inputs) -> (state, outputs), tensors `[B, ...]`.
        initial: state before the first step.
        inputs: tensors `[T, B, ...]`, T >= 1, time first.
        outputs: tensors of the shapes and dtypes of one step's outputs.

    Returns:
        (states, outputs), each `[T, B, ...]`, in the structures of `initial` and `outputs`.
    """
    inputs_flat, start = tf.nest.flatten(inputs), tf.nest.flatten(initial)
    num_steps = tf.shape(inputs_flat[0])[0]

    def body(t: tf.Tensor, state: list[tf.Tensor], history: list[tf.TensorArray]) -> tuple:
        now = tf.nest.pack_sequence_as(inputs, [u[t] for u in inputs_flat])
        new, out = advance(tf.nest.pack_sequence_as(initial, state), now)
        new = [tf.ensure_shape(a, b.shape) for a, b in zip(tf.nest.flatten(new), start, strict=True)]
        return t + 1, new, [a.write(t, x) for a, x in zip(history, [*new, *tf.nest.flatten(out)], strict=True)]

    history = _arrays([start, outputs], num_steps)
    _, _, history = tf.while_loop(lambda t, *_: t < num_steps, body, (0, start, history))
    return tf.nest.pack_sequence_as((initial, outputs), [a.stack() for a in history])


@tf.custom_gradient
def _known_product(x: tf.Tensor, kernel: tf.Tensor, transposed: tf.Tensor, product: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """`product`, which is x `[..., N]` times kernel `[N, M]` and was found before, with the gradient of that product.

    `transposed`, the kernel's transpose, comes from outside the loops: made at every step it would cost as much as the product.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        rows, upstream_rows = (tf.reshape(a, [-1, size]) for a, size in zip((x, upstream), kernel.shape, strict=True))
        return project(upstream, transposed), tf.matmul(rows, upstream_rows, transpose_a=True), None, None

    return tf.identity(product), gradient


def scan(step: Step, initial: Any, inputs: Any) -> tuple[Any, Any]:
    """s_t, o_t = step(s_{t-1}, u_t, multiply) for t = 1..T.

    The gradient is exact: with g_t the gradient of the result with respect to s_t as the caller uses it,
    the adjoint is a_t = g_t + (d s_{t+1} / d s_t)' a_{t+1} + (d o_{t+1} / d s_t)' (gradient of o_{t+1}).

    Args:
        step: function of (state, inputs, multiply) -> (state, outputs), each a tensor or a tuple of tensors. It is called
            for one step with tensors `[B, ...]` and for all steps at once with `[T, B, ...]`, so it must act on the last
            axis only. A product with a weight, x `[..., N]` times kernel `[N, M]`, belongs into `multiply(x, kernel)`, with
            the kernel in the dtype of x. Anything random must come in through `inputs`.
        initial: state before the first step, tensors `[B, S]`.
        inputs: tensors `[T, B, ...]`, T >= 1, time first.

    Returns:
        (states `[T, B, S]`, outputs `[T, B, ...]`), in the structure that `step` returns.
    """
    initial_flat, inputs_flat = tf.nest.flatten(initial), tf.nest.flatten(inputs)
    num_states, num_steps = len(initial_flat), tf.shape(inputs_flat[0])[0]
    if not wants_gradients():
        like = step(initial, tf.nest.map_structure(lambda u: u[0], inputs), project)[1]
        return loop(lambda state, now: step(state, now, project), initial, inputs, like)

    def call(state: list[tf.Tensor], ins: list[tf.Tensor], multiply: Multiply) -> tuple[list[tf.Tensor], Any]:
        new, outputs = step(tf.nest.pack_sequence_as(initial, state), tf.nest.pack_sequence_as(inputs, ins), multiply)
        return tf.nest.flatten(new), outputs

    def record(state: list[tf.Tensor], ins: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]:
        """The next state, and the kernels and the products on the way to it."""
        kernels: list[tf.Tensor] = []
        products: list[tf.Tensor] = []

        def multiply(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
            kernels.append(kernel)
            products.append(project(x, kernel))
            return products[-1]

        return call(state, ins, multiply)[0], kernels, products

    _, kernels, like = record(initial_flat, [u[0] for u in inputs_flat])  # tells which products there are
    transposed = [tf.transpose(kernel) for kernel in kernels]

    def recalled(products: list[tf.Tensor]) -> Multiply:
        """A `multiply` that answers with the products found, in the order in which they are asked for."""
        known = iter(zip(transposed, products, strict=True))
        return lambda x, kernel: _known_product(x, kernel, *next(known))

    def advance(state: list[tf.Tensor], ins: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        new, _, products = record(state, ins)
        return new, products

    found = loop(advance, initial_flat, inputs_flat, like)
    states, products = (tf.nest.map_structure(tf.stop_gradient, a) for a in found)

    previous = [tf.stop_gradient(tf.concat([s0[None], s[:-1]], 0)) for s, s0 in zip(states, initial_flat, strict=True)]
    new, outputs = call(previous, inputs_flat, recalled(products))
    outputs_flat = tf.nest.flatten(outputs)

    @tf.custom_gradient
    def connect(*tensors: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        """Identity on (states, outputs, initial state) whose gradient turns each state's own gradient into its adjoint."""

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            from_states, from_outputs = upstream[:num_states], upstream[num_states : num_states + len(outputs_flat)]

            def backward(t: tf.Tensor, carried: list[tf.Tensor], adjoints: list[tf.TensorArray]) -> tuple:
                adjoint = [g[t] + c for g, c in zip(from_states, carried, strict=True)]
                state, ins = [p[t] for p in previous], [u[t] for u in inputs_flat]
                with tf.GradientTape() as tape:
                    tape.watch(state)
                    after, out = call(state, ins, recalled([p[t] for p in products]))
                    after = [*after, *tf.nest.flatten(out)]
                carried = tape.gradient(after, state, [*adjoint, *(g[t] for g in from_outputs)], unconnected_gradients="zero")
                return t - 1, carried, [a.write(t, x) for a, x in zip(adjoints, adjoint, strict=True)]

            zeros = [tf.zeros_like(s) for s in initial_flat]
            start = (num_steps - 1, zeros, _arrays(initial_flat, num_steps))
            _, carried, adjoints = tf.while_loop(lambda t, *_: t >= 0, backward, start)
            return [*(a.stack() for a in adjoints), *from_outputs, *carried]

        return [tf.identity(x) for x in tensors], gradient

    connected = connect(*new, *outputs_flat, *initial_flat)
    states = tf.nest.pack_sequence_as(initial, connected[:num_states])
    return states, tf.nest.pack_sequence_as(outputs, connected[num_states : num_states + len(outputs_flat)])
