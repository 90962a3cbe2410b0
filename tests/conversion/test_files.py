"""Files of other frameworks: read as data, whatever is in them."""

import argparse
import pickle
import zipfile
import zlib

import numpy as np
import pytest
import torch

import graphopt
from graphopt import conversion
from graphopt.conversion import _mindspore_file, _torch_file
from graphopt.conversion._pickled import Unknown, UnpickleError, read_pickle
from tests.helpers.folders import ROOT

pytestmark = pytest.mark.any_runtime

SESSION = graphopt.Session(
    graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter("w", (2,))])),
    parameters={"w": np.zeros(2, np.float32)},
)
RECORDED = ROOT / "tests" / "reference" / "conversion" / "mindspore_centered_20.ckpt"


def test_what_torch_writes_is_read(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    value = {
        "tensors": [base, base.T, base[1:3, ::2], torch.tensor(3), base.half(), base.double()],
        "integers": [base.long(), base.int(), base.short(), base.to(torch.int8), base > 3],
        "other": {"text": "ä", "none": None, "numbers": (1, -(2**40), 2**100, 0.5, True, False)},
        "empty": [torch.zeros(0, 3), {}, [], ()],
        "parameter": torch.nn.Parameter(base),
        "arguments": argparse.Namespace(a=1),
        3: base,
    }
    for protocol in (2, 4):
        torch.save(value, tmp_path / "x.pt", pickle_protocol=protocol)
        found = conversion.read_torch(tmp_path / "x.pt")
        for key in ("tensors", "integers"):
            for expected, got in zip(value[key], found[key], strict=True):
                assert got.dtype == expected.numpy().dtype
                np.testing.assert_array_equal(got, expected.numpy())
        assert found["other"] == value["other"]
        assert found["empty"][0].shape == (0, 3)
        assert found["empty"][1:] == [{}, [], ()]
        np.testing.assert_array_equal(found["parameter"], base)
        assert found["arguments"] == Unknown("argparse.Namespace")
        np.testing.assert_array_equal(found[3], base)
    torch.save(base.bfloat16(), tmp_path / "x.pt")
    np.testing.assert_array_equal(conversion.read_torch(tmp_path / "x.pt").astype("f"), base)


def test_what_is_written_is_what_torch_reads(tmp_path):
    value = {
        "list": [1, -1, 127, 128, -129, 2**31, 2**70, 0, 0.25, "ä", None, True, False],
        "tuple": (1, (2, ()), []),
        3: {"w": np.arange(6, dtype="f").reshape(2, 3), "s": np.array(2.5, "f")},
        "kinds": [np.arange(3).astype(t) for t in ("i8", "i4", "i2", "i1", "u1", "?", "f2", "f8")],
    }
    _torch_file.write(tmp_path / "x.pt", value)
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert (found["list"], found["tuple"]) == (value["list"], value["tuple"])
    for name in ("w", "s"):
        np.testing.assert_array_equal(found[3][name].numpy(), value[3][name])
        assert found[3][name].shape == value[3][name].shape
    for expected, got in zip(value["kinds"], found["kinds"], strict=True):
        assert got.numpy().dtype == expected.dtype
        np.testing.assert_array_equal(got.numpy(), expected)
    assert torch.load(tmp_path / "x.pt", weights_only=True, mmap=True)["list"] == value["list"]
    with pytest.raises(TypeError, match="got object, expected plain data"):
        _torch_file.write(tmp_path / "y.pt", {"x": object()})
    assert not (tmp_path / "y.pt").exists()


class Touches:
    """What a pickle would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"__import__('pathlib').Path({str(self.path)!r}).touch()",)


def test_nothing_in_a_pickle_is_run(tmp_path):
    touched = tmp_path / "touched"
    data = pickle.dumps({"x": Touches(touched), "lr": 1.0})
    assert read_pickle(data, lambda name, _: Unknown(name), Unknown) == {
        "x": Unknown("builtins.exec"),
        "lr": 1.0,
    }
    torch.save({"x": Touches(touched), "w": torch.ones(2)}, tmp_path / "x.pt")
    assert conversion.read_torch(tmp_path / "x.pt")["x"] == Unknown("__builtin__.exec")
    assert not touched.exists()
    pickle.loads(data)  # which would
    assert touched.exists()


# A dict whose key is a tuple of tuples, which takes 2**60 operations to hash.
LAUGHS = b"\x80\x04})" + b"".join(b"\x94h%c\x86" % step for step in range(60)) + b"K\x01s."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is damaged"),
        (b"\x80\x02}", "is damaged"),
        (b"\x80\x02u.", "is damaged"),
        (b"\x80\x02h\x00.", "is damaged"),
        (b"\x80\x02\x85.", "is damaged"),
        (b"\x80\x02(K\x01K\x02.", "is damaged"),
        (b"\x80\x02K\x01K\x02R.", "called that has no name"),
        (b"\x80\x02K\x01K\x02a.", "a int is filled"),
        (LAUGHS, "a key is a tuple"),
        (b"i__main__\nX\n.", "the instruction INST"),
        (b"c__main__\nX\n(o.", "the instruction OBJ"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
    ],
)
def test_a_damaged_pickle_is_refused(data, message):
    with pytest.raises(UnpickleError, match=message):
        read_pickle(data, lambda name, _: Unknown(name), Unknown)


def test_files_that_are_none_are_refused_by_name(tmp_path):
    for name, data in (
        ("x.pt", b"PK\x03\x04" + bytes(50)),
        ("x.ckpt", b"\x0a\xff\xff\xff\xff\x0f"),
        ("x.ckpt", b"\x0a\x05\x0a\x03abc"),
        ("x.ckpt", b""),
        ("x.ckpt", b"text"),
        ("x.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ValueError, match=name):
            conversion.load_state(SESSION, path)
    (tmp_path / "x.pt").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"x\.pt' is not a file of torch\.save"):
        conversion.read_torch(tmp_path / "x.pt")
    with pytest.raises(FileNotFoundError, match="nothing"):
        conversion.read_torch(tmp_path / "nothing")


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    torch.save(torch.zeros(1).expand(2**40), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"a tensor has .*TiB, and takes more memory"):
        conversion.read_torch(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y/data.pkl", bytes(2**20))
    with pytest.raises(ValueError, match="is compressed"):
        conversion.read_torch(tmp_path / "y.pt")


def named_or_read(read, path):
    """Whether a file is read, or refused by an error that names it."""
    try:
        read(path)
    except ValueError as error:
        return str(path) in str(error)
    return True


def test_flipped_bits_are_found_or_are_no_crash(tmp_path):
    torch.save({"w": torch.arange(300, dtype=torch.float32), "n": [1, 2, "x"]}, tmp_path / "x.pt")
    for path, read in (
        (tmp_path / "x.pt", _torch_file.read_torch),
        (RECORDED, _mindspore_file.read),
    ):
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        target = tmp_path / "flipped"
        for _ in range(400):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
            target.write_bytes(
                damaged[: rng.integers(1, len(whole)) if rng.random() < 0.3 else None]
            )
            assert named_or_read(read, target)


def test_the_checksum_of_mindspore_is_compared(tmp_path):
    """``crc_num`` and ten bytes, as ``save_checkpoint(..., crc_check=True)`` appends them."""
    data, path = RECORDED.read_bytes(), tmp_path / "x.ckpt"
    end = b"crc_num" + zlib.crc32(data).to_bytes(10, "big")
    path.write_bytes(data + end)
    assert _mindspore_file.read(path).keys() == _mindspore_file.read(RECORDED).keys()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) + end)
    with pytest.raises(ValueError, match="its CRC-32 is another one"):
        _mindspore_file.read(path)


def test_scalars_of_older_releases_and_text(tmp_path):
    path = tmp_path / "x.ckpt"
    text = b"\x12\x03str\x1a\x04x\0\0\0"
    scalar = b"\x08\x00\x12\x07Float32\x1a\x04\x00\x00\x80\x3f"
    packed = b"\x0a\x02\x01\x02\x12\x04Int8\x1a\x02\x05\x06"
    values = [(b"t", text), (b"s", scalar), (b"p", packed)]
    messages = [b"\x0a" + bytes([len(n)]) + n + b"\x12" + bytes([len(v)]) + v for n, v in values]
    path.write_bytes(b"".join(b"\x0a" + bytes([len(m)]) + m for m in messages))
    found = _mindspore_file.read(path)
    assert found.keys() == {"s", "p"}
    assert (found["s"].shape, float(found["s"])) == ((), 1.0)
    np.testing.assert_array_equal(found["p"], np.array([[5, 6]], np.int8))
