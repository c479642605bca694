"""What a run asks of the system, in which order, and what surrounds it: names, masks, networks, inputs that change."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import clean_environment, started
from support.faults import Outcome, Scene, is_complete, needs, run, small_command, touched, write_prose, wrong_message


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    return Scene(corpus, write_prose(corpus))


@pytest.fixture(scope="module")
def calls(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Names of calls on the output, and what they name, in order: writes where they ended, others where they began."""
    top = tmp_path_factory.mktemp("order")
    out, log = top / "out", top / "log"
    aim = [part for path in touched(scene.corpus, out) for part in ("-P", str(path))]
    traced = "trace=write,pwrite64,fsync,?rename,?renameat,renameat2,?unlink,unlinkat"
    # Lines of the journal are shown as long as they are, or nobody sees of which files they speak.
    shown = ["-s", "4096", "-e", traced, *aim]
    assert run(["strace", "-f", "-q", "-y", "--seccomp-bpf", "-o", str(log), *shown, *scene.command(out)]).code == 0
    found, begun = [], {}
    for pid, call, said, ended in re.findall(
        r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (pwrite64) resumed>.*)$", log.read_text(errors="replace"), re.MULTILINE
    ):
        if call == "pwrite64" and said.endswith("<unfinished ...>"):
            begun[pid] = said
        else:
            found.append((call or ended, (begun.pop(pid) if ended else said).replace(f"{out}", "OUT")))
    return found


@needs("strace")
class TestOrder:
    def position(self, calls: list[tuple[str, str]], call: str, pattern: str, *, last: bool = False) -> int:
        hits = [i for i, (name, said) in enumerate(calls) if name.startswith(call) and re.search(pattern, said)]
        assert hits, f"no {call} of {pattern}"
        return hits[-1] if last else hits[0]

    @pytest.mark.parametrize("name", ["train.bin", "val.bin", "manifest.json"])
    def test_a_file_is_on_the_disk_before_it_has_its_name(self, name: str, calls: list[tuple[str, str]]) -> None:
        written = self.position(calls, "write" if name == "manifest.json" else "pwrite64", rf"/{name}\.part>", last=True)
        synced = self.position(calls, "fsync", rf"/{name}\.part>", last=True)
        renamed = self.position(calls, "rename", rf'{name}\.part".*<OUT>, "{name}"')
        assert written < synced < renamed

    def test_the_manifest_gets_its_name_last_and_between_two_syncs_of_the_directory(self, calls: list[tuple[str, str]]) -> None:
        renames = [i for i, (call, _) in enumerate(calls) if call.startswith("rename")]
        manifest = self.position(calls, "rename", "manifest.json")
        assert manifest == renames[-1]
        synced = [i for i, (call, said) in enumerate(calls) if call == "fsync" and re.match(r"\d+<OUT>", said)]
        assert any(renames[-2] < i < manifest for i in synced)
        assert any(manifest < i for i in synced)

    def test_the_journal_is_taken_away_after_the_manifest_has_its_name(self, calls: list[tuple[str, str]]) -> None:
        assert self.position(calls, "unlink", "journal") > self.position(calls, "rename", "manifest.json")

    def test_bytes_are_on_the_disk_before_the_journal_speaks_of_them(self, calls: list[tuple[str, str]]) -> None:
        unsafe: dict[str, int] = {}
        """The first byte of each file that is not on the disk."""
        n_lines = n_spoken_of = 0
        for call, said in calls:
            name = re.search(r"OUT/\.tokmill/(\w+\.bin)\.part>", said)
            if call == "pwrite64" and name:
                # Workers write on while what is before is committed.
                (offset,) = re.findall(r", \d+, (\d+)(?:\)| <unfinished)", said)
                unsafe[name[1]] = min(int(offset), unsafe.get(name[1], int(offset)))
            elif call == "fsync" and name:
                unsafe.pop(name[1], None)
            elif call == "write" and "/journal>" in said:
                n_lines += 1
                spoken_of = re.findall(r'\\"(\w+\.bin)\\":\{\\"(?:begin\\":\d+,\\")?end\\":(\d+)', said)
                n_spoken_of += len(spoken_of)
                assert all(unsafe.get(name, int(end)) >= int(end) for name, end in spoken_of), said
        assert n_lines > 2
        assert n_spoken_of > 2


@needs("strace")
def test_no_socket_of_a_network_is_opened_for_local_inputs(scene: Scene, tmp_path: Path) -> None:
    strace = ["strace", "-f", "-q", "--seccomp-bpf", "-o", str(tmp_path / "log"), "-e", "trace=socket,connect"]
    assert run([*strace, *scene.command(tmp_path / "out")]).code == 0
    assert re.findall("AF_(?!UNIX|LOCAL)[A-Z0-9]+", (tmp_path / "log").read_text()) == []


@pytest.mark.root
@needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: a network namespace needs root")
def test_a_machine_without_network_is_enough(scene: Scene, tmp_path: Path) -> None:
    assert run(["unshare", "-n", *scene.command(tmp_path / "out")]).code == 0
    assert is_complete(tmp_path / "out", scene.expected)


NAMES = {
    "spaces": b"a  corpus with spaces",
    "newline": b"two\nlines",
    "emoji": "🤖 naïve 你好".encode(),
    "bytes": b"not \xff\xfe utf-8 \xe9",
    "percent": b"100%41%FF",
    "quotes": b'it\'s "quoted" $HOME `x` \\ *?[a]',
    "dash": b"-rf",
    "control": b"bell\x07 and \x1b[31mred",
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in {"newline", "bytes"} else pytest.mark.slow) for kind in NAMES]
)
def test_strange_names_of_inputs_and_outputs_work(kind: str, scene: Scene, tmp_path: Path) -> None:
    name = os.fsdecode(NAMES[kind])
    corpus, out = tmp_path / f"{name}.txt", tmp_path / name
    shutil.copy(scene.corpus, corpus)
    command = [part for part in small_command(corpus, out) if part != "--quiet"]
    done = subprocess.run(command, capture_output=True, check=False, env=clean_environment(LC_ALL="C"))
    assert done.returncode == 0, done.stderr
    assert is_complete(out, scene.expected)
    assert b"\x1b[31m" not in done.stdout + done.stderr
    again = run(small_command(corpus, out))
    assert (again.code, again.said) == (0, "")
    corpus.write_bytes(b"changed")
    outcome = run(small_command(corpus, out))
    assert outcome.code == 12
    assert wrong_message(outcome) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_the_mask_for_new_files_is_respected(mask: int, scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = run(["sh", "-c", f'umask {mask:04o}; exec "$@"', "sh", *scene.command(out)])
    assert outcome.code == 0
    assert {oct(p.stat().st_mode & 0o777) for p in out.iterdir()} == {oct(0o666 & ~mask)}
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask


CHANGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "shorter": lambda path: os.truncate(path, 100),
    "touched": lambda path: os.utime(path, (1, 1)),
    "replaced by another": lambda path: path.rename(path.with_name("old")) and path.write_bytes(b"another"),
}


@pytest.mark.parametrize("how", [pytest.param(how, marks=[] if how in {"gone", "longer"} else pytest.mark.slow) for how in CHANGES])
def test_an_input_that_changes_under_the_run_is_named_and_the_rest_is_kept(how: str, scene: Scene, tmp_path: Path) -> None:
    pipe, corpus, out = tmp_path / "pipe", tmp_path / "corpus.txt", tmp_path / "out"
    os.mkfifo(pipe)
    shutil.copy2(scene.corpus, corpus)
    text = b"what comes first" * 1000
    command = [*small_command(pipe, out), str(corpus)]
    with started(command) as process:
        # The pipe is read first: while it is open the corpus is planned and not yet read.
        with pipe.open("wb") as file:
            file.write(text)
            file.flush()
            CHANGES[how](corpus)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 12, said
    assert wrong_message(Outcome(12, said.decode())) == []
    assert b"corpus.txt" in said
    assert {p.name for p in out.iterdir()} == {".tokmill"}


def test_a_corpus_that_is_cut_while_it_is_read_is_never_taken_for_whole(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus.txt", tmp_path / "out"
    expected = write_prose(corpus, n_documents=3000)
    whole = corpus.read_bytes()
    stat = corpus.stat()
    with started(small_command(corpus, out)) as process:
        while not (out / ".tokmill" / "val.bin.part").exists() and process.poll() is None:
            threading.Event().wait(0.002)
        os.truncate(corpus, len(whole) // 2)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 12, said
    assert not (out / "train.bin").exists()
    corpus.write_bytes(whole)
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(small_command(corpus, out)).code == 0
    assert is_complete(out, expected)
