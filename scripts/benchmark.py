#!/usr/bin/env python
"""Speed beside the peers, in one run, on the same threads and data; every contender in a process of its own.

    python scripts/benchmark.py dmm [--threads 1] [--repeats 15] [--rounds 2]
    python scripts/benchmark.py hmm [--threads 1] [--repeats 10] [--rounds 2] [--workloads abcd]
    python scripts/benchmark.py hmm-long [--threads 1]
    python scripts/benchmark.py rbm [--threads 1] [--repeats 3] [--rounds 2] [--data-dir DIR]
    python scripts/benchmark.py recurrent [--threads 1] [--repeats N] [--rounds 2] [--workloads abc]
    python scripts/benchmark.py vrnn [--threads 1] [--repeats 15] [--rounds 2]
    python scripts/benchmark.py scale [--rounds 2] [--workloads dmm,hmm,lm,rbm,tagger,vrnn]
    python scripts/benchmark.py xla [--threads 1] [--rounds 2] [--workloads dmm,hmm,lm,rbm,tagger,vrnn]
    python scripts/benchmark.py serving [--threads 1] [--rounds 2] [--seconds 60] [--clients 200] [--streams 1000] [--steps 10]
    python scripts/benchmark.py streaming [--threads 1] [--gigabytes 5] [--workloads lm,rbm] [--folder DIR]

`dmm`: one training step of the deep Markov model in tfseq, plain PyTorch and Pyro. `hmm`: score, smoother, Viterbi and one
iteration of EM of hidden Markov models in tfseq, hmmlearn, dynamax and pomegranate. `hmm-long`: drift, time and memory of one
chain of a million steps. `rbm`: epochs of a restricted Boltzmann machine in tfseq, plain PyTorch and scikit-learn, annealed
importance sampling, and the memory of a stream. `recurrent`: training and inference of taggers, training of language models and
generation in tfseq, plain Keras and PyTorch. `vrnn`: one training step of the variational RNN in tfseq and plain PyTorch.
`scale`: training with one, two and four workers. `serving`: `tfseq serve` under load, with and without batching, and with many
streams. `streaming`: memory and speed of an epoch on shards of any size. `xla`: a training step with and without XLA, and in
mixed precision. What each measures stands at the head of its file in `benchmarks/`; the peers' side is in `peers/` (`pip install
-e ".[bench]"`; a contender that is not installed is left out, and said to be). Rounds take turns, so that a slow minute of the
machine hits all.
"""

from __future__ import annotations

import argparse
import json

from benchmarks import dmm, hmm, hmm_long, rbm, recurrent, scale, serving, streaming, vrnn, xla

from tfseq.allocator import keep_memory

BENCHMARKS = {
    "dmm": dmm,
    "hmm": hmm,
    "hmm-long": hmm_long,
    "rbm": rbm,
    "recurrent": recurrent,
    "scale": scale,
    "serving": serving,
    "streaming": streaming,
    "vrnn": vrnn,
    "xla": xla,
}


def main() -> None:
    """Runs a benchmark, or one contender of it as a child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*BENCHMARKS, "child"], help="the benchmark; `child` is what its child processes run")
    parser.add_argument("call", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--repeats", type=int, help="of each round: 15 for dmm and vrnn, 10 for hmm, 3 for rbm, 15, 5 and 3 for recurrent"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workloads", help="hmm: which of a, b, c and d; recurrent: of a, b and c; scale and xla: models")
    parser.add_argument("--data-dir", help="rbm: folder of MNIST's files; generated pictures without it")
    parser.add_argument("--images", type=int, help="rbm: pictures of an epoch, 60,000")
    parser.add_argument("--seconds", type=float, help="serving: of each load, 60")
    parser.add_argument("--clients", type=int, help="serving: at the same time, 200")
    parser.add_argument("--streams", type=int, dest="num_streams", help="serving: at the same time, 1000")
    parser.add_argument("--steps", type=int, help="serving: of a stream, 10")
    parser.add_argument("--folder", help="serving: where its models are kept; streaming: its data; a temporary one without it")
    parser.add_argument("--gigabytes", type=float, help="streaming: of each data set, 5")
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    what, call = given.pop("what"), given.pop("call", None)
    if what == "child":
        name, arguments = json.loads(call)
        keep_memory()  # for all contenders alike
        print(json.dumps(BENCHMARKS[name].measure(**arguments)))
    else:
        BENCHMARKS[what].run(**given)


if __name__ == "__main__":
    main()
