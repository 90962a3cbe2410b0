"""Samples of each kind: the same rows from files of all of them, and mistakes by name."""

import sys

import numpy as np
import pytest

from graphopt.feeds import Feed
from graphopt.samples import PictureOptions, SampleOptions, open_samples

pytestmark = pytest.mark.any_runtime

COUNT = 10
FEEDS = [Feed("x", ("N", 2, 3), "float32"), Feed("labels", ("N",), "int64")]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(COUNT, 2, 3)).astype(np.float32)
LABELS = RNG.integers(0, 5, COUNT)
ROWS = np.array([7, 0, 9, 3, 3])


def npz(folder, names=("x", "labels")):
    path = folder / "samples.npz"
    np.savez(path, **dict(zip(names, (X, LABELS), strict=True)))
    return path


def npy(folder, names=("x", "labels")):
    for name, array in zip(names, (X, LABELS), strict=True):
        np.save(folder / f"{name}.npy", array)
    return folder


def parts(folder, names=("x", "labels")):
    (folder / names[0]).mkdir()
    for begin, end in ((0, 4), (4, 4), (4, 10)):
        np.save(folder / names[0] / f"part{begin}-{end}.npy", X[begin:end])
    np.save(folder / f"{names[1]}.npy", LABELS)
    return folder


def test_parts_come_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "x").mkdir()
    for row in range(COUNT + 1):
        np.save(tmp_path / "x" / f"part-{row}.npy", np.full((1, 2), row))
    np.save(tmp_path / "labels.npy", np.arange(COUNT + 1))
    batch = open_samples(str(tmp_path), FEEDS).take(np.arange(COUNT + 1))
    np.testing.assert_array_equal(batch["x"][:, 0], batch["labels"])


def columns(names):
    return {
        names[0]: X.astype(np.float64).tolist(),
        names[1]: LABELS.tolist(),
        "unused": ["-"] * 10,
    }


def parquet(folder, names=("x", "labels")):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    files.write_table(pa.table(columns(names)), folder / "samples.parquet", row_group_size=3)
    return folder / "samples.parquet"


def parquet_folder(folder, names=("x", "labels")):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    table = pa.table(columns(names))
    files.write_table(table.slice(0, 4), folder / "0.parquet")
    files.write_table(table.slice(4), folder / "1.parquet")
    return folder


def hugging_face(folder, names=("x", "labels")):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict(columns(names)).save_to_disk(folder)
    return folder


KINDS = [npz, npy, parts, parquet, parquet_folder, hugging_face]


@pytest.mark.quick
@pytest.mark.filterwarnings("ignore")  # what datasets pickles
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows(kind, tmp_path):
    for folder, names in (("same", ("x", "labels")), ("renamed", ("pixels", "digit"))):
        (tmp_path / folder).mkdir()
        data = str(kind(tmp_path / folder, names))
        columns = {} if folder == "same" else {"x": "pixels", "labels": "digit"}
        samples = open_samples(data, FEEDS, SampleOptions(columns))
        assert (len(samples), sorted(samples.names)) == (COUNT, ["labels", "x"])
        batch = samples.take(ROWS)
        assert (batch["x"].dtype, batch["labels"].dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(batch["x"], X[ROWS])
        np.testing.assert_array_equal(batch["labels"], LABELS[ROWS])
        assert samples.digest() == open_samples(data, FEEDS, SampleOptions(columns)).digest()


@pytest.mark.parametrize("kind", [npz, npy, parts, parquet])
def test_other_values_have_another_digest(kind, tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = open_samples(str(kind(tmp_path / "first")), FEEDS).digest()
    changed = X.copy()
    changed[8, 1, 2] += 1
    monkeypatch.setitem(globals(), "X", changed)
    assert open_samples(str(kind(tmp_path / "second")), FEEDS).digest() != first


@pytest.mark.exhaustive
def test_a_large_array_is_known_by_some_rows_and_not_read_whole(tmp_path):
    shape = (1 << 20, 1 << 10)  # 4 GiB, of which a sparse file has nothing
    big = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    big[-1] = 3
    del big
    np.save(tmp_path / "labels.npy", np.zeros(shape[0], np.int64))
    feeds = [Feed("x", ("N", shape[1]), "float32"), FEEDS[1]]
    samples = open_samples(str(tmp_path), feeds)
    first = samples.digest()
    np.testing.assert_array_equal(samples.take(np.array([5, -1 + shape[0]]))["x"][:, 0], [0, 3])
    big = np.lib.format.open_memmap(tmp_path / "x.npy", "r+")
    big[-1, 0] = 4
    del big
    assert open_samples(str(tmp_path), feeds).digest() != first


IMAGES = [Feed("x", ("N", 3, 4, 5), "float32"), Feed("labels", ("N",), "int64")]


@pytest.fixture
def pictures(tmp_path):
    """Folders of pictures of two classes, in two formats and modes."""
    Image = pytest.importorskip("PIL.Image")  # noqa: N806 - its name
    made = {}
    for name, count in (("cat", 2), ("ant", 3)):
        (tmp_path / name).mkdir()
        for index in range(count):
            array = RNG.integers(0, 256, (4, 5, 3), np.uint8)
            path = tmp_path / name / f"{index}.{'png' if index else 'bmp'}"
            Image.fromarray(array).save(path)
            made[path] = array
    (tmp_path / "ant" / "notes.txt").write_text("none")
    (tmp_path / ".cache").mkdir()
    return tmp_path, [made[path] for path in sorted(made)]


def test_pictures_in_class_folders(pictures):
    folder, arrays = pictures
    samples = open_samples(str(folder), IMAGES)
    assert (samples.classes, len(samples)) == (["ant", "cat"], 5)
    rows = np.array([4, 0])
    batch = samples.take(rows)
    np.testing.assert_array_equal(batch["labels"], [1, 0])
    wanted = np.stack([arrays[row] for row in rows]).astype(np.float32) / 255
    np.testing.assert_array_equal(batch["x"], wanted.transpose(0, 3, 1, 2))

    options = PictureOptions(mean=(0.5, 0.25, 0.0), std=(0.5,))
    normalized = open_samples(str(folder), IMAGES, SampleOptions(pictures=options))
    expected = (wanted - np.float32([0.5, 0.25, 0])) / np.float32(0.5)
    np.testing.assert_array_equal(normalized.take(rows)["x"], expected.transpose(0, 3, 1, 2))
    assert normalized.digest() != samples.digest()

    last = [Feed("x", ("N", 4, 5, 3), "uint8"), IMAGES[1]]
    batch = open_samples(str(folder), last).take(rows)
    np.testing.assert_array_equal(batch["x"], np.stack([arrays[row] for row in rows]))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pictures_of_more_than_8_bits_are_refused(dtype, tmp_path):
    Image = pytest.importorskip("PIL.Image")  # noqa: N806 - its name
    (tmp_path / "ant").mkdir()
    Image.fromarray(np.full((4, 5), 300, dtype)).save(tmp_path / "ant" / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep\.tiff': its values have more than 8 bits"):
        open_samples(str(tmp_path), IMAGES).take(np.array([0]))


def test_pictures_get_the_size_and_the_channels_of_the_graph(pictures):
    folder, arrays = pictures
    feeds = [Feed("x", ("N", 1, 8, 10), "float32"), IMAGES[1]]
    batch = open_samples(str(folder), feeds).take(np.arange(5))
    assert batch["x"].shape == (5, 1, 8, 10)
    grey = np.stack(arrays) @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(batch["x"].mean(axis=(1, 2, 3)), grey.mean(axis=(1, 2)), atol=0.03)
    feeds = [Feed("x", ("N", 3, "H", "W"), "float32"), IMAGES[1]]
    sized = SampleOptions(pictures=PictureOptions(size=(6, 7)))
    assert open_samples(str(folder), feeds, sized).take(np.arange(2))["x"].shape == (2, 3, 6, 7)
    assert open_samples(str(folder), feeds).take(np.arange(2))["x"].shape == (2, 3, 4, 5)


@pytest.mark.filterwarnings("ignore")
def test_pictures_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    arrays = RNG.integers(0, 256, (6, 4, 5, 3), np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [Image.fromarray(a) for a in arrays], "label": [0, 1, 0, 1, 1, 0]}
    data = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "d")
    options = SampleOptions({"x": "image", "labels": "label"})
    samples = open_samples(f"hf:{tmp_path / 'd'}:train", IMAGES, options)
    batch = samples.take(np.array([3, 0]))
    wanted = arrays[[3, 0]].astype(np.float32).transpose(0, 3, 1, 2) / 255
    np.testing.assert_array_equal(batch["x"], wanted)
    np.testing.assert_array_equal(batch["labels"], [1, 0])
    with pytest.raises(ValueError, match="expected one of its splits, train, test: hf:"):
        open_samples(str(tmp_path / "d"), IMAGES, options)


def test_mistakes_of_arrays(tmp_path):
    folder = parts(tmp_path)
    with pytest.raises(ValueError, match="has no array 'pixels'; it has labels, x; say which one"):
        open_samples(str(folder), FEEDS, SampleOptions({"x": "pixels"}))
    with pytest.raises(ValueError, match="--feed: got 'y', expected one of x, labels"):
        open_samples(str(folder), FEEDS, SampleOptions({"y": "x"}))
    np.save(folder / "x" / "part4-4.npy", X[:2, :1])
    with pytest.raises(ValueError, match=r"part4-4.npy' is float32\[2, 1, 3\], but .*part0-4.npy'"):
        open_samples(str(folder), FEEDS)
    (folder / "x" / "part4-4.npy").write_bytes(b"\x93NUMPY\x01\x00nonsense")
    with pytest.raises(ValueError, match=r"cannot read '.*part4-4.npy', it is damaged"):
        open_samples(str(folder), FEEDS)
    (folder / "x" / "part4-4.npy").unlink()
    np.save(folder / "labels.npy", LABELS[1:])
    with pytest.raises(ValueError, match=r"the same number of samples, got .'labels': 9, 'x': 10"):
        open_samples(str(folder), FEEDS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no samples: expected <name>\.npy, \*\.parquet,"):
        open_samples(str(tmp_path / "empty"), IMAGES)
    with pytest.raises(FileNotFoundError, match="there is no file 'absent'"):
        open_samples("absent", FEEDS)


def test_mistakes_of_pictures(pictures):
    folder, _ = pictures
    with pytest.raises(ValueError, match=r"for graphs that take pictures .* 'x' float32\['N', 2,"):
        open_samples(str(folder), FEEDS)
    with pytest.raises(ValueError, match="feed 'x' has 2 channels, expected 1, 3 or 4"):
        open_samples(str(folder), [Feed("x", ("N", 2, 5, 5), "float32"), IMAGES[1]])
    for options, message in (
        (PictureOptions(size=(9, 9)), r"--image-size: got \(9, 9\), but feed 'x' takes 4 by 5"),
        (PictureOptions(mean=(1, 2)), "--image-mean: got 2 numbers for 3 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            open_samples(str(folder), IMAGES, SampleOptions(pictures=options))
    (folder / "ant" / "0.bmp").write_bytes(b"BM nonsense")
    samples = open_samples(str(folder), IMAGES)
    with pytest.raises(ValueError, match=r"cannot read '.*ant.0\.bmp': "):
        samples.take(np.array([0]))
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    Image.new("RGB", (7, 7)).save(folder / "ant" / "0.bmp")
    feeds = [Feed("x", ("N", 3, "H", "W"), "float32"), IMAGES[1]]
    with pytest.raises(
        ValueError, match=r"0\.bmp' is \[3, 7, 7\], but .*--image-size HEIGHTxWIDTH"
    ):
        open_samples(str(folder), feeds).take(np.array([1, 0]))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"pixels": [1.0]}, "has no column 'x'; it has pixels, labels; say which one is 'x' with"),
        ({"x": [None]}, "column 'x' has 1 values that are missing"),
        ({"x": [[1.0, None]]}, "column 'x' has 1 values that are missing"),
        ({"x": [["a"]]}, r"column 'x' is list<\w+: string>, expected numbers or lists"),
        ({"x": [[1.0], [1.0, 2.0]]}, "column 'x' has lists of several lengths, 1 and others"),
        (
            {"labels": [0.5], "x": [1.0]},
            "column 'labels' has float64, but feed 'labels' takes int64",
        ),
    ],
)
def test_mistakes_of_tables(column, message, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    rows = len(next(iter(column.values())))
    table = pa.table({**column} if "labels" in column else {**column, "labels": [1] * rows})
    files.write_table(table, tmp_path / "t.parquet")
    with pytest.raises((TypeError, ValueError), match=message):
        open_samples(str(tmp_path / "t.parquet"), FEEDS)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(ValueError, match=r"cannot read '.*t\.parquet': "):
        open_samples(str(tmp_path / "t.parquet"), FEEDS)


@pytest.mark.parametrize(
    ("package", "extra", "data"),
    [
        ("PIL", "images", "folder"),
        ("pyarrow", "parquet", "t.parquet"),
        ("datasets", "datasets", "hf:x"),
    ],
)
def test_a_package_that_is_missing_is_named(package, extra, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "class").mkdir(parents=True)
    (tmp_path / "t.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'graphopt\[{extra}\]'"):
        open_samples(data, IMAGES)
