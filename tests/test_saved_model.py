"""What counts as the same answer of a reloaded graph; the export itself is in the conformance tests."""

from __future__ import annotations

import math

import numpy as np

from tfseq.exporting.saved_model import _TOLERANCE, _gaps


def test_rounding_is_that_of_the_largest_value_of_a_signature() -> None:
    wanted = {"log_prob": np.float32([-163.2]), "log_weights": np.float32([[-1e-3, -7.0, -np.inf]])}
    got = {"log_prob": wanted["log_prob"], "log_weights": wanted["log_weights"] + np.float32(1.2e-4)}
    gaps, scale = _gaps(got, wanted)
    assert gaps["log_prob"] == 0.0 and 1e-4 < gaps["log_weights"] <= _TOLERANCE * scale
    small, scale = _gaps({"p": np.float32([0.5003])}, {"p": np.float32([0.5])})
    assert small["p"] > _TOLERANCE * scale


def test_other_shapes_other_words_and_other_infinities_are_differences() -> None:
    for got, wanted in (([1.0, 2.0], [[1.0, 2.0]]), ([np.nan], [1.0]), ([np.inf], [-np.inf]), (["a"], ["b"])):
        assert _gaps({"y": np.array(got)}, {"y": np.array(wanted)})[0]["y"] == math.inf
    assert _gaps({"y": np.array([np.nan, "a"], object)}, {"y": np.array(["b", "a"], object)})[0]["y"] == math.inf
    assert _gaps({"y": np.array([np.nan, 1.0])}, {"y": np.array([np.nan, 1.0])})[0]["y"] == 0.0
