"""What of a URL is shown and stored, and what is not."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tokmill.core import secrets
from tokmill.core.records import Input
from tokmill.core.secrets import has_credentials
from tokmill.store.urls import full_url, full_urls, one_spelling, path_of, redacted, register_url, register_urls

SIGNED = {
    "S3": "https://host/a.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=HIDDEN%2Fx&X-Amz-Expires=60&X-Amz-Signature=HIDDEN",
    "S3, old": "https://host/a.txt?AWSAccessKeyId=HIDDEN&Signature=HIDDEN%3D&Expires=1700000000",
    "Google": "https://host/a.txt?X-Goog-Credential=HIDDEN&X-Goog-Signature=HIDDEN&GoogleAccessId=HIDDEN",
    "Azure": "https://host/a.txt?sv=2024&sr=b&sp=r&se=2030&skoid=HIDDEN&sig=HIDDEN%2B",
    "CloudFront": "https://host/a.txt?Policy=HIDDEN&Signature=HIDDEN&Key-Pair-Id=HIDDEN",
    "token": "https://host/a.txt?access_token=HIDDEN",
    "password": "https://user:HIDDEN@host/a.txt",
    "user": "https://HIDDEN@host/a.txt",
    "fragment": "https://host/a.txt#HIDDEN",
    "name in capitals": "HTTPS://host/a.txt?TOKEN=HIDDEN",
    "name that is escaped": "https://host/a.txt?%74oken=HIDDEN",
}


@pytest.mark.parametrize("kind", SIGNED)
def test_secrets_are_no_part_of_a_name(kind: str) -> None:
    assert redacted(SIGNED[kind]) == "https://host/a.txt"


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/key with spaces/é?.txt",
        "s3://bucket/a#b.txt",
        "https://host/a.txt?id=7&file=b",
        "http://host:8080/",
        "hf://datasets/who/what@main/data/a.jsonl",
        "gs://bucket/*.txt",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/ap/snap@2024/a.txt",
        "s3://arn:aws-cn:s3-outposts:cn-north-1:123456789012:outpost/op-1/accesspoint/ap/a:b@c.txt",
        "s3://bucket/lr:1e-4@run/a.txt",
        "file:///data/snap@2024/a.txt",
        "./12:30@gpu1",
        "exp:/x",
        "C:/x",
        "data//x",
        "data/what?.txt",
        "data/a?x=b",
        "data/lr:1e-4@run",
        "/data/who:what@host:/x",
    ],
)
def test_what_is_not_secret_is_the_name(url: str) -> None:
    assert redacted(url) == url


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("ftp:/alice:HIDDEN@host/x", "ftp:/***@host/x"),
        ("user:/a/HIDDEN@host/x", "user:/***@host/x"),
        ("alice:HIDDEN@host", "***@host"),
        ("alice:HIDDEN@[::1]/x", "***@[::1]/x"),
        ("alice:HIDDEN@host:80?sig=HIDDEN", "***@host:80?"),
        ("-o12:30@gpu1", "-o***@gpu1"),
        ("--out=lr:1e-4@run", "--out=***@run"),
        ("https//alice:HIDDEN@host/x", "https//host/x"),
        ("https;//alice:HIDDEN@host/x", "https;//host/x"),
        ("https:host/a?X-Amz-Signature=HIDDEN", "https:host/a"),
        ("https/alice:HIDDEN@host/x", "***@host/x"),
        (" alice:HIDDEN@host/x", " ***@host/x"),
        ("alice b:HIDDEN@host/x", "***@host/x"),
        ("host/x?a=b&X-Amz-Signature=@HIDDEN", "host/x?~"),
    ],
)
def test_what_may_be_a_secret_is_hidden_unless_it_is_a_path(
    url: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redacted(url).startswith(name)
    assert "HIDDEN" not in redacted(url)
    assert redacted(redacted(url)) == redacted(url)
    monkeypatch.chdir(tmp_path)
    Path(url).parent.mkdir(parents=True, exist_ok=True)
    Path(url).touch()
    assert redacted(url) == url


def test_a_long_value_of_a_name_nobody_knows_is_a_digest() -> None:
    one, other = (redacted(f"https://host/a?x={'HIDDEN' * 5}{i}") for i in range(2))
    assert "HIDDEN" not in one
    assert one != other


def test_a_host_with_a_query_and_no_path_hides_it_too() -> None:
    assert redacted("https://user:HIDDEN@host?token=HIDDEN") == "https://host"


def test_the_suffix_is_that_of_the_path() -> None:
    assert path_of("https://host/a.jsonl.gz?id=1.txt") == "/a.jsonl.gz"
    assert path_of("s3://bucket/what?.txt") == "s3://bucket/what?.txt"


def test_credentials_stand_before_the_host_only() -> None:
    assert has_credentials("https://user@host/")
    assert not has_credentials("hf://datasets/who/what@main/a")


def test_what_was_typed_is_told_by_name_where_it_differs() -> None:
    url = "https://user:word@elsewhere/a.txt?sig=1"
    name = register_url(url)
    plain = register_url("https://elsewhere/b.txt")
    inputs = [Input(path=path, format="text", compression="none") for path in (name, plain, "/a.txt")]
    assert full_urls(inputs) == {name: url}
    register_urls({name: url + "2"})
    assert full_url(name) == url + "2"
    assert full_url(plain) == plain


@pytest.mark.parametrize(
    ("url", "other", "is_same"),
    [
        ("http://h/a.txt", "http://H:80/%61.txt", True),
        ("https://h/a%2fb", "https://h:443/a%2Fb", True),
        ("https://h/a%2Fb", "https://h/a/b", False),
        ("http://h/a", "https://h/a", False),
        ("s3://b/%61", "s3://b/a", False),
    ],
)
def test_one_object_has_one_spelling(url: str, other: str, is_same: bool) -> None:
    assert (one_spelling(url) == one_spelling(other)) is is_same


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_learned", {})


PLACES = (
    "s3://who:{}@bucket/a.txt",
    "https://host/a.txt?sig={}",
    "who:{}@bucket/a.txt",
    "ftp:/who:{}@host/a.txt",
    "https//who:{}@host/a.txt",
    "https://who:{}@host",
)
ORDINARY = st.text(st.sampled_from("abcz019._-"), min_size=1, max_size=12)
SECRET = st.text(st.sampled_from("KQX7+/=%&@:~ '\"é"), min_size=1, max_size=12).map(lambda text: f"{text}KQX")


@given(ORDINARY, SECRET)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_words_that_are_no_secrets_stay(forgetful: None, word: str, secret: str) -> None:
    typed = [
        f"https://host/a.txt?dataset={word}&author={word}&q={word}#{word}",
        f"./12:{word}@gpu",
        f"exp/lr:{word}@run/x",
        f"exp:/{word}",
    ]
    secrets.learn([*typed, f"https://user:{quote(secret, safe='')}@host/{word}", f"s3://b/{word}?X-Amz-Signature={quote(secret)}"])
    text = f"tokmill: '/data/{word}' --out {word} --text-key {word}@z --glob '{word}/*' {' '.join(typed[1:])}"
    assert secrets.shown(text) == text
    assert secrets.shown_in({word: [text, 7, None]}) == {word: [text, 7, None]}


@pytest.mark.parametrize(
    "name",
    ["token", "access_token", "X-Amz-Signature", "X-Amz-Security-Token", "X-Goog-Credential", "sig", "Signature", "Key-Pair-Id"],
)
def test_what_is_named_a_secret_is_hidden_on_its_own(forgetful: None, name: str) -> None:
    secrets.learn([f"https://host/a.txt?id=7&{name}=wiki%2Bt"])
    for text in ("it is wiki+t", "wiki%2Bt?", f"--key={name}=wiki+t/x", r"a\nwiki+t", "a%3Awiki+t"):
        assert "wiki" not in secrets.shown(text)
    assert secrets.shown("of wiki+ts and awiki+t") == "of wiki+ts and awiki+t"


@given(st.sampled_from(PLACES), st.text(st.sampled_from("kqx7_+é"), min_size=8, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_long_secret_is_hidden_inside_words(forgetful: None, place: str, secret: str) -> None:
    url = place.format(secret)
    secrets.learn([url])
    around = ("path_{}_x", "\n{}\t", "%3A{}%40", "é{}é", "0{}0", "{}")
    texts = [form.format(spelling) for form in around for spelling in (secret, quote(secret), quote(url, safe=""), quote(url))]
    for text in [*texts, *map(repr, texts), *map(quote, texts)]:
        assert secret not in unquote(secrets.shown(text)), text


@given(SECRET)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_secret_is_hidden_with_what_it_became_part_of(forgetful: None, secret: str) -> None:
    for url in (f"s3://who:{quote(secret, safe='')}@bucket/a.txt", f"https://host/a.txt?sig={quote(secret, safe='')}"):
        secrets.learn([url])
        texts = (url, f"{url}/b", f"'{url}'", repr(url), f"'{unquote(url)}", url.replace("%", "%25"))
        assert [text for text in texts if quote(secret, safe="") in secrets.shown(text) or secret in secrets.shown(text)] == []
