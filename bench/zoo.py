"""Real trained models with real data: `python -m bench.zoo` fetches, converts and lays them into the cache.

Per model the cache gets `models/NAME/model.onnx` (fp32), `calibration.npz`, and `test.npz` with `labels` where that is
small. Every test set also streams from the archives: `--data bench.zoo:MOBILENET_V2.stream`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bench import answers, converter_rows, zoo_audio, zoo_build, zoo_data, zoo_fetch, zoo_images, zoo_text
from bench.zoo_data import Batches, Feeds
from edgerun.errors import unknown
from edgerun.files import replacing

Correct = Callable[[np.ndarray, np.ndarray], np.ndarray]
CALIBRATION_IMAGES = 200


@dataclass(frozen=True)
class ZooModel:
    """One model and its data.

    `build(folder)` writes `model.onnx`; `calibrate(folder)` gives the feeds, first axis samples; `test(batch)` streams
    (feeds, labels) in a fixed order; `correct(outputs, labels)` says per example whether the answer is right, None
    where there are no labels; `agree(reference, outputs)` gives per example how far two models agree, 0 to 1.
    `latency` are the input shapes at batch 1, and `timed` is False where another model times the same graph; `batch`
    is what the evaluation runs; `stored` says that the test set is small enough to be kept as a file, `transformer`
    what peers with such a switch are told. A model with `state` (inputs to the outputs that are fed back to them) has
    no batch: calibration rows are whole feeds, and it is evaluated frame by frame on its own state.
    """

    name: str
    metric: str
    latency: Mapping[str, tuple[int, ...]]
    build: Callable[[Path], None]
    calibrate: Callable[[], Feeds]
    test: Callable[[int], Batches]
    correct: Correct | None = None
    agree: Callable[[np.ndarray, np.ndarray], np.ndarray] = answers.same_top1
    timed: bool = True
    batch: int = 20
    stored: bool = False
    transformer: bool = False
    state: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the cache keeps it."""
        return zoo_fetch.cache() / "models" / self.name

    @property
    def onnx(self) -> Path:
        """The fp32 model."""
        return self.folder / "model.onnx"

    @property
    def calibration(self) -> Path:
        """The calibration feeds as uncompressed .npz, first axis samples."""
        return self.folder / "calibration.npz"

    @property
    def test_file(self) -> Path:
        """The test feeds and `labels` as uncompressed .npz, where they are stored."""
        return self.folder / "test.npz"

    def stream(self) -> Iterator[Feeds]:
        """The test set as `module:callable` data: feeds with their `labels`, in batches."""
        for feeds, labels in self.test(self.batch):
            yield {**feeds, "labels": labels}

    @property
    def ready(self) -> bool:
        """Whether the cache has it."""
        return self.onnx.exists() and self.calibration.exists() and (self.test_file.exists() or not self.stored)

    def latency_feeds(self) -> Feeds:
        """One example of the calibration data at batch 1 in the shapes that latency is told for."""
        with np.load(self.calibration) as data:
            first = {name: data[name][:1] for name in self.latency}
        return {name: _fitted(first[name], shape) for name, shape in self.latency.items()}


def _fitted(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    # Sentences are repeated up to the length; pictures have it already.
    return np.ascontiguousarray(np.resize(array, shape)) if array.shape != shape else array


def top1(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the largest score [n, classes] is the label's [n]."""
    hits: np.ndarray = outputs.argmax(axis=1) == labels
    return hits


def cifar_top1(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same for ImageNet scores [n, 1000] under the class map."""
    return top1(zoo_images.cifar_scores(outputs), labels)


def _same(other: Callable[[], ZooModel]) -> Callable[[Path], None]:
    def build_it(folder: Path) -> None:
        build(other())
        shutil.copyfile(other().onnx, folder / "model.onnx")

    return build_it


def _build_minilm(folder: Path) -> None:
    zoo_build.minilm(folder)
    zoo_text.fit_head(folder, zoo_data.sentence_batches(TEXT_TRAIN, 50))


TEXT_TEST, TEXT_CALIBRATION, TEXT_TRAIN = slice(0, 2043), slice(2043, 2243), slice(2043, 8043)
STATE = {"h": "hn", "c": "cn"}
PHOTO_CALIBRATION, PHOTO_TEST = slice(0, 50), slice(50, 100)
IMAGE, IMAGE_NHWC = (1, 3, 224, 224), (1, 224, 224, 3)

CIFAR_CNN = ZooModel(
    "cifar_cnn",
    "top-1, all 10,000 CIFAR-10 test pictures",
    {"image": (1, 32, 32, 3)},
    zoo_build.cifar_cnn,
    lambda: zoo_data.calibration(zoo_data.images("train", 500, zoo_data.raw, 500, upscale=False)),
    lambda batch: zoo_data.images("test", 10_000, zoo_data.raw, batch, upscale=False),
    top1,
    batch=50,
    stored=True,
)
MOBILENET_V2 = ZooModel(
    "mobilenet_v2",
    "top-1, 2,000 upscaled CIFAR-10 test pictures, classes by map",
    {"image": IMAGE},
    zoo_build.mobilenet_v2,
    lambda: zoo_data.calibration(zoo_data.images("train", CALIBRATION_IMAGES, zoo_images.mean_std, 50)),
    lambda batch: zoo_data.images("test", 2_000, zoo_images.mean_std, batch),
    cifar_top1,
)
MOBILENET_V2_PHOTOS = ZooModel(
    "mobilenet_v2_photos",
    "agreement with fp32, 50 photos",
    {"image": IMAGE},
    _same(lambda: MOBILENET_V2),
    lambda: zoo_data.calibration(zoo_data.photo_batches(PHOTO_CALIBRATION, 50, zoo_images.mean_std)),
    lambda batch: zoo_data.photo_batches(PHOTO_TEST, batch, zoo_images.mean_std),
    timed=False,
)
RESNET50 = ZooModel(
    "resnet50",
    "top-1, 1,000 upscaled CIFAR-10 test pictures, classes by map",
    {"image": IMAGE_NHWC},
    zoo_build.resnet50,
    lambda: zoo_data.calibration(zoo_data.images("train", CALIBRATION_IMAGES, zoo_images.caffe, 50)),
    lambda batch: zoo_data.images("test", 1_000, zoo_images.caffe, batch),
    cifar_top1,
)
RESNET50_PHOTOS = ZooModel(
    "resnet50_photos",
    "agreement with fp32, 50 photos",
    {"image": IMAGE_NHWC},
    _same(lambda: RESNET50),
    lambda: zoo_data.calibration(zoo_data.photo_batches(PHOTO_CALIBRATION, 50, zoo_images.caffe)),
    lambda batch: zoo_data.photo_batches(PHOTO_TEST, batch, zoo_images.caffe),
    timed=False,
)
PPOCR_DET = ZooModel(
    "ppocr_det",
    "agreement with fp32: IoU of the text masks (threshold .3), mean of 50 photos",
    {"x": (1, 3, 512, 512)},
    zoo_build.ppocr_det,
    lambda: zoo_data.calibration(zoo_data.page_batches(PHOTO_CALIBRATION, 50)),
    lambda batch: zoo_data.page_batches(PHOTO_TEST, batch),
    agree=answers.mask_iou,
    batch=5,
)
SILERO = ZooModel(
    "silero",
    "speech or not, 937 frames of one conversation, streamed frame by frame",
    {"input": (1, 1, 576), "h": (1, *zoo_data.STATE), "c": (1, *zoo_data.STATE)},
    zoo_build.silero,
    lambda: zoo_data.speech_blocks(model("silero").onnx, STATE),
    lambda batch: zoo_data.recordings((zoo_audio.SAMPLE,)),
    answers.speech,
    answers.same_speech,
    state=STATE,
)
SILERO_MEETINGS = replace(
    SILERO,
    name="silero_meetings",
    metric="speech or not, 3,748 frames of four meetings, streamed frame by frame",
    build=_same(lambda: SILERO),
    test=lambda batch: zoo_data.recordings(zoo_audio.MEETINGS),
    timed=False,
)
MINILM = ZooModel(
    "minilm",
    "sentiment accuracy, 2,043 sentences, fixed logistic regression",
    {"input_ids": (1, 128), "attention_mask": (1, 128), "token_type_ids": (1, 128)},
    _build_minilm,
    lambda: zoo_data.calibration(zoo_data.sentence_batches(TEXT_CALIBRATION, 200)),
    lambda batch: zoo_data.sentence_batches(TEXT_TEST, batch),
    zoo_text.sentiment,
    batch=50,
    stored=True,
    transformer=True,
)
NUDENET = ZooModel(
    "nudenet",
    "agreement with fp32: IoU of the boxes found (score .25), mean of 50 photos",
    {"images": (1, 3, 320, 320)},
    zoo_build.nudenet,
    lambda: zoo_data.calibration(
        zoo_data.photo_batches(PHOTO_CALIBRATION, 50, zoo_data.unit, "images", side=320, size=320)
    ),
    lambda batch: zoo_data.photo_batches(PHOTO_TEST, batch, zoo_data.unit, "images", side=320, size=320),
    agree=answers.boxes,
    batch=5,
)
MAGIKA = ZooModel(
    "magika",
    "agreement with fp32: type of 199 files",
    {"bytes": (1, 2048)},
    zoo_build.magika,
    lambda: {"bytes": zoo_data.file_ends(slice(0, 100))},
    lambda batch: zoo_data.unlabelled("bytes", zoo_data.file_ends(slice(100, 299)), batch),
)
SPEAKER = ZooModel(
    "speaker",
    "agreement with fp32: cosine of the embeddings of 225 utterances, speakers that calibration has not heard",
    {"mels": (1, 160, 40)},
    zoo_build.speaker,
    lambda: {"mels": zoo_audio.voices(zoo_audio.TRAIN, 160)},
    lambda batch: zoo_data.unlabelled("mels", zoo_audio.voices((*zoo_audio.MEETINGS, zoo_audio.SAMPLE), 64), batch),
    agree=answers.cosine,
)
MODELS = {
    model.name: model
    for model in (
        CIFAR_CNN,
        MOBILENET_V2,
        MOBILENET_V2_PHOTOS,
        RESNET50,
        RESNET50_PHOTOS,
        MINILM,
        PPOCR_DET,
        SILERO,
        SILERO_MEETINGS,
        NUDENET,
        MAGIKA,
        SPEAKER,
    )
}


def model(name: str) -> ZooModel:
    """The zoo's model of that name. Raises EdgerunError with the nearest name."""
    if name not in MODELS:
        raise unknown("zoo model", name, MODELS)
    return MODELS[name]


def build(chosen: ZooModel) -> None:
    """Bring the model and its calibration data into the cache; what is there already is kept."""
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if not chosen.onnx.exists():
        chosen.build(chosen.folder)
    if not chosen.calibration.exists():
        with replacing(chosen.calibration) as path:
            np.savez(path, **chosen.calibrate())  # type: ignore[arg-type]
    if chosen.stored and not chosen.test_file.exists():
        with replacing(chosen.test_file) as path:
            np.savez(path, **zoo_data.joined(chosen.stream()))  # type: ignore[arg-type]


def main(names: list[str]) -> None:
    """Build the named models, or all, and say where they are."""
    for name in names or list(MODELS):
        chosen = model(name)
        build(chosen)
        print(f"{name}: {chosen.onnx}  {chosen.calibration}")
    if not names:
        for row in converter_rows.ROWS.values():
            print(f"for the tests: {zoo_fetch.fetch(row.archive)}")


if __name__ == "__main__":
    main(sys.argv[1:])
