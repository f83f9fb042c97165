"""The zoo: what needs no download runs always; the real models run where the cache has them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerun
from bench import answers, evaluate, zoo, zoo_audio, zoo_build, zoo_data, zoo_fetch, zoo_images, zoo_keras, zoo_text
from edgerun.errors import EdgerunError


def cached(name: str) -> zoo.ZooModel:
    chosen = zoo.model(name)
    if not chosen.ready:
        pytest.skip(f"{name} is not in the cache: python -m bench.zoo {name}")
    return chosen


def archived(archive: zoo_fetch.Archive) -> None:
    if not archive.path.exists():
        pytest.skip(f"{archive.file} is not in the cache: python -m bench.zoo")


def outputs(chosen: zoo.ZooModel, examples: int) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = [], []
    with edgerun.load(chosen.onnx, "onnxruntime", edgerun.Options(threads=1)) as session:
        for feeds, truth in chosen.test(chosen.batch):
            scores.append(session.run(feeds)[session.outputs[0].name])
            labels.append(truth)
            if sum(map(len, labels)) >= examples:
                break
    return np.concatenate(scores), np.concatenate(labels)


def test_class_map_gives_every_imagenet_class_to_one_cifar_class_at_most() -> None:
    members = [c for classes in zoo_images.CIFAR_CLASSES.values() for c in classes]
    assert len(zoo_images.CIFAR_CLASSES) == 10
    assert len(members) == len(set(members)) and 0 <= min(members) and max(members) < 1000


def test_mapped_score_is_the_best_member() -> None:
    scores = np.zeros((2, 1000), np.float32)
    scores[0, 339] = 2.0  # sorrel: horse
    scores[1, 285] = 1.0  # Egyptian cat
    assert zoo.cifar_top1(scores, np.array([7, 3])).all()


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(EdgerunError, match="did you mean 'resnet50'"):
        zoo.model("resnet5")


def test_keras_names_of_the_original_resnet() -> None:
    assert zoo_keras.keras_name("res2a_branch2a") == "conv2_block1_1_conv"
    assert zoo_keras.keras_name("bn5c_branch2c") == "conv5_block3_3_bn"
    assert zoo_keras.keras_name("bn3a_branch1") == "conv3_block1_0_bn"


def test_safetensors_are_read_by_offset() -> None:
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7.0], np.float32)
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [24, 28]},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    }
    text = json.dumps(header).encode()
    raw = struct.pack("<Q", len(text)) + text + first.tobytes() + second.tobytes()
    found = zoo_build.safetensors(raw)
    assert np.array_equal(found["a"], first) and np.array_equal(found["b"], second)


def test_an_altered_archive_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(command: list[str], cwd: str, **_: Any) -> subprocess.CompletedProcess[str]:
        Path(cwd, zoo_fetch.RESNET.file).write_bytes(b"altered")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("EDGERUN_ZOO", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(EdgerunError, match="not the pinned file"):
        zoo_fetch.fetch(zoo_fetch.RESNET)
    assert not zoo_fetch.RESNET.path.exists()
    good = dataclasses.replace(zoo_fetch.RESNET, sha256=hashlib.sha256(b"altered").hexdigest())
    assert zoo_fetch.fetch(good).read_bytes() == b"altered"


def test_frames_bring_the_end_of_the_one_before() -> None:
    samples = np.arange(1, 1301, dtype=np.float32)
    frames = zoo_audio.framed(samples)
    assert frames.shape == (2, 576) and not frames[0, :64].any()
    assert np.array_equal(frames[0, 64:], samples[:512]) and np.array_equal(frames[1], samples[448:1024])


def test_speech_is_where_a_frames_middle_lies_in_a_span() -> None:
    spans = "SPEAKER a 1 0.020 0.040 <NA> <NA> x <NA> <NA>\nSPEAKER b 1 0 9 <NA> <NA> y <NA> <NA>\n"
    # Middles at 16, 48, 80 ms; the span of `a` is 20 to 60 ms.
    assert zoo_audio.speech(spans, "a", 3).tolist() == [0, 1, 0]


def test_masks_agree_by_their_shared_pixels() -> None:
    first, second = np.zeros((3, 1, 2, 2), np.float32), np.zeros((3, 1, 2, 2), np.float32)
    first[0, 0, 0], second[0, 0, :, 0] = 0.9, 0.31  # one pixel of three shared
    first[1] = 0.29  # below the threshold: no mask in either
    second[2, 0, 0, 0] = 1.0
    assert answers.mask_iou(first, second) == pytest.approx([1 / 3, 1.0, 0.0])


def test_scores_clipped_at_the_threshold_are_no_speech() -> None:
    outputs = np.array([0.5, 0.51, 0.1], np.float32)
    assert answers.speech(outputs, np.array([1, 1, 0])).tolist() == [False, True, True]
    assert answers.same_speech(np.array([0.9, 0.9, 0.2], np.float32), outputs).tolist() == [False, True, True]


def test_boxes_agree_by_what_both_find() -> None:
    first, second = np.zeros((3, 6, 2), np.float32), np.zeros((3, 6, 2), np.float32)
    first[:, :4], second[:, :4] = 100.0, 50.0  # where they lie counts for nothing
    first[0, 4, 0], second[0, 4] = 0.9, 0.3  # one of two
    second[2, 5, 1] = 0.26
    assert answers.boxes(first, second) == pytest.approx([0.5, 1.0, 0.0])
    assert answers.cosine(np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(
        [0.5**0.5, 0.0]
    )


def test_a_tone_is_in_its_band() -> None:
    """1,000 Hz is mel 15 of 45.25, in 41 steps of 1.104: nearest to the middle of the 14th band, mel 15.45."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    found = zoo_audio.mel(tone)
    assert found.shape == (101, 40) and (found[5:-5].argmax(axis=1) == 13).all()
    quiet = zoo_audio.loud(tone / 1000)
    assert np.sqrt(np.mean(quiet**2)) == pytest.approx(10**-1.5, rel=1e-3) and np.array_equal(
        zoo_audio.loud(tone), tone
    )


@pytest.mark.zoo
def test_the_speaker_encoder_tells_recordings_apart() -> None:
    """Several people speak in each: utterances are 0.08 nearer within a recording in the mean."""
    chosen = cached("speaker")
    embeddings, _ = outputs(chosen, 225)
    own = embeddings.reshape(5, 45, 256)[:, ::8]
    near = np.mean([(part @ part.T)[np.triu_indices(len(part), 1)].mean() for part in own])
    far = np.mean([(a @ b.T).mean() for i, a in enumerate(own) for b in own[:i]])
    assert near > far + 0.05


@pytest.mark.zoo
def test_magika_knows_python() -> None:
    """Of the files that are told apart by their names' ends: 9 of 10 and more."""
    labels = json.loads(zoo_fetch.read(zoo_fetch.MAGIKA, "magika/models/standard_v3_3/config.min.json"))
    names = zoo_fetch.members(zoo_fetch.SPEECH)
    python = [name for name in names if name.endswith(".py")]
    ends = np.stack([zoo_data.ends(content) for content in zoo_fetch.read_all(zoo_fetch.SPEECH, python).values()])
    with edgerun.load(cached("magika").onnx, "onnxruntime", edgerun.Options(threads=1)) as session:
        scores = session.run({"bytes": ends})["target_label"]
    said = scores.argmax(axis=1) == labels["target_labels_space"].index("python")
    assert len(python) > 50 and said.mean() > 0.9


@pytest.mark.zoo
def test_frame_by_frame_is_the_whole_sequence() -> None:
    chosen = cached("silero")
    feeds, labels = next(chosen.test(1))
    with edgerun.load(chosen.onnx, "onnxruntime", edgerun.Options(threads=1)) as session:
        whole = session.run(feeds)["speech_probs"].copy()
        steps = np.concatenate([o["speech_probs"].copy() for o in evaluate.streamed(session, feeds, chosen.state)])
    assert steps == pytest.approx(whole, abs=1e-4) and labels.shape == (937,)


@pytest.mark.zoo
def test_wordpiece_gives_berts_ids() -> None:
    archived(zoo_fetch.MINILM)
    # The ids of "Hello, wörld! unaffable" in BERT's published uncased vocabulary, each looked up by its line.
    row = zoo_text.encode(["Hello, wörld! unaffable"])
    expected = [101, 7592, 1010, 2088, 999, 14477, 20961, 3468, 102]
    assert row["input_ids"][0, :9].tolist() == expected
    assert row["attention_mask"].sum() == 9 and row["input_ids"].shape == (1, zoo_text.LENGTH)


@pytest.mark.zoo
def test_text_splits_do_not_meet() -> None:
    archived(zoo_fetch.SENTENCES)
    texts, labels = zoo_text.sentences()
    assert len(texts) == len(set(texts)) == len(labels) == 15_815
    assert zoo.TEXT_TEST.stop <= min(zoo.TEXT_TRAIN.start, zoo.TEXT_CALIBRATION.start)


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "examples", "accuracy", "tolerance"),
    [
        ("cifar_cnn", 2_000, 0.8014, 0.02),
        ("mobilenet_v2", 100, 0.59, 0.1),
        ("minilm", 500, 0.832, 0.04),
        ("silero", 937, 0.985, 0.005),
    ],
)
def test_fp32_is_as_good_as_it_was_trained(name: str, examples: int, accuracy: float, tolerance: float) -> None:
    chosen = cached(name)
    assert chosen.correct
    scores, labels = outputs(chosen, examples)
    assert abs(chosen.correct(scores, labels).mean() - accuracy) <= tolerance


@pytest.mark.zoo
@pytest.mark.parametrize("name", sorted(zoo.MODELS))
def test_calibration_fits_the_door(name: str) -> None:
    chosen = cached(name)
    with edgerun.load(chosen.onnx, "onnxruntime", edgerun.Options(threads=1)) as session:
        feeds = chosen.latency_feeds()
        assert all(array.shape == chosen.latency[name] for name, array in feeds.items())
        fed = {name: array[0] for name, array in feeds.items()} if chosen.state else feeds  # rows that are whole feeds
        results = session.run(fed)
    assert all(result.shape[0] == 1 and np.isfinite(result).all() for result in results.values())
