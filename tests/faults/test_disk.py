"""Disks that are full, small, read-only or gone; limits on files and descriptors."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import clean_environment, started, wait_for_commit
from support.faults import Outcome, Scene, is_complete, mounted, needs, run, write_prose, wrong_message

root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounts need root"),
    needs("mount", "umount", "mkfs.ext4", "setpriv"),
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    return Scene(corpus, write_prose(corpus, n_documents=400, size=2000), options=("--force",))


@contextmanager
def ext4(image: Path, *options: str) -> Iterator[Path]:
    """A new small file system on a loop device."""
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", *options, str(image)], check=True, capture_output=True)
    with mounted("-o", "loop", str(image)) as top:
        yield top


def of_workers(scene: Scene, n_workers: int) -> Scene:
    return replace(scene, options=(*scene.options, "--threads", f"{n_workers}", "--memory", "3GiB"))


def refused(outcome: Outcome, code: int, what: str) -> None:
    assert outcome.code == code, outcome.said
    assert what in outcome.said
    assert wrong_message(outcome) == []


class TestWithMounts:
    pytestmark = root

    @pytest.mark.parametrize("n_workers", [1, 2, 4])
    def test_a_full_disk_is_exit_14_and_more_room_resumes(self, n_workers: int, scene: Scene) -> None:
        scene = of_workers(scene, n_workers)
        with mounted("-t", "tmpfs", "-o", "size=200k", "tmpfs") as top:
            out = top / "out"
            refused(run(scene.command(out)), 14, "the disk is full")
            assert {p.name for p in out.iterdir()} == {".tokmill"}
            committed = (out / ".tokmill" / "journal").read_bytes()
            assert committed.count(b"\n") > 1
            refused(run(scene.command(out)), 14, "the disk is full")
            subprocess.run(["mount", "-o", "remount,size=20m", str(top)], check=True)
            assert (out / ".tokmill" / "journal").read_bytes().startswith(committed)
            assert run(scene.command(out)).code == 0
            assert is_complete(out, scene.expected)

    def test_a_disk_that_will_be_full_is_foreseen(self, scene: Scene) -> None:
        with mounted("-t", "tmpfs", "-o", "size=200k", "tmpfs") as top:
            command = [part for part in scene.command(top / "out") if part != "--force"]
            refused(run(command), 14, "will not fit")
            assert list(top.iterdir()) == []

    def test_every_size_of_a_disk_is_one_message_and_resumes(self, scene: Scene) -> None:
        total = sum(map(len, scene.expected))
        for size in range(4096 * 3, total + 200_000, total // 6):
            with mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs") as top:
                outcome = run(scene.command(top / "out"))
                if outcome.code != 0:
                    refused(outcome, 14, "the disk is full")
                    subprocess.run(["mount", "-o", "remount,size=20m", str(top)], check=True)
                    assert run(scene.command(top / "out")).code == 0
                assert is_complete(top / "out", scene.expected)

    def test_any_number_of_free_inodes_that_is_too_small_is_exit_14(self, scene: Scene, tmp_path: Path) -> None:
        with ext4(tmp_path / "image", "-N", "32") as top:
            free = os.statvfs(top).f_favail
            assert free > 8
            for left in range(7):
                for i in range(free - left):
                    (top / f"taken{i}").touch()
                outcome = run(scene.command(top / "out"))
                if outcome.code != 0:
                    refused(outcome, 14, "the disk is full")
                    assert left < 7
                for path in top.glob("taken*"):
                    path.unlink()
                assert run(scene.command(top / "out")).code == 0
                assert is_complete(top / "out", scene.expected)
                shutil.rmtree(top / "out")
                assert outcome.code == 14 or left == 6

    def test_a_read_only_disk_is_one_message(self, scene: Scene) -> None:
        with mounted("-t", "tmpfs", "-o", "ro", "tmpfs") as top:
            refused(run(scene.command(top / "out")), 1, "Read-only file system")

    def test_a_disk_that_turns_read_only_in_the_middle_resumes_when_it_is_mended(self, tmp_path: Path) -> None:
        large = Scene(tmp_path / "large.txt", write_prose(tmp_path / "large.txt", n_documents=3000), ("--force",))
        with ext4(tmp_path / "image", "-N", "64") as top:
            out = top / "out"
            with started(large.command(out)) as process:
                wait_for_commit(process, out)
                # As the kernel does when it meets an error: files that are open can be written no longer, either.
                subprocess.run(["mount", "-o", "remount,abort", str(top)], check=False, capture_output=True)
                _, said = process.communicate(timeout=60)
            assert process.returncode == 1, said
            refused(Outcome(1, said.decode()), 1, "cannot write the output")
        with mounted("-o", "loop", str(tmp_path / "image")) as top:
            assert run(large.command(top / "out")).code == 0
            assert is_complete(top / "out", large.expected)

    def test_a_directory_or_corpus_without_permission_is_one_message(self, scene: Scene, tmp_path: Path) -> None:
        shutil.copy(scene.corpus, tmp_path / "corpus.txt")
        own = Scene(tmp_path / "corpus.txt", scene.expected)
        (tmp_path / "closed").mkdir(mode=0o555)
        # Root as everybody else is: what the permissions say holds.
        mortal = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
        refused(run([*mortal, *own.command(tmp_path / "closed" / "out")]), 1, "Permission denied")
        (tmp_path / "corpus.txt").chmod(0)
        refused(run([*mortal, *own.command(tmp_path / "out")]), 1, "cannot be read")
        (tmp_path / "corpus.txt").chmod(0o644)
        assert run([*mortal, *own.command(tmp_path / "out")]).code == 0
        assert is_complete(tmp_path / "out", scene.expected)


@pytest.mark.parametrize("n_workers", [1, 2, 4])
@needs("prlimit")
def test_a_limit_on_file_size_is_exit_14_and_resumes(n_workers: int, scene: Scene, tmp_path: Path) -> None:
    scene = of_workers(scene, n_workers)
    refused(
        run(["env", "PYTHONDONTWRITEBYTECODE=1", "prlimit", "--fsize=100000", *scene.command(tmp_path / "out")]),
        14,
        "a file may not become larger",
    )
    assert run(scene.command(tmp_path / "out")).code == 0
    assert is_complete(tmp_path / "out", scene.expected)


@pytest.mark.slow
@needs("prlimit")
def test_too_few_descriptors_is_one_message_at_any_number(scene: Scene, tmp_path: Path) -> None:
    codes = {}
    for n_open in (6, 8, 9, 10, 11, 12, 14, 16, 20):
        out = tmp_path / f"out{n_open}"
        outcome = run(["prlimit", f"--nofile={n_open}", *scene.command(out)])
        codes[n_open] = outcome.code
        if outcome.code != 0:
            assert outcome.code == 1, outcome.said
            assert outcome.said.count("tokmill: error:") == 1, outcome.said
            assert "Traceback" not in outcome.said
            assert run(scene.command(out)).code == 0
        assert is_complete(out, scene.expected)
    assert codes[20] == 0
    assert 1 in codes.values()


def test_a_device_is_not_an_output(scene: Scene) -> None:
    for device in ("/dev/full", "/dev/null"):
        outcome = run(scene.command(Path(device)))
        assert outcome.code == 2
        assert wrong_message(outcome) == []


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_full_standard_output_is_one_message_and_the_output_is_complete(
    options: Sequence[str], scene: Scene, tmp_path: Path
) -> None:
    command = [part for part in scene.command(tmp_path / "out") if part != "--quiet"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*command, *options], stdout=full, stderr=subprocess.PIPE, check=False, env=clean_environment(), timeout=60
        )
    said = done.stderr.decode()
    assert done.returncode == 14, said
    assert said.count("tokmill: error:") == 1
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert is_complete(tmp_path / "out", scene.expected)


def test_an_output_that_is_removed_in_the_middle_is_an_error(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpus = tmp_path / "large.txt"
    large = Scene(corpus, write_prose(corpus, n_documents=3000))
    with started(large.command(out)) as process:
        wait_for_commit(process, out)
        shutil.rmtree(out, ignore_errors=True)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 11, said
    assert wrong_message(Outcome(11, said.decode())) == []
    assert not (out / "train.bin").exists()
    assert run(large.command(out)).code == 0
    assert is_complete(out, large.expected)


def test_a_working_directory_that_is_gone_is_one_message(scene: Scene, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [*scene.command(Path("out"))]
    done = subprocess.run(
        ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone), *command],
        capture_output=True,
        check=False,
        env=clean_environment(),
        timeout=60,
    )
    assert done.returncode in (1, 2), done.stderr
    assert wrong_message(Outcome(1, done.stderr.decode())) == []
