"""Training by closed-form updates through `fit`: EM and its relatives, once for all models that have an M step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfseq.models.base import Batch, SequenceModel
from tfseq.models.replicas import sum_over_replicas


class ClosedFormModel(SequenceModel):
    """A model whose parameters follow from sums over the data.

    A batch adds its expected statistics, summed over replicas, to non-trainable weights. The update of an epoch comes when the
    next epoch begins, or training ends, so that metrics, validation and checkpoints belong to the parameters they were made with.

    A model calls `create_statistics` in its constructor and defines `expectation` and `maximise`.
    """

    def create_statistics(self, shapes: Sequence[Sequence[int]]) -> None:
        """Weights for the sums since the last update, float64."""

        def state(name: str, shape: Sequence[int] = (), dtype: str = "float64") -> Any:
            return self.add_weight(
                shape=tuple(shape), dtype=dtype, initializer="zeros", trainable=False, autocast=False, name=name
            )

        self.statistics = [state(f"statistics_{i}", shape) for i, shape in enumerate(shapes)]
        self.statistics_count = state("count")
        self.pass_is_done, self.num_updates = state("pass_is_done", dtype="int32"), state("updates", dtype="int32")

    def expectation(self, batch: Batch) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """E step: log p(x) of each sequence `[B]` and the expected statistics of the batch, float64."""
        raise NotImplementedError

    def maximise(self, statistics: Sequence[tf.Tensor]) -> None:
        """M step: the parameters of the highest expected likelihood; statistics are sums, or means per step."""
        raise NotImplementedError

    def end_pass(self) -> None:
        """What a whole pass over the data updates."""
        self.maximise([a.value for a in self.statistics])

    def penalty(self) -> tf.Tensor:
        """What the prior costs, nats, counted once in a pass."""
        return tf.constant(0.0, tf.float64)

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """A gradient step, or the E step of a batch (and with a `step_size` its M step)."""
        if self.method == "gradient":
            return super().train_step(batch)
        batch = self._checked(self.complete(batch, self.step.value))
        log_prob, statistics = self.expectation(batch)
        log_lik = tf.reduce_sum(tf.cast(log_prob, tf.float64))
        steps = tf.math.count_nonzero(batch["mask"], dtype=tf.float64)
        log_lik, steps, *statistics = sum_over_replicas([log_lik, steps, *statistics])
        with tf.control_dependencies([self.assert_finite(batch, log_lik)]):
            self._learn(log_lik, steps, statistics)
        return self.get_metrics_result()

    def _learn(self, log_lik: tf.Tensor, steps: tf.Tensor, statistics: Sequence[tf.Tensor]) -> None:
        """Adds the sums of a batch over all replicas to the metrics and to the statistics."""
        # the prior counts once in a pass over the data, in its first batch
        penalty = tf.where(self.statistics_count.value == 0.0, self.penalty(), tf.constant(0.0, tf.float64))
        self.loss_metric.update_state(penalty - log_lik, steps)
        # with the prior's part a bound on the evidence; without it nothing
        self.bound_metric.update_state(penalty - log_lik if self.method == "vb" else -log_lik, steps)
        if self.step_size is None:
            for total, new in zip(self.statistics, statistics, strict=True):
                total.assign(total + new)
            self.statistics_count.assign(self.statistics_count + steps)
        else:
            rate = tf.cast(self.num_updates + 1, tf.float64) ** -self.step_size
            for total, new in zip(self.statistics, statistics, strict=True):
                total.assign((1.0 - rate) * total + rate * tf.math.divide_no_nan(new, steps))
            self.num_updates.assign(self.num_updates + 1)
            self.maximise([a.value for a in self.statistics])
        self.step.assign(self.step + 1)

    def if_not_finite(self) -> str:
        if self.method == "gradient":
            return super().if_not_finite()
        return f"Some of these sequences are impossible under the model, or too unlikely for {self.variable_dtype}."

    def update(self) -> None:
        """M step of the statistics of a whole pass over the data, if there are any; they begin anew."""
        if self.step_size is not None:
            return  # updated after every batch, from statistics that go on
        if int(self.pass_is_done.numpy()) and float(self.statistics_count.numpy()) > 0.0:
            self.end_pass()
        self.forget()  # of a pass that was interrupted

    def forget(self) -> None:
        """Statistics begin anew."""
        for total in (*self.statistics, self.statistics_count, self.pass_is_done):
            total.assign(tf.zeros_like(total))

    def fit(self, x: Any = None, y: Any = None, *, callbacks: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """Keras's `fit`; closed-form methods update after every epoch."""
        if self.compiled and self.method != "gradient":
            given = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
            callbacks = [_Update(), *given]
        return super().fit(x, y, callbacks=callbacks, **kwargs)


class _Update(keras.callbacks.Callback):
    """The M step of an epoch, before the next begins and after the last."""

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self.model.update()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self.model.pass_is_done.assign(int(logs is None or math.isfinite(logs["loss"])))  # else nothing is to be learned from it

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        self.model.update()
