"""Hidden Markov models in pomegranate: a peer of `tfseq.models.hmm` in the speed benchmark.

`DenseHMM` in float32 without checks of the data and without gradients, all sequences side by side. Probabilities to end are 1: a
sequence ends because the data do. Its messages are logarithms that are never normalised, so the precision of float32 goes down as
a sequence gets longer.

The smoother is `forward` and `backward` on the same emission log-probabilities, since `predict_proba` also makes the two-slice
marginals of every step, which takes far longer. Paths have no score in pomegranate; it is added up along them here. One iteration
is `summarize` and `from_summaries`, of which `fit` consists; the parameters are set back after each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from benchmarks.hmm import check_em
from pomegranate.distributions import Categorical, Normal
from pomegranate.hmm import DenseHMM


def make_tasks(data: dict[str, np.ndarray], num_threads: int = 1) -> dict[str, Callable[[], float]]:
    """The tasks of `benchmarks.hmm`.

    Args:
        data: see `benchmarks.hmm.example`.
        num_threads: of PyTorch, for the whole process.
    """
    torch.set_num_threads(num_threads)
    parameters = {name: torch.tensor(value, dtype=torch.float32) for name, value in data.items() if name != "x"}
    if "probs" in data:
        x = torch.from_numpy(data["x"]).long().unsqueeze(-1)
        nodes = [Categorical(p.unsqueeze(0), check_data=False) for p in parameters["probs"]]
    else:
        x = torch.from_numpy(data["x"])
        moments = zip(parameters["means"], parameters["variances"], strict=True)
        nodes = [Normal(mean, variance, covariance_type="diag", check_data=False) for mean, variance in moments]
    initial, transition = parameters["initial"], parameters["transition"]
    model = DenseHMM(nodes, edges=transition, starts=initial, ends=torch.ones_like(initial), check_data=False)
    start = copy.deepcopy(model.state_dict())

    def emissions() -> torch.Tensor:
        rows = x.flatten(0, 1)
        return torch.stack([node.log_probability(rows) for node in model.distributions], -1).view(*x.shape[:2], -1)

    def score() -> float:
        return model.log_probability(x).double().sum().item()

    def smoother() -> float:
        log_emission = emissions()
        joint = model.forward(emissions=log_emission) + model.backward(emissions=log_emission)
        return torch.softmax(joint, -1)[..., 0].double().sum().item()

    def viterbi() -> float:
        log_emission = emissions()
        path = model.viterbi(emissions=log_emission)
        scores = log_emission.gather(-1, path.unsqueeze(-1)).double().sum()
        return (scores + model.starts[path[:, 0]].sum() + model.edges[path[:, :-1], path[:, 1:]].double().sum()).item()

    def em() -> float:
        log_prob = model.summarize(x).double().sum().item()
        model.from_summaries()
        result = check_em(log_prob, model.edges.exp().numpy(), data["x"])
        model.load_state_dict(start)
        return result

    tasks = {"score": score, "smoother": smoother, "Viterbi": viterbi, "EM": em}
    return {name: torch.no_grad()(task) for name, task in tasks.items()}
