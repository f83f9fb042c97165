"""When an answer is right, and when two models give the same: per example, as the zoo's models need it."""

from __future__ import annotations

import numpy as np

SPEECH = 0.5  # above it a frame is speech; a model that clips its scores to exactly this has said nothing
FOUND = 0.25  # the score from which on a box counts: the detector's own
TEXT = 0.3  # the probability from which on a pixel is text: PP-OCR's own threshold


def same_top1(reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Whether the largest value of each row [n, …] is at the same place."""
    places = (array.reshape(len(array), -1).argmax(axis=1) for array in (reference, outputs))
    same: np.ndarray = np.equal(*places)
    return same


def speech(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the probability of speech [n] says what the label [n] says."""
    hits: np.ndarray = (outputs > SPEECH) == (labels == 1)
    return hits


def same_speech(reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Whether two probabilities [n] give the same decision."""
    same: np.ndarray = (reference > SPEECH) == (outputs > SPEECH)
    return same


def cosine(reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The cosine of each pair of embeddings [n, d], none below 0."""
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(outputs, axis=1)
    found: np.ndarray = np.maximum((reference * outputs).sum(axis=1) / np.maximum(lengths, 1e-12), 0)
    return found


def boxes(reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Intersection over union of what two YOLOs find, as pairs of anchor and class: scores from row 4 on of
    [n, 4 + classes, anchors] in each picture; 1 where neither finds anything."""
    return _iou(*(array[:, 4:].reshape(len(array), -1) >= FOUND for array in (reference, outputs)))


def mask_iou(reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Intersection over union of the two text masks of each picture [n, 1, h, w]; 1 where neither has a pixel."""
    return _iou(*(array.reshape(len(array), -1) >= TEXT for array in (reference, outputs)))


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    union = (first | second).sum(axis=1)
    shared: np.ndarray = np.divide((first & second).sum(axis=1), union, out=np.ones(len(first)), where=union > 0)
    return shared
