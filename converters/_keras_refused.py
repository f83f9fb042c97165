"""Keras's own layers that have no ONNX form here, each with its reason."""

from __future__ import annotations

_TEXT = "it takes strings, and what runs on a device takes numbers: look words up before the model"
_HASH = "it needs TensorFlow's hash functions, which ONNX lacks"
REASONS = {
    "StringLookup": _TEXT,
    "TextVectorization": _TEXT,
    "Hashing": _HASH,
    "HashedCrossing": _HASH,
    "JaxLayer": "it is a JAX function, not operations of Keras",
    "FlaxLayer": "it is a Flax module, not operations of Keras",
    "TFSMLayer": "it is a TensorFlow SavedModel: convert that folder itself",
    "ContrastLimitedAdaptiveHistogramEqualization": "it looks tables up by the number of the sample: not written here",
    "Equalization": "Keras cannot put it into a model: it returns its own input, which Keras takes for a cycle",
    "TorchModuleWrapper": "it is a PyTorch module: convert that itself",
}
# Public names of keras.layers that are no layers of a model.
NO_LAYERS = {
    "Layer": "the class that layers are made from: a layer of your own is written by the operations of its call",
    "Wrapper": "the class that wrapping layers are made from",
    "InputSpec": "what a layer says of its inputs",
}
# Other libraries' layers that files often name.
FOREIGN = {
    "KerasLayer": "it calls a model of TensorFlow Hub that the file does not hold: convert the SavedModel of the whole",
}
