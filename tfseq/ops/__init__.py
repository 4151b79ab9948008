"""Pure functions on tensors: no Keras, no variables, no state."""
