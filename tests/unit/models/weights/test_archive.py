"""A folder of weights as one file and back: the same bytes each time, and nothing harmful in either direction."""

import hashlib
import io
import os
import tarfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from killed import kill_everywhere
from trained_versions import is_whole, trained

from models.weights.archive import BadArchive, pack, unpack
from models.weights.model_files import file_sha256


def tar_of(file: Path, *members: tarfile.TarInfo) -> str:
    """An archive as someone else might write it -> its SHA-256."""
    with tarfile.open(file, "w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return file_sha256(file)


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, link
    return made


def refused(tmp_path: Path, told: str, *members: tarfile.TarInfo, **bounds: int) -> None:
    """Unpacking fails and leaves nothing behind."""
    digest = tar_of(tmp_path / "bad.tar", *members)
    (tmp_path / "in").mkdir()
    with pytest.raises(BadArchive, match=told):
        unpack(tmp_path / "bad.tar", tmp_path / "in" / "out", digest, **bounds)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bad.tar", "in"]


def test_what_is_packed_comes_back(tmp_path):
    trained(tmp_path / "run", "weights", accepted=True)
    long = "deep/" * 40 + "n" * 200 + " ä.txt"
    (tmp_path / "run" / long).parent.mkdir(parents=True)
    (tmp_path / "run" / long).write_bytes(os.urandom(100_000))
    (tmp_path / "run" / "empty").touch()
    digest = pack(tmp_path / "run", tmp_path / "it.tar")
    assert digest == file_sha256(tmp_path / "it.tar")
    unpack(tmp_path / "it.tar", tmp_path / "new" / "back", digest)
    assert is_whole(tmp_path / "new" / "back")
    files = {path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {
        path.relative_to(tmp_path / "new/back") for path in (tmp_path / "new/back").rglob("*") if path.is_file()
    } == files
    assert all((tmp_path / "run" / name).read_bytes() == (tmp_path / "new/back" / name).read_bytes() for name in files)
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "it.tar", tmp_path / "new" / "back", digest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.tar", "new", "run"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["back"]


def test_the_same_files_give_the_same_bytes(tmp_path):
    """Whatever their times and rights, and in whatever order they were written."""
    names = ["b/c", "a", "b.txt", "ä"]
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            path.chmod(0o600 if folder == "one" else 0o755)
            os.utime(path, (1, 1) if folder == "one" else (10**9, 10**9))
    assert pack(tmp_path / "one", tmp_path / "1.tar") == pack(tmp_path / "two", tmp_path / "2.tar")


def test_an_archive_with_another_digest_is_not_parsed(tmp_path):
    trained(tmp_path / "run")
    digest = pack(tmp_path / "run", tmp_path / "it.tar")
    whole = (tmp_path / "it.tar").read_bytes()
    for wrong in (whole[:-512], whole[:1000], b"", b"x" * 10_000, bytes([whole[0] ^ 1]) + whole[1:]):
        (tmp_path / "it.tar").write_bytes(wrong)
        with pytest.raises(BadArchive, match=r"it\.tar is no archive of weights: its SHA-256 is"):
            unpack(tmp_path / "it.tar", tmp_path / "out", digest)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../out", "a/../../out", "a/./b", "./a", "..", "a//b", "a\\b", "c:\\x", "..\\x", "a/.."]
)
def test_names_that_point_elsewhere_are_refused(tmp_path, name):
    refused(tmp_path, "points out of its folder", member(name))


@pytest.mark.parametrize("name", ["training_args.bin", "a/MODEL.PT", "x.pth", "optimizer.ckpt"])
def test_pickles_are_neither_packed_nor_unpacked(tmp_path, name):
    trained(tmp_path / "elsewhere" / "run")
    (tmp_path / "elsewhere" / "run" / "a").mkdir()
    (tmp_path / "elsewhere" / "run" / name).touch()
    with pytest.raises(BadArchive, match="is a pickle"):
        pack(tmp_path / "elsewhere" / "run", tmp_path / "it.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    (tmp_path / "elsewhere").rename(tmp_path.with_name(f"{tmp_path.name}-elsewhere"))
    refused(tmp_path, "is a pickle", member(name))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"z"],
)
def test_only_plain_files_are_unpacked(tmp_path, kind):
    odd = member("odd", kind, link="model.safetensors")
    refused(tmp_path, "'odd' is no plain file", member("model.safetensors"), odd)


def test_links_and_pipes_are_not_packed(tmp_path):
    folder = tmp_path / "run"
    for make in (
        lambda path: path.symlink_to("/etc"),
        lambda path: path.symlink_to("nowhere"),
        os.mkfifo,
    ):
        trained(folder)
        make(folder / "odd")
        with pytest.raises(BadArchive, match="odd is no plain file"):
            pack(folder, tmp_path / "it.tar")
        assert not (tmp_path / "it.tar").exists()
        folder.rename(tmp_path / str(len(list(tmp_path.iterdir()))))


def test_too_much_is_refused(tmp_path):
    for number, (told, members, bounds) in enumerate(
        (
            ("more than 2 files", [member(str(n)) for n in range(3)], {"max_files": 2}),
            ("or 1000 bytes", [member("a", size=600), member("b", size=401)], {"max_bytes": 1000}),
            ("too long", [member("n" * 256)], {}),
            ("too long", [member("deep/" * 300 + "n")], {}),
            ("it is empty", [], {}),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        refused(folder, told, *members, **bounds)


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "a/b/c")])
def test_a_name_may_occur_once(tmp_path, names):
    refused(tmp_path, "is there twice", *(member(name) for name in names))


def test_a_sparse_file_does_not_fill_the_disk(tmp_path):
    odd = member("hole")
    odd.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(2**50), "GNU.sparse.map": "0,0"}
    with tarfile.open(tmp_path / "bad.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(odd)
    with pytest.raises(BadArchive):
        unpack(tmp_path / "bad.tar", tmp_path / "out", file_sha256(tmp_path / "bad.tar"))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"]


@given(data=st.binary(max_size=3000), cut=st.integers(0, 4000))
def test_garbage_of_the_right_digest_is_refused_or_harmless(tmp_path_factory, data, cut):
    """Bytes of any kind, and a real archive that is cut and written over."""
    folder = tmp_path_factory.mktemp("garbage")
    tar_of(folder / "it.tar", member("model.safetensors", size=1000), member("config.json", size=10))
    file = (folder / "it.tar").read_bytes()
    (folder / "it.tar").write_bytes(file[:cut] + data + file[cut + len(data) :] if cut % 2 else file[:cut] + data)
    with suppress(BadArchive):
        unpack(folder / "it.tar", folder / "in" / "out", file_sha256(folder / "it.tar"))
    assert {path.name for path in folder.iterdir()} <= {"it.tar", "in"}
    assert {path.name for path in folder.glob("in/*")} <= {"out"}


@pytest.mark.parametrize("packing", [True, False], ids=["pack", "unpack"])
def test_a_killed_process_leaves_all_or_nothing(tmp_path, packing):
    digests = []

    def prepare(folder: Path) -> None:
        trained(folder / "run")
        digests[:] = [pack(folder / "run", folder / "there.tar")]

    def change(folder: Path) -> None:
        if packing:
            pack(folder / "run", folder / "it.tar")
        elif not (folder / "out").exists():
            unpack(folder / "there.tar", folder / "out", digests[0])

    def check(folder: Path, done: bool) -> None:
        made = folder / ("it.tar" if packing else "out")
        assert made.exists() or not done
        if made.exists():
            assert file_sha256(made) == digests[0] if packing else is_whole(made)

    kill_everywhere(tmp_path, prepare, change, check)


def test_large_files_are_copied_in_pieces(tmp_path):
    """Packing and unpacking a file of 64 MB takes less than 8 MB."""
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "model.safetensors").open("wb") as file:
        file.truncate(64 * 2**20)
    tracemalloc.start()
    try:
        digest = pack(tmp_path / "run", tmp_path / "it.tar")
        unpack(tmp_path / "it.tar", tmp_path / "out", digest)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert (
        hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).digest()
        == hashlib.sha256(bytes(64 * 2**20)).digest()
    )
