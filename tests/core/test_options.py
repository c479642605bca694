"""The options of a run: declared once, valid once made, and the keywords of the Python functions."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any, get_args

import pytest

import tokmill
from tokmill.core.errors import UsageError
from tokmill.core.options import GROUPS, Option, PlanOptions, TokenizeOptions, options_of
from tokmill.core.records import EotPlacement, IdType, OnError, Utf8Policy
from tokmill.encode.loading import ENGINES
from tokmill.formats.registry import FORMATS

OPTIONS = options_of(TokenizeOptions)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("eot", ("auto", *get_args(EotPlacement))),
        ("dtype", ("auto", *get_args(IdType))),
        ("format", tuple(FORMATS)),
        ("engine", tuple(ENGINES)),
        ("on_error", get_args(OnError)),
        ("encoding_errors", get_args(Utf8Policy)),
    ],
)
def test_the_choices_of_an_option_are_those_that_the_code_knows(name: str, choices: tuple[str, ...]) -> None:
    assert sorted(OPTIONS[name].choices) == sorted(choices)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("val_fraction", 1.0),
        ("val_fraction", math.nan),
        ("seed", -1),
        ("seed", 1 << 64),
        ("threads", 0),
        ("max_skipped", -1),
        ("eot", "between"),
        ("format", ""),
    ],
)
def test_a_record_has_valid_values_or_is_not_made(name: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        PlanOptions(**{name: value})  # type: ignore[arg-type]
    assert caught.value.option == OPTIONS[name].flag
    assert caught.value.suggested is not None
    kind = OPTIONS[name].kind
    OPTIONS[name].check(kind(caught.value.suggested))


@pytest.mark.parametrize("value", [None, 1.5, b"bytes", ["a"], "text", 7, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_value_of_another_type_is_a_usage_error_before_anything_is_done(name: str, value: object, tmp_path: Path) -> None:
    try:
        TokenizeOptions(**{name: value})  # type: ignore[arg-type]
    except UsageError:
        with pytest.raises(UsageError, match=OPTIONS[name].flag):
            tokmill.tokenize(tmp_path / "a.txt", tmp_path / "out", **{name: value})  # type: ignore[arg-type]
    else:
        assert isinstance(value, OPTIONS[name].types)


@pytest.mark.parametrize("path", [None, 5, b"bytes", 1.5])
def test_what_is_no_path_is_a_usage_error(path: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    for call in (
        lambda: tokmill.tokenize(tmp_path / "a.txt", path),
        lambda: tokmill.tokenize(path, tmp_path / "out"),
        lambda: tokmill.plan(path),
        lambda: tokmill.merge([path], tmp_path / "out"),
        lambda: tokmill.convert(path, tmp_path / "out", format="raw"),
    ):
        with pytest.raises(UsageError, match="is not a path"):
            call()
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.name)
def test_every_option_has_a_group_a_value_and_a_sentence(option: Option) -> None:
    assert option.group in GROUPS
    assert option.help.endswith(".")
    assert option.kind is bool or option.choices or option.metavar
    option.check(option.default)


def test_the_keywords_of_the_functions_are_the_options_with_their_defaults() -> None:
    for function, record in ((tokmill.tokenize, TokenizeOptions), (tokmill.plan, PlanOptions)):
        found = inspect.signature(function).parameters
        assert {name: found[name].default for name in options_of(record)} == {n: o.default for n, o in options_of(record).items()}
        assert all(f"\n    {name}: " in (inspect.getdoc(function) or "") for name in found)


def test_a_keyword_that_is_none_is_an_error_of_the_function() -> None:
    with pytest.raises(TypeError, match=r"^tokenize\(\) got an unexpected keyword argument 'sede'"):
        tokmill.tokenize("x", "y", sede=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("size", ["9" * 400, "9" * 20 + "T", "1e400", "inf", ""])
def test_no_number_is_too_large_to_be_refused(size: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        PlanOptions(memory=size)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_what_cannot_name_a_file_is_no_path(name: str, tmp_path: Path) -> None:
    """A command line cannot hold such a name; a settings file and Python can."""
    (tmp_path / "a.txt").write_text("text")
    for given in ({"inputs": name, "out": tmp_path / "out"}, {"inputs": tmp_path / "a.txt", "out": name}):
        with pytest.raises(UsageError, match="cannot be the name of a file"):
            tokmill.plan(**given)  # type: ignore[arg-type]
