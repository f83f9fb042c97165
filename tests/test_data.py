"""Every kind of source gives the same feeds, in bounded memory, and refuses what cannot be fed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgerun.data import open_data
from edgerun.errors import EdgerunError
from edgerun.preprocess import Preprocessing
from edgerun.runtime import TensorSpec

X = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
IDS = np.arange(20, dtype=np.int64).reshape(10, 2)
LABELS = np.arange(10) % 4
ONE = (TensorSpec("x", "float32", ("n", 3)),)
TWO = (*ONE, TensorSpec("ids", "int64", ("n", 2)))
SAVERS: tuple[Callable[..., None], ...] = (np.savez, np.savez_compressed)
CONTRACT = Preprocessing(size=(2, 2), scale=1 / 255, layout="NHWC")
PICTURE = (TensorSpec("image", "float32", ("n", 2, 2, 3)),)


def joined(data: Any, name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in data])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, array in (("x", X), ("ids", IDS)):
        (tmp_path / "parts" / name).mkdir(parents=True)
        for start in range(0, 10, 4):  # two batches of four, one of two
            np.save(tmp_path / "parts" / name / f"{start}.npy", array[start : start + 4])
    np.save(tmp_path / "parts" / "labels.npy", LABELS)
    return tmp_path / "parts"


@pytest.mark.parametrize("save", SAVERS)
def test_every_kind_gives_the_same_feeds_labels_and_digest(
    tmp_path: Path, folder: Path, save: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "d.npz", ids=IDS, x=X, labels=LABELS)
    (tmp_path / "my_feeds.py").write_text(
        "import numpy as np\ndef rows():\n    d = np.load('d.npz')\n"
        "    for x, ids, y in zip(d['x'], d['ids'], d['labels']): yield {'x': x, 'ids': ids, 'y': y}\n"
    )
    monkeypatch.chdir(tmp_path)
    sources: list[Any] = [
        tmp_path / "d.npz",
        str(tmp_path / "d.npz"),
        folder,
        {"x": X, "ids": IDS, "y": LABELS[:, None]},
    ]
    sources += [
        "my_feeds:rows",
        [{"x": X[:7], "ids": IDS[:7], "y": LABELS[:7]}, {"x": X[7:], "ids": IDS[7:], "y": LABELS[7:]}],
    ]
    opened = [open_data(source, TWO, batch=batch) for source, batch in zip(sources, (3, 4, 10, 32, 1, 2), strict=True)]
    for data in opened:
        assert np.array_equal(joined(data), X) and np.array_equal(joined(data, "ids"), IDS)
        assert data.labels is not None and np.array_equal(data.labels, LABELS)
        assert data.samples == 10 and len(data) == len(list(data)) and not data.notes and not data.random
    assert len({data.digest for data in opened}) == 1
    assert open_data({"x": X[::-1], "ids": IDS}, TWO).digest != opened[0].digest


@given(st.integers(1, 12), st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 30))
def test_batches_are_the_rows_in_order(batch: int, chunks: list[int], limit: int) -> None:
    total = sum(chunks)
    rows = np.arange(3 * total, dtype=np.float32).reshape(total, 3)
    parts = np.split(rows, np.cumsum(chunks)[:-1])
    data = open_data([part for part in parts if len(part)], ONE, batch=batch, limit=limit)
    if total == 0:
        with pytest.raises(EdgerunError, match="empty"):
            list(data)
        return
    feeds = list(data)
    assert np.array_equal(joined(feeds), rows[:limit])
    assert [len(feed["x"]) for feed in feeds[:-1]] == [batch] * (len(feeds) - 1)
    assert len(data) == len(feeds) and data.samples == min(limit, total)


def test_an_array_under_another_name_feeds_the_only_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", picture=X, y=LABELS)
    np.save(tmp_path / "d.npy", X)
    for source in (tmp_path / "d.npz", tmp_path / "d.npy", X, lambda: X, {"arr_0": X}):
        assert np.array_equal(joined(open_data(source, ONE, batch=4)), X)


def test_columns_first_and_big_endian_files_give_the_same_values(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "f.npz", x=np.asfortranarray(X))
    np.savez(tmp_path / "b.npz", x=X.astype(">f4"))
    for name in ("f.npz", "b.npz"):
        feeds = list(open_data(tmp_path / name, ONE, batch=4))
        assert (
            np.array_equal(joined(feeds), X) and feeds[0]["x"].dtype == np.float32 and feeds[0]["x"].flags.c_contiguous
        )


def test_bfloat16_is_served_hashed_and_searched_for_nan() -> None:
    narrow = X.astype(ml_dtypes.bfloat16)
    spec = (TensorSpec("x", "bfloat16", ("n", 3)),)
    assert np.array_equal(joined(open_data(narrow, spec, batch=4)), narrow)
    assert open_data(narrow, spec, batch=4).digest == open_data(list(narrow), spec).digest
    assert open_data(narrow[::-1], spec).digest != open_data(narrow, spec).digest
    narrow[7, 1] = np.nan
    with pytest.raises(EdgerunError, match="NaN") as refused:
        list(open_data(narrow, spec))
    assert refused.value.got == "at sample 7"


@pytest.mark.parametrize("save", SAVERS)
def test_memory_holds_a_batch_not_the_file(tmp_path: Path, save: Any) -> None:
    rows = np.zeros((4000, 4096), np.float32)  # 64 MB
    save(tmp_path / "d.npz", x=rows)
    del rows
    data = open_data(tmp_path / "d.npz", (TensorSpec("x", "float32", ("n", 4096)),), batch=16)
    tracemalloc.start()
    count = sum(len(feed["x"]) for feed in data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4000 and peak < 3_000_000


def test_a_fixed_batch_leaves_the_remainder_out_and_says_so() -> None:
    fixed = (TensorSpec("x", "float32", (4, 3)),)
    for source in ({"x": X, "labels": LABELS}, lambda: [{"x": X, "labels": LABELS}]):
        data = open_data(source, fixed, batch=7)
        assert [feed["x"].shape for feed in data] == [(4, 3)] * 2
        assert data.samples == 8 and len(data) == 2
        assert data.labels is not None and np.array_equal(data.labels, LABELS[:8])
        assert data.notes == ("the last 2 of 10 samples are left out: the model's batch is fixed at 4",)
    with pytest.raises(EdgerunError, match=r"too few samples[\s\S]*got: 3"):
        open_data(X[:3], fixed)


def test_inputs_without_a_common_batch_axis_are_fed_whole() -> None:
    inputs = (TensorSpec("x", "float32", (1, 3)), TensorSpec("rate", "int64", ()))
    feeds = list(open_data({"x": X[:, None], "rate": np.full(10, 16000)}, inputs))
    assert len(feeds) == 10 and feeds[2]["x"].shape == (1, 3) and feeds[2]["rate"].shape == ()
    assert np.array_equal(feeds[2]["x"], X[2:3])
    assert len(list(open_data({"x": X[:1], "rate": 16000}, inputs))) == 1


def test_samples_of_changing_length_never_share_a_batch() -> None:
    inputs = (TensorSpec("t", "float32", ("n", "time")),)
    lengths = [5, 5, 7, 7, 7, 5]
    feeds = list(open_data([np.zeros(n, np.float32) for n in lengths], inputs, batch=2))
    assert [feed["t"].shape for feed in feeds] == [(2, 5), (2, 7), (1, 7), (1, 5)]


def test_random_only_by_name_seeded_and_marked() -> None:
    a, b = (open_data("random:7", TWO, batch=3) for _ in range(2))
    assert a.random and a.samples == 7 and "noise" in a.notes[0] and a.labels is None
    assert np.array_equal(joined(a), joined(b)) and a.digest == b.digest
    assert set(joined(a, "ids").ravel()) <= {0, 1}
    with pytest.raises(EdgerunError, match="every dimension"):
        open_data("random", (TensorSpec("x", "float32", ("n", 3, "height")),))


def test_what_a_callable_raises_is_told_with_its_line() -> None:
    def broken() -> Iterator[Any]:
        yield {"x": np.zeros((1, 3), np.float32), "ids": np.zeros((1, 2), np.int64)}
        raise OSError("no disk")

    with pytest.raises(EdgerunError, match=r"broken failed[\s\S]*OSError: no disk, at .*test_data\.py:\d+"):
        list(open_data(broken, TWO))


def test_a_callable_is_called_again_for_every_pass_and_its_length_is_known_after_one() -> None:
    calls = []

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        calls.append(1)
        yield {"x": X}

    data = open_data(feeds, ONE, batch=4)
    with pytest.raises(TypeError, match="unknown"):
        len(data)
    assert np.array_equal(joined(data), X) and np.array_equal(joined(data), X)
    assert len(calls) == 2 and len(data) == 3
    assert data.digest and len(calls) == 2  # hashed on the way


def test_a_pass_that_is_not_hashed_gives_the_same() -> None:
    data = open_data({"x": X, "ids": IDS}, TWO, batch=3, limit=7)
    again = list(data.again())
    told = data.digest_so_far
    for feeds, others in zip(data, again, strict=True):
        assert feeds.keys() == others.keys() and all(np.array_equal(feeds[name], others[name]) for name in feeds)
    digest = data.digest
    assert told != digest and sum(len(feeds["x"]) for feeds in data.again()) == 7
    assert data.digest_so_far == data.digest == digest


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index, name in enumerate(("dog/b.png", "cat/a.png", "dog/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (index * 10, 0, 255)).save(tmp_path / name)
    return tmp_path


def test_pictures_go_through_the_contract_and_subfolders_are_classes(pictures: Path) -> None:
    data = open_data(pictures, PICTURE, preprocessing=CONTRACT.to_json())
    assert joined(data, "image")[:, 0, 0, 0] * 255 == pytest.approx([10, 0, 20])  # cat/a, dog/b, dog/c
    assert data.labels is not None and data.labels.tolist() == [0, 1, 1]
    for old, new in (("cat", "285"), ("dog", "7")):
        (pictures / old).rename(pictures / new)
    numbered = open_data(pictures, PICTURE, preprocessing=CONTRACT)
    assert numbered.labels is not None and numbered.labels.tolist() == [285, 7, 7]
    np.save(pictures / "labels.npy", np.array([3, 2, 1]))
    given_labels = open_data(pictures, PICTURE, preprocessing=CONTRACT).labels
    assert given_labels is not None and given_labels.tolist() == [3, 2, 1]


def test_a_broken_picture_is_named(pictures: Path) -> None:
    (pictures / "dog" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(EdgerunError, match=r"cannot read .*dog/b\.png"):
        list(open_data(pictures, PICTURE, preprocessing=CONTRACT))


def test_pictures_without_contract_are_refused(pictures: Path) -> None:
    with pytest.raises(EdgerunError, match="needs a preprocessing contract"):
        open_data(pictures, PICTURE)


def _nan(at: int) -> np.ndarray:
    rows = X.copy()
    rows[at, 1] = np.nan
    return rows


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"x": X}, r"input 'ids' is missing[\s\S]*got: x[\s\S]*wanted: x, ids"),
        ({"x": X, "ids": IDS[:9]}, r"differ in their number of samples"),
        ([{"x": X, "ids": IDS}, {"x": X, "ids": IDS[:9]}], r"item 1: the inputs differ in their number of samples"),
        (
            {"x": X.astype(np.float64), "ids": IDS},
            r"'x' has the wrong dtype[\s\S]*float64 at sample 0[\s\S]*wanted: float32",
        ),
        ([{"x": X, "ids": IDS}, {"x": X[:, :2], "ids": IDS}], r"'x' has the wrong shape[\s\S]*\[10, 2\] at sample 10"),
        ({"x": _nan(8), "ids": IDS}, r"'x' holds NaN or infinity[\s\S]*at sample 8"),
        ({"x": np.full_like(X, np.inf), "ids": IDS}, r"NaN or infinity[\s\S]*at sample 0"),
        ({"x": X[:0], "ids": IDS[:0]}, "the data is empty"),
        (lambda: [], "the data is empty"),
        (lambda: 3, r"gave no data[\s\S]*got: int"),
        (lambda: [(X,)], r"item 0: not a feed[\s\S]*got: a tuple of 1"),
        (iter([X]), "more than once"),
        (3, "more than once"),
        ({"x": X, "ids": IDS, "labels": LABELS[:3]}, r"labels and samples differ in number[\s\S]*got: 3"),
        ({"x": X, "ids": IDS, "labels": np.eye(10)}, r"labels are not class numbers[\s\S]*argmax"),
        ("no/such/place", r"does not exist[\s\S]*random"),
        ("no_such_module:feeds", "cannot import no_such_module:feeds"),
        ("math:no_such_name", "cannot import math:no_such_name"),
        ("math:pi", "not callable"),
    ],
)
def test_bad_data_is_one_clear_error(source: Any, message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        data = open_data(source, TWO, batch=4)
        list(data)
        assert data.labels is None


@pytest.mark.parametrize(("batch", "limit"), [(0, None), (-1, None), (None, 0)])
def test_batch_and_limit_count_samples(batch: int | None, limit: int | None) -> None:
    with pytest.raises(EdgerunError, match="counts samples"):
        open_data(X, ONE, batch=batch, limit=limit)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(EdgerunError, match="neither"):
        open_data(tmp_path / "nothing", ONE)
    (folder / "ids" / "8.npy").unlink()
    with pytest.raises(EdgerunError, match=r"number of files[\s\S]*'x': 3, 'ids': 2"):
        open_data(folder, TWO)
    with pytest.raises(EdgerunError, match=r"input 'mask' is missing[\s\S]*got: ids, x"):
        open_data(folder, (*TWO, TensorSpec("mask", "bool", ("n",))))
    (tmp_path / "d.txt").write_text("1")
    with pytest.raises(EdgerunError, match="unknown kind"):
        open_data(tmp_path / "d.txt", ONE)
