"""Networks that start from the weights of a pre-trained machine, fine-tuned with Keras's own `fit`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.models.base import Endpoint
from tfseq.ops.gibbs import Layered, States, mean_field
from tfseq.ops.units import Bernoulli

_ROWS = 1000  # of an array, inferred at once


@keras.saving.register_keras_serializable("tfseq")
class NetworkClassifier(keras.Model):
    """Sigmoid layers and a softmax, a plain Keras model: labels of vectors `[N, V]`; `to_classifier` of a machine makes it.

    h_l = sigmoid(h_{l-1} W_l + b_l), h_0 = v / scale. Made from a deep Boltzmann machine, each hidden layer but the last also
    gets the mean field of the layer above it, + q(h_{l+1}) U_l, with U_l = W_{l+1} transposed at first (Salakhutdinov and Hinton
    2009, sec. 3.4). Those means are its second input: `fit(classifier.inputs_for(x), y)`. Called with v alone, it infers them
    by the weights of the machine as they were.

    >>> import numpy as np, keras, tfseq
    >>> x = np.random.default_rng(0).integers(2, size=(64, 1)).repeat(6, 1).astype("float32")
    >>> model = tfseq.RBM.from_data(x, num_hidden=4).to_classifier(2)
    >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> _ = model.fit(x, x[:, 0], epochs=2, verbose=0)
    >>> model.predict(x, verbose=0).shape
    (64, 2)

    Args:
        num_visible: V.
        hidden_units: sizes of the hidden layers.
        num_classes: C.
        scale: `[V]`, divides the observations; None for 1.
        mean_field_sweeps: sweeps of the mean field of the second input; 0 for a network without one.
    """

    def __init__(
        self,
        *,
        num_visible: int,
        hidden_units: Sequence[int],
        num_classes: int,
        scale: Sequence[float] | None = None,
        mean_field_sweeps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, num_visible=num_visible)
        checks.at_least(2, num_classes=num_classes)
        self.settings: dict[str, Any] = {
            "num_visible": num_visible,
            "hidden_units": list(hidden_units),
            "num_classes": num_classes,
            "scale": None if scale is None else [float(a) for a in scale],
            "mean_field_sweeps": mean_field_sweeps,
        }
        sizes = [num_visible, *hidden_units]
        self.hidden_layers = [keras.layers.Dense(n, name=f"hidden_{i}") for i, n in enumerate(hidden_units)]
        self.output_layer = keras.layers.Dense(num_classes, name="output")
        self.top_down: list[Any] = []
        self.machine_weights: list[Any] = []
        for layer, n in zip(self.hidden_layers, sizes, strict=False):
            layer.build((None, n))
        self.output_layer.build((None, sizes[-1]))
        if mean_field_sweeps:
            self.top_down = [keras.layers.Dense(n, use_bias=False, name=f"top_down_{i}") for i, n in enumerate(hidden_units[:-1])]
            for layer, n in zip(self.top_down, hidden_units[1:], strict=True):
                layer.build((None, n))
            shapes = [*itertools.pairwise(sizes), *((n,) for n in hidden_units)]
            self.machine_weights = [
                self.add_weight(shape=shape, initializer="zeros", trainable=False, name=f"machine_{i}")
                for i, shape in enumerate(shapes)
            ]
        self.built = True

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> NetworkClassifier:
        return cls(**{n: v for n, v in config.items() if n in ("name", "dtype", *_SETTINGS)})

    @property
    def has_second_input(self) -> bool:
        """Whether the network takes the mean field of a machine beside v."""
        return bool(self.top_down)

    def set_parameters(self, weights: Sequence[Any], biases: Sequence[Any], seed: int) -> None:
        """Sets the hidden layers' weights and biases, and draws those of the output."""
        for layer, w, b in zip(self.hidden_layers, weights, biases, strict=True):
            layer.kernel.assign(np.asarray(w))
            layer.bias.assign(np.asarray(b))
        draw = keras.initializers.GlorotUniform(seed)
        self.output_layer.kernel.assign(draw(self.output_layer.kernel.shape))
        for layer, w in zip(self.top_down, weights[1:], strict=False):
            layer.kernel.assign(np.asarray(w).T)
        for target, value in zip(self.machine_weights, [*weights, *biases], strict=False):
            target.assign(np.asarray(value))

    def _scaled(self, v: tf.Tensor) -> tf.Tensor:
        scale = self.settings["scale"]
        v = tf.cast(v, self.variable_dtype)
        return v if scale is None else v / tf.constant(scale, v.dtype)

    def mean_field(self, v: Any) -> States:
        """The machine's mean field of the hidden layers 2, 3, ..., `[N, n]` each, given v `[N, V]`."""
        num = len(self.hidden_layers)
        matrices = [tf.convert_to_tensor(w) for w in self.machine_weights[:num]]
        biases = [tf.convert_to_tensor(b) for b in self.machine_weights[num:]]
        units = tuple(Bernoulli(int(b.shape[0])) for b in biases)
        machine = Layered(units, tuple(matrices[1:]), (self._scaled(v) @ matrices[0] + biases[0], *biases[1:]), tuple(biases))
        return mean_field(machine, self.settings["mean_field_sweeps"], 0.0)[1:]

    def inputs_for(self, x: Any) -> Any:
        """What `fit` takes: x `[N, V]` itself, or a dict of it as `v` and the mean field as `top` `[N, n_2 + n_3 + ...]`."""
        x = np.asarray(x, self.variable_dtype)
        if not self.has_second_input:
            return x
        infer = tf.function(lambda v: tf.concat(self.mean_field(v), -1), autograph=False, reduce_retracing=True)
        return {"v": x, "top": np.concatenate([infer(tf.constant(x[i : i + _ROWS])).numpy() for i in range(0, len(x), _ROWS)])}

    def features(self, inputs: Any) -> list[tf.Tensor]:
        """Activities of all hidden layers, `[N, n]` each."""
        v = tf.convert_to_tensor(inputs["v"] if isinstance(inputs, Mapping) else inputs)
        width = self.settings["num_visible"]
        if v.shape.rank != 2 or v.shape[1] not in (width, None):
            raise ValueError(f"`v` must have shape [N, {width}]; received {v.shape.as_list()}.")
        above: Any = ()
        if self.has_second_input:
            sizes = self.settings["hidden_units"][1:]
            above = tf.split(inputs["top"], sizes, -1) if isinstance(inputs, Mapping) else self.mean_field(v)
        h, found = self._scaled(v), []
        for i, layer in enumerate(self.hidden_layers):
            a = layer(h)
            if i < len(above):
                a += self.top_down[i](tf.cast(above[i], a.dtype))
            h = tf.sigmoid(a)
            found.append(h)
        return found

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Probabilities `[N, C]`, float32 under mixed precision too."""
        return tf.nn.softmax(tf.cast(self.output_layer(self.features(inputs)[-1]), self.variable_dtype))

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """Served signatures: `classify`, the default, and `hidden`."""
        v = tf.TensorSpec([None, self.settings["num_visible"]], tf.float32, "v")

        def classify(v: tf.Tensor) -> dict[str, tf.Tensor]:
            probs = self(v)
            return {"label": tf.argmax(probs, -1, tf.int32), "probs": tf.cast(probs, tf.float32)}

        def hidden(v: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"probs": tf.cast(self.features(v)[-1], tf.float32)}

        return {"serving_default": (classify, [v]), "classify": (classify, [v]), "hidden": (hidden, [v])}


_SETTINGS = ("num_visible", "hidden_units", "num_classes", "scale", "mean_field_sweeps")
