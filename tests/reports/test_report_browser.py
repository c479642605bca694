"""A report in a real browser: it loads nothing, runs nothing, fits a phone, and can be read in the dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from support import browser
from support.outputs import give_history

import tokmill

pytestmark = pytest.mark.browser

HOSTILE = "<script>console.error('run'); alert(1); new Image().src='http://127.0.0.1:9/x'</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    path = browser.find()
    if path is None:
        pytest.skip("no Chromium is installed (chromium of Debian), and CHROMIUM names none")
    with browser.Browser(path, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = tmp_path_factory.mktemp("report")
    corpus = top / "<script>alert(3)<&quot; onload=alert(4) x.jsonl"
    words = ["plain words and more of them", HOSTILE, "\u202egnp.exe \x1b[2J", "日本語の文章です。"]
    lines = [json.dumps({"text": f"{words[i % 4]} " * (1 + i * 7 % 60)}) for i in range(2000)]
    corpus.write_text("\n".join([*lines, '{"text": 1}']) + "\n")
    tokmill.tokenize(corpus, top / "out", val_fraction=0.2, on_error="skip", threads=1)
    give_history(top / "out")
    return Path(tokmill.report(top / "out").path).as_uri()


@pytest.fixture(scope="module")
def compared(url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page that compares that output with another one."""
    top, first = tmp_path_factory.mktemp("compared"), Path(unquote(urlsplit(url).path)).parent
    (top / "c.txt").write_text("<|endoftext|>".join(f"{HOSTILE} and words {i}. " * (1 + i % 30) for i in range(600)))
    tokmill.tokenize(top / "c.txt", top / "a-directory-with-quite-a-long-name-as-people-have-them", val_fraction=0.2, threads=1)
    other = top / "a-directory-with-quite-a-long-name-as-people-have-them"
    return Path(tokmill.report(first, top / "page.html", other=other).path).as_uri()


@pytest.mark.parametrize("width", [320, 400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_comparison_is_as_quiet_as_narrow_and_as_legible(
    chromium: browser.Browser, compared: str, width: int, scheme: str
) -> None:
    show(chromium, compared, width, scheme)
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value(_CONTRAST) >= 4.5
    asked = [event["request"]["url"] for event in chromium.named("Network.requestWillBeSent")]
    assert [each for each in asked if not each.startswith("data:")] == [compared]
    for kind in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
        assert chromium.named(kind) == []
    assert chromium.value("document.querySelectorAll('figure svg[role=img]').length") == 2


def show(chromium: browser.Browser, url: str, width: int, scheme: str = "light") -> None:
    chromium.call("Emulation.setDeviceMetricsOverride", width=width, height=740, deviceScaleFactor=1, mobile=width < 600)
    chromium.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    chromium.open(url)


def test_what_a_page_asks_for_and_says_would_be_heard(chromium: browser.Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<img src='http://127.0.0.1:9/x'><script>console.error('run'); throw 1</script>")
    show(chromium, (tmp_path / "bad.html").as_uri(), 1280)
    asked = [event["request"]["url"] for event in chromium.named("Network.requestWillBeSent")]
    assert "http://127.0.0.1:9/x" in asked
    assert chromium.named("Log.entryAdded")
    assert chromium.named("Runtime.consoleAPICalled")
    assert chromium.named("Runtime.exceptionThrown")


def test_it_asks_for_nothing_but_itself_and_the_console_is_empty(chromium: browser.Browser, url: str) -> None:
    show(chromium, url, 1280)
    asked = [event["request"]["url"] for event in chromium.named("Network.requestWillBeSent")]
    assert [each for each in asked if not each.startswith("data:")] == [url]
    for kind in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
        assert chromium.named(kind) == []


def test_text_of_the_corpus_stays_text(chromium: browser.Browser, url: str) -> None:
    show(chromium, url, 1280)
    assert chromium.value("document.scripts.length + document.images.length") == 0
    assert "<script>alert(3)<&quot; onload=alert(4) x.jsonl" in chromium.value("document.body.innerText")
    assert chromium.value("document.querySelectorAll('figure svg[role=img]').length") == 5


def test_a_chart_that_stands_alone_is_no_larger_than_others(chromium: browser.Browser, url: str) -> None:
    show(chromium, url, 1280)
    widths = "[...document.querySelectorAll('figure')].map(f => Math.round(f.getBoundingClientRect().width))"
    beside_others = chromium.value(widths)
    alone = chromium.value(f"[...document.querySelectorAll('figure')].slice(1).forEach(f => f.remove()), {widths}")
    assert len(beside_others) > 1
    assert set(alone) == set(beside_others)


@pytest.mark.parametrize("width", [320, 390, 820, 1280])
def test_nothing_is_wider_than_the_screen(chromium: browser.Browser, url: str, width: int, tmp_path: Path) -> None:
    show(chromium, url, width)
    assert chromium.value("document.documentElement.scrollWidth") <= width
    smallest = chromium.value(
        "Math.min(...[...document.querySelectorAll('figure svg text')].filter(t => t.textContent.trim())"
        ".map(t => t.getBoundingClientRect().height))"
    )
    assert smallest >= 8, "letters of a chart that cannot be read"
    chromium.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


_CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(x => { x /= 255;
    return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
  const worst = [];
  for (const e of document.querySelectorAll('h1, h2, h3, p, dt, dd, td, th, caption, figcaption, summary, li, code, svg text')) {
    const style = getComputedStyle(e), colour = e.tagName === 'text' ? style.fill : style.color;
    const [a, b] = [light(colour), light(ground(e))].sort((x, y) => y - x);
    worst.push((a + 0.05) / (b + 0.05));
  }
  return Math.min(...worst);
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_letter_can_be_read_in_light_and_dark(chromium: browser.Browser, url: str, scheme: str) -> None:
    show(chromium, url, 1280, scheme)
    ground = chromium.value("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert chromium.value(_CONTRAST) >= 4.5
