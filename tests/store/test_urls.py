"""What of a URL is shown and stored, and what is not."""

from __future__ import annotations

import pytest

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
    ],
)
def test_what_is_not_secret_is_the_name(url: str) -> None:
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
