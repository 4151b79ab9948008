"""The restricted Boltzmann machine in scikit-learn: a peer of `tfseq.models.rbm` in the speed benchmark.

`BernoulliRBM` trains by PCD-1 with as many chains as a batch has rows. An epoch is `fit` with `n_iter=1`, which starts anew each
time (some milliseconds) and keeps the type of the data; `partial_fit` would make float64 of it. Its batches are in the order of
the data. Its products are NumPy's, in NumPy's wheels OpenBLAS, which may not know a processor: on an AMD EPYC (Zen 5)
it took its Haswell kernels, without AVX-512. `OPENBLAS_CORETYPE` in the environment chooses others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.neural_network import BernoulliRBM
from threadpoolctl import threadpool_limits


def make_epoch(
    x: np.ndarray, *, num_hidden: int, batch_size: int, rate: float, dtype: str = "float32", seed: int = 0, num_threads: int = 1
) -> tuple[Callable[[], None], Callable[[], list[np.ndarray]]]:
    """A function that trains one epoch, and one that gives the parameters: weights [V, H], visible and hidden biases.

    Args:
        x: [N, V] in {0, 1}.
        num_hidden: H.
        batch_size: rows of a batch, and the number of chains.
        rate: of the gradient's mean over the batch.
        dtype: of data and parameters.
        seed: of parameters and noise.
        num_threads: of NumPy's products, for the whole process.
    """
    threadpool_limits(num_threads)
    data = x.astype(dtype, copy=False)
    model = BernoulliRBM(num_hidden, learning_rate=rate, batch_size=batch_size, n_iter=1, random_state=seed)

    def parameters() -> list[np.ndarray]:
        return [model.components_.T, model.intercept_visible_, model.intercept_hidden_]

    return lambda: model.fit(data), parameters
