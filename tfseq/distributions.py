"""`tfd.HiddenMarkovModel` with the exact, normalised inference of `ops/chains.py`, and the methods that it lacks."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq.ops import chains


class Path(NamedTuple):
    """The best path of states `[..., T]` int32, and log p(observations, path) `[...]`."""

    states: tf.Tensor
    score: tf.Tensor


class HiddenMarkovModel(tfd.HiddenMarkovModel):
    """A `tfd.HiddenMarkovModel`, to be used in its place: constructor, methods and shapes are TFP's.

    What differs: messages are normalised at every step, so long sequences lose nothing in float32; gradients are exact and
    finite where transitions are zero, where NaN stands at a masked step, and where the data are impossible (log_prob is -inf);
    long sequences take O(sqrt(T)) steps. New are `filter`, `posterior`, `two_slice_marginals`, `leave_one_out`,
    `posterior_sample` and `best_path`.

    As in TFP, and against Keras and the rest of tfseq, `mask` is True at steps that are *missing*: the chain moves on there, and
    the observation is left out. Densities are of joint distributions too: it composes with `tfd.JointDistribution*`.

    >>> import tensorflow as tf
    >>> from tensorflow_probability import distributions as tfd
    >>> from tfseq.distributions import HiddenMarkovModel
    >>> weather = HiddenMarkovModel(
    ...     initial_distribution=tfd.Categorical(probs=[0.8, 0.2]),
    ...     transition_distribution=tfd.Categorical(probs=[[0.7, 0.3], [0.2, 0.8]]),
    ...     observation_distribution=tfd.Normal(loc=[0.0, 15.0], scale=[5.0, 10.0]),
    ...     num_steps=7,
    ... )
    >>> print(f"{weather.log_prob(tf.zeros([7])):.4f}")
    -19.8556
    >>> weather.best_path([-2.0, 0.0, 2.0, 4.0, 6.0, 8.0, 10.0]).states.numpy().tolist()
    [0, 0, 0, 0, 0, 1, 1]
    """

    def _log_prob(self, value: Any, mask: Any = None) -> tf.Tensor:
        chain, batch_shape = self._chain(value, mask)
        return tf.reshape(chains.log_prob(*chain), batch_shape)

    def posterior_marginals(self, observations: Any, mask: Any = None, name: str = "posterior_marginals") -> tfd.Categorical:
        """p(z_t | all observations) as `tfd.Categorical` of batch shape `[..., T]`."""
        with tf.name_scope(name):
            probs = self.posterior(observations, mask).smoothed
            return tfd.Categorical(probs=probs)

    def posterior_mode(self, observations: Any, mask: Any = None, name: str = "posterior_mode") -> tf.Tensor:
        """States of the most probable path, `[..., T]` int32."""
        with tf.name_scope(name):
            return self.best_path(observations, mask).states

    def best_path(self, observations: Any, mask: Any = None) -> Path:
        """States of the most probable path and their log joint probability with the observations."""
        chain, batch_shape = self._chain(observations, mask)
        path = chains.viterbi(*chain)
        return Path(_unflatten(path.states, batch_shape), tf.reshape(path.score, batch_shape))

    def filter(self, observations: Any, mask: Any = None) -> chains.Filtered:
        """log p(x_t | x_1 .. x_{t-1}) `[..., T]`, p(z_t | x_1 .. x_{t-1}) and p(z_t | x_1 .. x_t) `[..., T, K]`."""
        chain, batch_shape = self._chain(observations, mask)
        return chains.Filtered(*(_unflatten(a, batch_shape) for a in chains.filter(*chain)))

    def posterior(self, observations: Any, mask: Any = None) -> chains.Posterior:
        """log p(x) `[...]`, and predicted, filtered, smoothed and leave-one-out marginals `[..., T, K]`."""
        chain, batch_shape = self._chain(observations, mask)
        log_prob, *marginals = chains.posterior(*chain)
        return chains.Posterior(tf.reshape(log_prob, batch_shape), *(_unflatten(a, batch_shape) for a in marginals))

    def two_slice_marginals(self, observations: Any, mask: Any = None) -> tf.Tensor:
        """p(z_t, z_{t+1} | x), `[..., T-1, K, K]`."""
        chain, batch_shape = self._chain(observations, mask)
        return _unflatten(chains.two_slice(*chain), batch_shape)

    def leave_one_out(self, observations: Any, mask: Any = None) -> tfd.MixtureSameFamily:
        """p(x_t | all other observations) for every t: a mixture over the states, of batch shape `[..., T]`."""
        if self._time_varying_observation_distribution:
            raise ValueError("`leave_one_out` needs observation distributions that do not vary in time.")
        probs = self.posterior(observations, mask).leave_one_out
        return tfd.MixtureSameFamily(tfd.Categorical(probs=probs), self.observation_distribution)

    def posterior_sample(self, observations: Any, sample_shape: Any = (), mask: Any = None, seed: Any = None) -> tf.Tensor:
        """Paths from p(z | x): `sample_shape + [..., T]` int32; `seed` as TFP takes it."""
        chain, batch_shape = self._chain(observations, mask)
        num = tf.reduce_prod(tf.constant(sample_shape, tf.int32, shape=[len(tuple(sample_shape))]))
        rows, steps = tf.unstack(tf.shape(chain[2])[:2])
        uniform = tfd.Uniform(tf.zeros([], chain[2].dtype), 1.0).sample([steps, rows, num], seed=seed)
        paths = tf.transpose(chains.sample(*chain, uniform), [1, 0, 2])  # [S, B, T]
        return tf.reshape(paths, tf.concat([tf.cast(sample_shape, tf.int32), batch_shape, [steps]], 0))

    def _chain(self, observations: Any, mask: Any) -> tuple[tuple[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
        """(what `ops.chains` takes, all batch axes as one; those axes)."""
        observations = tf.convert_to_tensor(observations, self.dtype)
        event_rank = len(self.observation_distribution.event_shape)
        steps = observations.shape[observations.shape.rank - event_rank - 1]
        wanted = tf.get_static_value(self.num_steps)
        if None not in (steps, wanted) and steps != wanted:
            raise ValueError(f"Observations must have {wanted} steps (`num_steps`) on axis {-1 - event_rank}; received {steps}.")
        mask = self._get_mask(mask)
        if mask is not None:  # NaN may stand at a missing step, and would poison the gradient
            missing = tf.reshape(mask, tf.concat([tf.shape(mask), [1] * event_rank], 0))
            observations = tf.where(missing, tf.zeros_like(observations), observations)
        log_emission = self._observation_log_probs(observations, mask)  # [T, ..., K]
        order = [*range(1, log_emission.shape.rank - 1), 0, log_emission.shape.rank - 1]
        log_emission = tf.transpose(log_emission, order)
        batch_shape, num_states = tf.shape(log_emission)[:-2], log_emission.shape[-1]
        num_steps = tf.shape(log_emission)[-2]
        log_emission = tf.reshape(log_emission, [-1, log_emission.shape[-2] or num_steps, num_states])
        initial = _normalised(self.initial_distribution)
        if initial.shape.rank > 1:
            initial = tf.reshape(tf.broadcast_to(initial, tf.concat([batch_shape, [num_states]], 0)), [-1, num_states])
        transition = _normalised(self.transition_distribution)
        varying = bool(self._time_varying_transition_distribution)
        if transition.shape.rank > (3 if varying else 2):
            matrices = transition.shape[-3] if varying else 1
            transition = transition if varying else transition[..., None, :, :]
            shape = tf.concat([batch_shape, tf.shape(transition)[-3:]], 0)
            transition = tf.reshape(tf.broadcast_to(transition, shape), [-1, matrices, num_states, num_states])
        return (initial, transition, log_emission), batch_shape


def _normalised(distribution: tfd.Categorical) -> tf.Tensor:
    """log-probabilities `[..., K]`; from `probs` where these were given, so that a zero is -inf and has no gradient of NaN."""
    if distribution.probs is not None:
        return tf.math.log(tf.convert_to_tensor(distribution.probs))
    return tf.nn.log_softmax(distribution.logits_parameter())


def _unflatten(values: tf.Tensor, batch_shape: tf.Tensor) -> tf.Tensor:
    return tf.reshape(values, tf.concat([batch_shape, tf.shape(values)[1:]], 0))
