"""A report says what an output is, needs nothing but itself, and nothing of the corpus acts in it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.commands import called, clean_environment
from support.corpora import write_corpus
from support.html_page import Page
from support.outputs import collect_data, give_history, write_output

import tokmill
from tokmill.cli.app import run
from tokmill.core.errors import DamageError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.text import printable, printable_line
from tokmill.reports.data import FrequentToken, load_data
from tokmill.reports.removals import removal_tables
from tokmill.reports.reporting import make_page

pytestmark = pytest.mark.usefixtures("workers_in_process")

HOSTILE = [
    "<script>alert('document')</script>",
    "</pre></td></table><img src=http://example.org/x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "\x1b[2J\u202etxt.exe\u2066\u200b\x00",
    "&lt;script&gt; &amp;",
]


def commands_of(directory: Path) -> str:
    return re.sub(r" \\\n +", " ", Page(make_page(collect_data(directory))).text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete output of hostile documents in files with hostile names, with records that were skipped."""
    top = tmp_path_factory.mktemp("report")
    corpus = top / "<script>alert(1)<b>\u202e&amp;.jsonl"
    lines = [json.dumps({"text": HOSTILE[i % len(HOSTILE)] * (i % 7 + 1)}) for i in range(400)]
    corpus.write_text("\n".join([*lines, '{"text": 5}', '{"text": ""}', "not JSON"]) + "\n")
    plain = write_corpus(top / "plain.txt", ["A plain document. " * (i % 50) for i in range(300)])
    tokmill.tokenize([corpus, plain], top / "out", val_fraction=0.3, on_error="skip", memory="512MiB", threads=1)
    give_history(top / "out")
    return top / "out"


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    tokmill.report(made)
    return (made / "report.html").read_text()


def test_the_report_has_the_numbers_of_the_manifest(made: Path, page: str) -> None:
    counts = load_manifest(made).counts
    text = Page(page).text
    n_tokens = counts.tokens_train + counts.tokens_val
    for said in (
        f"{counts.documents:,}",
        f"{n_tokens:,}",
        f"train {counts.documents_train:,}, validation {counts.documents_val:,}",
        f"{counts.bytes_text / n_tokens:.3f}",
        "of a budget of 512 MiB for all processes",
        "encoded again by the reference tokenizer",
        "1 invalid_json",
        "1 not_a_string",
    ):
        assert said in text, said


def test_every_part_of_the_report_is_there(page: str) -> None:
    heads = re.findall(r"<h[23]>(.*?)</h[23]>", page)
    assert heads == [
        "How the run went", "Speed", "Memory", "The documents", "Length of documents", "Bytes per token of documents",
        "Bytes per token along the corpus", "How the training side begins", "Files", "Inputs",
        "Skipped records", "Most frequent tokens",
        "Configuration, and how to make it again",
    ]  # fmt: skip
    assert "What this report lacks" not in page


def test_where_it_is_when_it_was_made_and_how_it_begins_are_told(made: Path, page: str) -> None:
    text = Page(page).text
    day = datetime.fromtimestamp((made / "manifest.json").stat().st_mtime, UTC)
    assert f"{made}, completed {day:%Y-%m-%d %H:%M} UTC" in text
    with tokmill.open(made) as data:
        assert printable(data.decode(data.document("train", 0)))[:40].split("\n")[0] in text


def test_tokens_that_cannot_be_seen_have_names(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"one\r\ntwo\t\0<|endoftext|>" * 30)
    tokmill.tokenize(tmp_path / "c.txt", tmp_path / "o", val_fraction=0, threads=1)
    names = {token.text: token.name for token in collect_data(tmp_path / "o").frequent}
    assert names["\n"] == "line end"
    assert "Windows" in names["\\x0d"]
    assert names["one"] == ""


def test_many_inputs_are_told_by_kind_first(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.{'txt' if i % 4 else 'md'}").write_text("some text")
    tokmill.tokenize(tmp_path / "*.*", tmp_path / "o", val_fraction=0, threads=1)
    page = make_page(collect_data(tmp_path / "o"))
    assert re.findall(r"<td>(\.\w+)</td>\s*<td>text</td>\s*<td class=\"number\">(\d+)", page) == [(".txt", "30"), (".md", "10")]
    assert "<details><summary>Every input</summary>" in page
    assert "bytes per token</th>" not in page[page.index("Every input") :]


def test_elements_are_closed_as_they_are_opened(page: str) -> None:
    assert Page(page).wrong == []


def test_nothing_of_the_corpus_acts_in_the_page(page: str) -> None:
    found = Page(page)
    assert "<script>alert(1)<b>\\u202e&amp;.jsonl" in found.text
    names = Counter(tag for tag, _ in found.elements)
    assert names.keys() & {"script", "img", "iframe", "object", "embed", "form", "b", "base"} == set()
    assert [name for _, attributes in found.elements for name in attributes if name.startswith("on")] == []
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", page)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_token_is_text(made: Path, text: str) -> None:
    data = collect_data(made)
    data.frequent = [FrequentToken(1, 5, text, is_special=False)]
    data.missing = [text]
    found = Page(make_page(data))
    assert found.wrong == []
    assert {tag for tag, _ in found.elements} & {"script", "img"} == set()
    visible = printable_line(text)
    assert visible in found.text
    assert visible.replace(" ", "\u2423") in found.text


def test_the_page_refers_to_nothing_outside(page: str) -> None:
    found = Page(page)
    for tag, attributes in found.elements:
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "action", "data", "srcset", "poster"}:
                assert (value or "").startswith(("#", "data:")), (tag, name, value)
            assert "url(" not in (value or "").replace("url(#", ""), (tag, name, value)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for tag, a in found.elements if tag == "meta" and "content" in a and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_chart_is_valid_svg_that_says_what_it_shows(page: str) -> None:
    charts = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(charts) == 5
    for chart in charts:
        root = ET.fromstring(chart)
        title, description = root[0], root[1]
        assert (root.get("role"), bool(title.text), bool(description.text)) == ("img", True, True)
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert root.findall(".//{http://www.w3.org/2000/svg}path")
        assert re.findall(r"#[0-9a-fA-F]{6}", chart) == [], "a colour of its own, which would not suit the dark"


def test_ids_are_unique_in_the_page(page: str) -> None:
    ids = Counter(a["id"] for _, a in Page(page).elements if "id" in a)
    assert [name for name, n in ids.items() if n > 1] == []
    refers = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert refers <= set(ids)


def test_the_same_output_gives_the_same_page(made: Path, page: str, tmp_path: Path) -> None:
    tokmill.report(made, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_the_command_in_the_report_makes_the_same_output(made: Path, page: str, tmp_path: Path) -> None:
    typed = Page(page).text
    command = typed[typed.index("tokmill tokenize") : typed.index("Everything that decides")]
    assert "\\u202e" in command
    command = command.replace("\\u202e", "\u202e").replace(str(made), str(tmp_path / "again"))
    done = called(*shlex.split(command.replace("\\\n", " "))[1:], "-q")
    assert done.stderr == ""
    assert load_manifest(tmp_path / "again").fingerprint == load_manifest(made).fingerprint


@pytest.mark.parametrize("format_", ["llmc", "megatron", "datatrove", "olmo", "litdata", "mds"])
def test_every_format_has_the_same_documents(made: Path, format_: str, tmp_path: Path) -> None:
    outcome = tokmill.convert(made, tmp_path / "o", format=format_)
    before, after = collect_data(made), collect_data(tmp_path / "o")
    assert outcome.tokens_train == after.sides["train"].n_tokens
    for side in ("train", "val"):
        one, other = before.sides[side], after.sides[side]
        assert (one.n_documents, one.longest, one.n_empty) == (other.n_documents, other.longest, other.n_empty)
        assert one.lengths.tolist() == other.lengths.tolist()
        assert one.densities.tolist() == other.densities.tolist()
    assert after.missing == []
    assert f"tokmill convert --format {format_} {made}" in commands_of(tmp_path / "o")


def test_merged_and_appended_outputs_say_how_they_were_made(made: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "more.txt", ["One more. " * 9] * 40)
    tokmill.tokenize(corpus, tmp_path / "o", val_fraction=0.3, threads=1)
    tokmill.merge([made, tmp_path / "o"], tmp_path / "m")
    assert f"tokmill merge {made} {tmp_path / 'o'}" in commands_of(tmp_path / "m")
    more = write_corpus(tmp_path / "again.txt", ["Again. " * 9] * 40)
    tokmill.tokenize(more, tmp_path / "o", val_fraction=0.3, threads=1, append=True)
    data = collect_data(tmp_path / "o")
    assert data.history is not None
    assert [attempt.does for attempt in data.history.attempts] == ["copy", "tokenize"]
    assert "more.txt" in commands_of(tmp_path / "o")


def test_of_an_append_no_speed_is_told_that_the_whole_output_did_not_have(made: Path, page: str, tmp_path: Path) -> None:
    corpus, more = tmp_path / "a.txt", tmp_path / "more.txt"
    corpus.write_text("some text " * 500)
    more.write_text("more text " * 5)
    tokmill.tokenize(corpus, tmp_path / "o", threads=1)
    tokmill.tokenize(more, tmp_path / "o", threads=1, append=True)
    told = Page(make_page(collect_data(tmp_path / "o"))).text
    assert "of the append alone" in told
    assert "MB/s" not in told.split("audit")[0]
    assert "of the append alone" not in Page(page).text


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [("a.data", {"input_format": "jsonl"}, "--input-format jsonl"), ("a.jsonl", {"val_fraction": 0.123456789}, "0.123456789")],
)
def test_the_command_has_what_the_name_does_not_say_and_every_digit(
    tmp_path: Path, name: str, options: dict[str, Any], wanted: str
) -> None:
    (tmp_path / name).write_text('{"text": "some text"}\n' * 9)
    tokmill.tokenize(tmp_path / name, tmp_path / "o", threads=1, **options)
    command = commands_of(tmp_path / "o")
    assert wanted in command
    assert ("--input-format" in command) == ("input_format" in options)


def test_the_command_of_a_conversion_makes_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text<|endoftext|>and more")
    tokmill.tokenize(tmp_path / "a.txt", tmp_path / "o", threads=1)
    tokmill.convert(tmp_path / "o", tmp_path / "c", format="llmc", to_eot="after")
    assert "--to-eot after --to-dtype uint16" in commands_of(tmp_path / "c")


def test_documents_whose_bytes_were_changed_are_counted(page: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"one \xff\xfe<|endoftext|>two<|endoftext|>three \xff")
    tokmill.tokenize(tmp_path / "c.txt", tmp_path / "o", encoding_errors="replace", threads=1)
    told = Page(make_page(collect_data(tmp_path / "o"))).text
    assert "not UTF-82documents, 3 bytes: changed by --encoding-errors replace" in told
    assert "not UTF-8" not in Page(page).text.split("How the run went")[0]


def test_the_rate_and_the_time_are_those_of_the_work_and_say_so(made: Path, page: str) -> None:
    n_bytes = load_manifest(made).counts.bytes_in
    rate = f"{n_bytes / 5 / 1e6:.2g} MB/s"
    assert f"time5.0 s{rate}; of reading, encoding and writing, without start and end of the command" in Page(page).text


def test_what_has_fewer_than_three_points_is_no_chart(tmp_path: Path) -> None:
    tokmill.tokenize(write_corpus(tmp_path / "c.txt", ["One.", "Two."]), tmp_path / "o", threads=1)
    give_history(tmp_path / "o", 3)
    told = make_page(collect_data(tmp_path / "o"))
    assert "<svg" not in told
    assert "Too short a run for charts" in told


def test_an_output_made_before_histories_were_kept_says_so(tmp_path: Path) -> None:
    write_output(tmp_path / "o", write_corpus(tmp_path / "c.txt", ["Some text. " * 20] * 30))
    made = tokmill.report(tmp_path / "o")
    assert [sentence.split(":")[0] for sentence in made.missing] == ["Speed and memory over time"]
    page = Page((tmp_path / "o" / "report.html").read_text())
    assert "kept no history of this output" in page.text
    assert "Length of documents" in page.text


def test_an_interrupted_output_says_so_and_how_far_it_was(tmp_path: Path) -> None:
    from support.records import a_content

    from tokmill import __version__
    from tokmill.core.events import Progress, Started
    from tokmill.core.records import Counts, Cursor
    from tokmill.output.directory import Output, open_output
    from tokmill.output.run_history import RunHistoryRecorder

    output = open_output(tmp_path / "o", a_content(), __version__, fresh=False)
    assert isinstance(output, Output)
    recorder = RunHistoryRecorder(output)
    recorder.on_event(Started(total_bytes=9, resumed_bytes=0, position_bytes=0, n_threads=2, batch_bytes=1, budget_bytes=1 << 30))
    for i in range(9):
        recorder.on_event(Progress(elapsed_s=float(i), position_bytes=i, counts=Counts(bytes_in=i * 1_000_000), rss_bytes=1 << 28))
        output.file("train.bin").append(b"\1\0")
        output.commit(Cursor(offset=i + 1), Counts(bytes_in=i, documents=i, tokens_train=4 * i, bytes_text=9 * i), {}, float(i))
    output.settle()
    recorder.save()
    journal = (tmp_path / "o" / ".tokmill" / "journal").read_bytes()
    made = tokmill.report(tmp_path / "o")
    output.close()
    assert not made.is_complete
    text = Page((tmp_path / "o" / "report.html").read_text()).text
    for said in ("not complete", "input 1 of 1: /corpus.txt, byte 9", "The same tokmill command again goes on", "Memory"):
        assert said in text
    assert (tmp_path / "o" / ".tokmill" / "journal").read_bytes() == journal


def test_without_end_of_text_ids_documents_are_missing_and_the_rest_is_there(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.txt", ["Some text. " * 20] * 30)
    tokmill.tokenize(corpus, tmp_path / "o", eot="none", threads=1)
    made = tokmill.report(tmp_path / "o")
    assert [sentence.split(":")[0] for sentence in made.missing] == ["Documents"]
    assert "Most frequent tokens" in (tmp_path / "o" / "report.html").read_text()


def test_a_tokenizer_that_is_not_here_leaves_the_ids(tmp_path: Path) -> None:
    from support.outputs import rewrite_manifest

    manifest = write_output(tmp_path / "o", write_corpus(tmp_path / "c.txt", ["Some text."] * 30))
    tokenizer = msgspec.structs.replace(manifest.content.tokenizer, name="/gone/tokenizer.json", path="/gone")
    content = msgspec.structs.replace(manifest.content, tokenizer=tokenizer)
    rewrite_manifest(tmp_path / "o", manifest, content=content, fingerprint=content.fingerprint())
    data = collect_data(tmp_path / "o")
    assert any("/gone" in sentence for sentence in data.missing)
    assert [token.text for token in data.frequent] == [None] * len(data.frequent)
    assert Page(make_page(data)).wrong == []


def test_an_empty_output_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"")
    tokmill.tokenize(tmp_path / "c.txt", tmp_path / "o", threads=1)
    tokmill.report(tmp_path / "o")
    assert Page((tmp_path / "o" / "report.html").read_text()).wrong == []


def test_a_directory_without_an_output_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no output of tokmill here"):
        tokmill.report(tmp_path)
    with pytest.raises(UsageError, match="no output of tokmill here"):
        tokmill.report(tmp_path / "nothing")


def test_a_file_that_was_cut_is_damage_and_no_report_is_made(tmp_path: Path) -> None:
    write_output(tmp_path / "o", write_corpus(tmp_path / "c.txt", ["Some text."] * 30))
    with (tmp_path / "o" / "train.bin").open("r+b") as file:
        file.truncate(4)
    with pytest.raises(DamageError):
        tokmill.report(tmp_path / "o")
    assert not (tmp_path / "o" / "report.html").exists()


def test_the_page_goes_where_it_is_asked_for_and_a_device_is_not_replaced(made: Path, page: str, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    (tmp_path / "real.html").write_text("<!doctype html>\n<title>tokmill: old</title>")
    tokmill.report(made, tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text() == page
    assert tokmill.report(made, "/dev/null").path == "/dev/null"
    assert Path("/dev/null").is_char_device()
    with pytest.raises(UsageError, match="directory of the report is not there"):
        tokmill.report(made, tmp_path / "no" / "page.html")


def test_verify_knows_the_report(made: Path, page: str) -> None:
    assert page
    tokmill.verify(made).raise_for_damage()


def test_the_command_says_where_the_page_is(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["report", str(made), "--out", str(tmp_path / "p.html")]) == 0
    assert re.match(rf"tokmill: {re.escape(str(tmp_path))}/p.html \([\d.]+ kB, [\d.]+ s\)\n$", capsys.readouterr().out)
    assert run(["report", str(made), "--out", str(tmp_path / "p.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_complete"] is True


def test_without_its_extra_the_report_says_how_to_get_it(made: Path, tmp_path: Path) -> None:
    arguments = ["report", str(made), "-o", str(tmp_path / "p"), "-q"]
    program = f"import sys; sys.modules['matplotlib'] = None; from tokmill.cli.app import run; sys.exit(run({arguments!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=clean_environment(), timeout=60
    )
    assert done.returncode == 2
    assert "pip install 'jinja2>=" in done.stderr
    assert " 'matplotlib>=" in done.stderr
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("package", "said"),
    [("matplotlib", "the charts of a report need matplotlib"), ("jinja2", "the page of a report needs jinja2")],
)
def test_without_its_extra_nothing_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run(["report", "no-such-output"]) == 2
    assert said in capsys.readouterr().err


def test_the_page_is_as_large_for_ten_times_the_corpus(tmp_path: Path) -> None:
    sizes = []
    for n in (300, 3000):
        corpus = write_corpus(tmp_path / f"{n}.txt", [f"Document {i}. " * (i % 90) for i in range(n)])
        tokmill.tokenize(corpus, tmp_path / f"o{n}", threads=1, val_fraction=0.1)
        sizes.append(tokmill.report(tmp_path / f"o{n}").size_bytes)
    assert sizes[1] < 1.3 * sizes[0] < 200_000


def copied_output(tmp_path: Path) -> tuple[Path, Path]:
    """A small complete output and its corpus."""
    corpus = write_corpus(tmp_path / "c.txt", ["Some text. " * 9] * 30)
    write_output(tmp_path / "o", corpus)
    return tmp_path / "o", corpus


@pytest.mark.parametrize(
    "name", ["o/train.bin", "o/manifest.json", "o/skipped.jsonl", "o/.tokmill/x", "o2/manifest.json", "c.txt", "link", "o2/train/x"]
)
@pytest.mark.parametrize("force", [False, True])
def test_a_report_replaces_no_file_of_an_output_or_of_the_corpus(name: str, force: bool, tmp_path: Path) -> None:
    out, corpus = copied_output(tmp_path)
    write_output(tmp_path / "o2", corpus)
    (tmp_path / "o2" / "train").mkdir()
    (out / ".tokmill").mkdir()
    (tmp_path / "link").symlink_to(out / "train.bin")
    target = tmp_path / name
    before = target.read_bytes() if target.exists() else None
    with pytest.raises(UsageError, match="the report would replace"):
        tokmill.report(out, target, force=force)
    assert (target.read_bytes() if target.exists() else None) == before


def test_a_file_that_is_no_report_is_replaced_only_with_force(tmp_path: Path) -> None:
    out, _ = copied_output(tmp_path)
    notes = tmp_path / "notes.html"
    notes.write_text("<!doctype html><title>Notes</title>")
    assert run(["report", str(out), "--out", str(notes), "-q"]) == 2
    assert notes.read_text() == "<!doctype html><title>Notes</title>"
    assert run(["report", str(out), "--out", str(notes), "-q", "--force"]) == 0
    assert run(["report", str(out), "--out", str(notes), "-q"]) == 0, "a report may be replaced by the next"


def test_a_link_that_lies_where_the_report_goes_is_not_followed(tmp_path: Path) -> None:
    out, _ = copied_output(tmp_path)
    (tmp_path / "precious").write_text("mine")
    (out / "report.html").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="a symbolic link"):
        tokmill.report(out)
    tokmill.report(out, force=True)
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (out / "report.html").is_symlink()


def test_the_page_goes_into_a_pipe(tmp_path: Path) -> None:
    out, _ = copied_output(tmp_path)
    arguments = [sys.executable, "-m", "tokmill", "report", str(out), "--out", "/dev/stdout", "-q"]
    done = subprocess.run(arguments, env=clean_environment(), capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"<!doctype html>")
    assert done.stdout.endswith(b"</html>\n")


def test_what_was_removed_is_shown_with_both_texts_side_by_side(tmp_path: Path) -> None:
    texts = [f"The document number {i} says something of its own, namely {i * i} and <b>{i}</b>. " * 6 for i in range(12)]
    tokmill.tokenize(write_corpus(tmp_path / "a.txt", [*texts, *texts[:4]]), tmp_path / "a", val_fraction=0)
    tokmill.tokenize(write_corpus(tmp_path / "b.txt", [text + "The end." for text in texts[:3]]), tmp_path / "b", val_fraction=0)
    tokmill.dedup([tmp_path / "a", tmp_path / "b"], tmp_path / "u", near=0.8)
    made = tokmill.report(tmp_path / "u")
    page = Path(made.path).read_text()
    assert not [each for each in made.missing if "removed" in each]
    assert "Copies that were removed" in page
    assert page.count("namely 0 and &lt;b&gt;0&lt;/b&gt;.") >= 2
    assert "2 to 3" in page
    assert "3 pairs compared" in page
    rows = removal_tables(load_data(tmp_path / "u"))[-1].rows
    # Each has more tokens than are shown: from shortly before the first that differs.
    for _, _, place, stays, goes in rows[:3]:
        assert int(place) > 80
        assert stays.startswith("... ")
        assert goes.startswith(stays)
        assert goes.endswith("The end.")
        assert len(goes) < 200
    assert [(place, stays == goes, stays[:12]) for _, _, place, stays, goes in rows[3:]] == [("nowhere", True, "The document")]
    # The sources may be gone.
    (tmp_path / "b").rename(tmp_path / "c")
    made = tokmill.report(tmp_path / "u")
    assert any("Texts of removed documents" in each for each in made.missing)
    assert "2 to 3" in Path(made.path).read_text()
    # The list is not trusted.
    (tmp_path / "c").rename(tmp_path / "b")
    (tmp_path / "u" / "removed.jsonl").write_text('{"source": 99}\nnot JSON\n[1]\n{"source": -1, "document": 1e400}\n')
    data = load_data(tmp_path / "u")
    assert "0" in str(removal_tables(data)[0].rows)
    assert len(removal_tables(data)) == 1
