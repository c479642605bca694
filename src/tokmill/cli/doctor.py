"""`tokmill doctor`: what is installed, what is missing, and whether tokmill would work. Changes nothing, needs no network.

Only the standard library is imported at the top: a package that is missing must be a row of the answer, not the end of it.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from tokmill.cli import machine, settings
from tokmill.cli.machine import Check
from tokmill.core.errors import TokmillError, UsageError
from tokmill.core.extras import install_hint, requirements
from tokmill.core.system.current import SYSTEM
from tokmill.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_OLDEST_PYTHON = (3, 11)
_FOR = {
    "s3": "s3:// inputs and outputs",
    "http": "https:// inputs",
    "hf": "tokenizer.json, Hugging Face repositories, hf:// inputs",
    "gcs": "gs:// inputs",
    "torch": "tokmill.torch",
}
"""What each extra is for."""
_REINSTALL = "pip install --force-reinstall tokmill, then: tokmill doctor"
_HERE_NO_MORE = "cd to a directory that is there, then: tokmill doctor"
_DEVELOPERS = {"dev", "docs"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The results of all checks."""

    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether tokmill would work here."""
        return all(check.status != "bad" for check in self.checks)

    @property
    def unwritable(self) -> str | None:
        """The directory in which an output would be made, if it cannot be written."""
        disk = {check.name: check.value for check in self.checks if check.group == "disk"}
        return disk.get("place") if "writing" in disk else None

    def to_object(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"works": self.works, "tokmill": __version__, "checks": [asdict(check) for check in self.checks]}

    def raise_for_faults(self) -> None:
        """Raise TokmillError if tokmill would not work."""
        bad = [check for check in self.checks if check.status == "bad"]
        if not bad:
            return
        raise TokmillError(
            f"tokmill would not work here: {'; '.join(f'{check.name}: {check.value}' for check in bad)}",
            where=", ".join(f"{check.group}, {check.name}" for check in bad),
            allowed="checks without BAD in the table",
            next_step=bad[0].next_step or "correct it, then: tokmill doctor",
        )


def diagnose(directory: str = ".", config_error: UsageError | None = None, variables: Collection[str] = ()) -> Diagnosis:
    """Run all checks.

    directory: where an output would be made. config_error: what is wrong with the files of settings. variables: the environment
    variables of options.
    """
    looks: tuple[tuple[str, str, Callable[[], list[Check]]], ...] = (
        ("tokmill", "program", _program),
        ("packages", "list", packages),
        ("machine", "processor", machine.processor),
        ("machine", "open files", lambda: [machine.open_files()]),
        ("memory", "machine", machine.memory_checks),
        ("disk", "place", lambda: machine.disk(directory)),
        ("engine", "self-test", lambda: [engine()]),
        ("vocabularies", "list", vocabularies),
        ("extras", "list", extras),
        ("settings", "files", lambda: [_settings(config_error), *_strange(variables)]),
    )
    return Diagnosis(tuple(check for look in looks for check in _looked_at(*look)))


def _looked_at(group: str, name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Return what a check finds; if it fails, that."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001  whatever is wrong with this machine must be a row of the answer
        few = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
        steps = ((ImportError, _REINSTALL), (FileNotFoundError, _HERE_NO_MORE))
        step = "ulimit -n 1024" if few else next((step for kind, step in steps if isinstance(error, kind)), None)
        return [Check(group, name, f"not possible: {error or type(error).__name__}", "bad", step)]


def _program() -> list[Check]:
    found = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    old = sys.version_info[:2] < _OLDEST_PYTHON
    system = f"{platform.system()} {platform.release()}"
    foreign = SYSTEM.name != "Linux"
    known = f"{SYSTEM.name} form of the system's calls: tokmill is tested on Linux" if foreign else None
    return [
        Check("tokmill", "version", __version__),
        Check("tokmill", "python", found, "bad" if old else "ok", "use Python 3.11 or newer" if old else None),
        Check("tokmill", "system", system, "note" if foreign else "ok", known),
    ]


def packages() -> list[Check]:
    """Return the required packages and whether their versions are right."""
    return [_package(*each) for each in requirements() if not each[2]]


def extras() -> list[Check]:
    """Return the extras, and what each is for."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    for name, versions, extra in requirements():
        if extra and extra not in _DEVELOPERS:
            wanted.setdefault(extra, []).append((name, versions))
    checks = []
    for extra, parts in sorted(wanted.items()):
        rows = [_package(name, versions, extra) for name, versions in parts]
        bad = [row for row in rows if row.status == "bad"]
        use = _FOR.get(extra, "")
        shown = ", ".join(f"{row.name} {row.value}" for row in (bad or rows))
        hint = install_hint(extra) + (f", for {use}" if use else "")
        checks.append(Check("extras", extra, shown, "note" if bad else "ok", hint if bad else None))
    return checks


def _package(name: str, versions: str, extra: str) -> Check:
    hint = install_hint(extra) if extra else f"pip install '{name}{versions}'"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check("packages", name, "not installed", "bad", hint)
    if not fits(found, versions):
        return Check("packages", name, f"{found}, but {versions} is needed", "bad", hint)
    return Check("packages", name, found)


def fits(version: str, wanted: str) -> bool:
    """Return whether a version is among those wanted, such as `>=0.14,<0.15`; True if it cannot be understood."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return SpecifierSet(wanted).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True


def engine() -> Check:
    """Return whether the engine gives the reference's ids for fixed texts, tried in a separate process."""
    import msgspec

    from tokmill.core.events import Failed
    from tokmill.core.system.child import Child
    from tokmill.core.system.process import error_of
    from tokmill.encode import TEXTS, Tried

    child = Child("tokmill.encode.selftest")
    try:
        child.ask(b"{}")
        answer = next(child.lines(), None)
    finally:
        child.end()
    if answer is None:
        words = (child.last_words.splitlines() or ["no error was printed"])[-1]
        return Check("engine", "self-test", f"the process ended ({child.cause()}): {words}", "bad", _REINSTALL)
    found: Failed | Tried = msgspec.json.decode(answer, type=Failed | Tried)
    if isinstance(found, Failed):
        fault = error_of(found)
        return Check("engine", "self-test", fault.what, "bad", fault.next_step)
    if found.differs_in is not None:
        return Check("engine", "self-test", f"text {found.differs_in} is not encoded as by the reference", "bad", _REINSTALL)
    return Check("engine", "self-test", f"{len(TEXTS)} texts, {found.n_tokens} tokens: the same as the reference's")


def vocabularies() -> list[Check]:
    """Return the cache directory, and which of the published encodings are in it."""
    from tokmill.encode import list_vocabularies, tiktoken_cache_paths

    directory = os.path.dirname((tiktoken_cache_paths("cl100k_base") or [""])[0])
    state = "is there" if os.path.isdir(directory) else "is not there"
    checks = [Check("vocabularies", "cache", f"{directory} {state}")]
    for each in list_vocabularies():
        hint = None if each.path else f"tokmill vocab fetch {each.name} --to DIR"
        checks.append(Check("vocabularies", each.name, each.path or "not here", "ok" if each.path else "note", hint))
    return checks


def _settings(error: UsageError | None) -> Check:
    if error is not None:
        # Every other command stops at it.
        return Check("settings", "files", f"{error.what} ({error.where})", "bad", error.next_step)
    variables = sorted(name for name in os.environ if name.startswith("TOKMILL_"))
    return Check("settings", "files", ", ".join([*settings.present(), *variables]) or "none")


def _strange(known: Collection[str]) -> list[Check]:
    """Return variables named like settings that no option has."""
    found = dict(settings.strange_variables(known) if known else ())
    hints = {name: f"export {near}=..., and unset {name}" if near else f"unset {name}" for name, near in found.items()}
    return [Check("settings", name, "no option has this variable", "note", hint) for name, hint in hints.items()]
