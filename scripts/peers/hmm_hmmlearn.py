"""Hidden Markov models in hmmlearn: a peer of `tfseq.models.hmm` in the speed benchmark.

float64 throughout (its C++ has no other type), one sequence after another, one thread. "log" is hmmlearn's default and sums by
logsumexp; "scaling" normalises at every step. Viterbi is the same code in both. `fit` runs one iteration from the parameters as
they are (`init_params=""`: no k-means, no random start) without its priors; they are set back after each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from benchmarks.hmm import check_em
from hmmlearn.hmm import CategoricalHMM, GaussianHMM


def make_tasks(
    data: dict[str, np.ndarray], num_threads: int = 1, *, implementation: Literal["log", "scaling"] = "log"
) -> dict[str, Callable[[], float]]:
    """The tasks of `benchmarks.hmm`.

    Args:
        data: see `benchmarks.hmm.example`.
        num_threads: of NumPy's products, set by the environment; the recursions have one.
        implementation: of forward and backward.
    """
    x = data["x"]
    num_states, lengths = len(data["initial"]), [x.shape[1]] * x.shape[0]
    options = {"n_iter": 1, "init_params": "", "implementation": implementation}
    if "probs" in data:
        model = CategoricalHMM(num_states, n_features=data["probs"].shape[-1], **options)
        rows = x.reshape(-1, 1).astype(np.int64)
    else:
        model = GaussianHMM(num_states, "diag", covars_prior=0.0, **options)
        rows = x.reshape(-1, x.shape[-1]).astype(np.float64)

    def reset() -> None:
        model.startprob_, model.transmat_ = data["initial"], data["transition"]
        if "probs" in data:
            model.emissionprob_ = data["probs"]
        else:
            model.means_, model.covars_ = data["means"], data["variances"]

    def em() -> float:
        model.fit(rows, lengths)
        result = check_em(model.monitor_.history[-1], model.transmat_, x)
        reset()
        return result

    reset()
    return {
        "score": lambda: float(model.score(rows, lengths)),
        "smoother": lambda: float(model.score_samples(rows, lengths)[1][:, 0].sum()),
        "Viterbi": lambda: float(model.decode(rows, lengths)[0]),
        "EM": em,
    }
