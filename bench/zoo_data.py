"""What the zoo's models are fed: feeds and labels in a fixed order, in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

import edgerun
from bench import zoo_audio, zoo_fetch, zoo_images, zoo_text

Feeds = dict[str, np.ndarray]
Batches = Iterator[tuple[Feeds, np.ndarray]]
STATE = (1, 1, 128)  # of Silero's h and c


def images(
    part: str, count: int, prepare: zoo_images.Preprocess, batch: int, upscale: bool = True
) -> Iterator[tuple[Feeds, np.ndarray]]:
    """CIFAR-10's first `count` pictures, upscaled to 224 where asked, and their labels."""
    images, labels = zoo_images.cifar10(part)
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        chosen = zoo_images.upscaled(images[rows]) if upscale else images[rows]
        yield {"image": prepare(chosen)}, labels[rows]


def joined(batches: Iterator[Feeds]) -> Feeds:
    """The batches as one, along the first axis."""
    parts = list(batches)
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def calibration(batches: Batches) -> Feeds:
    """The feeds alone, as one."""
    return joined(feeds for feeds, _ in batches)


def raw(images: np.ndarray) -> np.ndarray:
    """Pixels 0..255 as float32."""
    return images.astype(np.float32)


def photo_batches(
    rows: slice, batch: int, prepare: zoo_images.Preprocess, name: str = "image", side: int = 256, size: int = 224
) -> Batches:
    """Photos as the model wants them; labels of -1, since there are none."""
    images = zoo_images.photos(side, size)[rows]
    for start in range(0, len(images), batch):
        chosen = prepare(images[start : start + batch])
        yield {name: chosen}, np.full(len(chosen), -1, np.int64)


def page_batches(rows: slice, batch: int) -> Batches:
    """Photos at 512 by 512 as PP-OCR's detector wants them."""
    return photo_batches(rows, batch, zoo_images.paddle, "x", side=512, size=512)


def recordings(parts: tuple[tuple[str, str], ...]) -> Batches:
    """Each recording as one sequence of frames [t, 576] with an empty state, and its labels [t]."""
    for frames, labels in zoo_audio.recordings(parts):
        yield {"input": frames, **{name: np.zeros(STATE, np.float32) for name in ("h", "c")}}, labels


def speech_blocks(model: Path, fed: Mapping[str, str]) -> Feeds:
    """Calibration rows: every third block of 64 frames, with the state that the model had when it came to it.

    `fed` names the output that feeds each state input. Every array is [blocks, ...]: rows are whole feeds.
    """
    with edgerun.load(model, "onnxruntime", edgerun.Options(threads=2)) as session:
        blocks: list[Feeds] = []
        for feeds, _ in recordings(zoo_audio.TRAIN):
            state = {name: feeds[name] for name in fed}
            for start in range(0, len(feeds["input"]) - 63, 64):
                blocks.append({"input": feeds["input"][start : start + 64], **state})
                outputs = session.run(blocks[-1])
                state = {name: outputs[output].copy() for name, output in fed.items()}
    return {name: np.stack([block[name] for block in blocks[::3]]) for name in blocks[0]}


def sentence_batches(rows: slice, batch: int) -> Batches:
    """Rated sentences as token ids, and 1 where the rating is positive."""
    texts, labels = zoo_text.sentences()
    texts, labels = texts[rows], labels[rows]
    for start in range(0, len(texts), batch):
        yield zoo_text.encode(texts[start : start + batch]), labels[start : start + batch]


def unit(images: np.ndarray) -> np.ndarray:
    """uint8 RGB [n, h, w, 3] to float32 [n, 3, h, w], 0..1."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def unlabelled(name: str, array: np.ndarray, batch: int) -> Batches:
    """The rows of an array as the only input; labels of -1."""
    for start in range(0, len(array), batch):
        rows = array[start : start + batch]
        yield {name: rows}, np.full(len(rows), -1, np.int64)


def file_ends(rows: slice) -> np.ndarray:
    """int32 [n, 2048], as Magika reads a file: 1,024 bytes of its begin and of its end without blanks, 256 for none.

    The files are the members of some of the zoo's archives, in an order that their names' hashes give.
    """
    found = []
    for archive in (zoo_fetch.SPEECH, zoo_fetch.OCR, zoo_fetch.PITCH, zoo_fetch.SPAM, zoo_fetch.SILERO):
        held = zoo_fetch.members(archive)
        found += [(hashlib.sha256(name.encode()).digest(), archive, name) for name in held]
    found.sort(key=lambda entry: entry[0])
    chosen = found[rows]
    read = {a: zoo_fetch.read_all(a, [n for _, other, n in chosen if other is a]) for a in {a for _, a, _ in chosen}}
    return np.stack([ends(read[archive][name]) for _, archive, name in chosen])


def ends(content: bytes, size: int = 1024, block: int = 4096) -> np.ndarray:
    """int32 [2 · size] of one file: of its first and last `block` bytes those that are no blanks at the outer end."""
    first = np.frombuffer(content[:block].lstrip()[:size], np.uint8)
    last = np.frombuffer(content[-block:].rstrip()[-size:], np.uint8)
    found = np.full(2 * size, 256, np.int32)
    found[: len(first)] = first
    found[2 * size - len(last) :] = last
    return found
