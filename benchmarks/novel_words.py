"""Words that were never seen before, as real text keeps on bringing them: names, typos, numbers, addresses, identifiers,
scripts.
"""

from __future__ import annotations

import random

_LATIN_MARKS = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿāăąćčďđēęěğģīįķłńňőœŕřśşšţťūůűŵžż"
_SCRIPTS = (
    "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "αβγδεζηθικλμνξοπρστυφχψωάέήίόύώ",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "".join(map(chr, range(0x3042, 0x3094))),
    "".join(map(chr, range(0x4E00, 0x4E00 + 3000))),
    "".join(map(chr, range(0xAC00, 0xAC00 + 2000))),
)
_TOP = ("com", "org", "net", "io", "de", "co.uk", "fr", "edu", "info", "ru", "jp")


class NovelWords:
    """An endless supply of new forms built from known words. Deterministic by the generator given."""

    def __init__(self, known: list[str], rng: random.Random) -> None:
        self._known = [word for word in known if len(word) >= 3] or ["word", "seed", "text"]
        self._rng = rng
        self._kinds = (
            (self._compound, 26), (self._name, 22), (self._typo, 17), (self._number, 14), (self._identifier, 8),
            (self._accented, 5), (self._address, 3), (self._script, 3), (self._hexadecimal, 2),
        )  # fmt: skip

    def take(self, n: int) -> list[bytes]:
        """n new forms, each with a space before it, UTF-8."""
        makers, weights = zip(*self._kinds, strict=True)
        return [b" " + make().encode() for make in self._rng.choices(makers, weights, k=n)]

    def _word(self) -> str:
        return self._known[int(self._rng.random() * len(self._known))]

    def _compound(self) -> str:
        head, tail = self._word(), self._word()
        return head[: 2 + int(self._rng.random() * 5)] + tail[-2 - int(self._rng.random() * 4) :].lower()

    def _name(self) -> str:
        return self._compound().capitalize()

    def _typo(self) -> str:
        word = self._word() if self._rng.random() < 0.5 else self._compound()
        at = 1 + int(self._rng.random() * (len(word) - 1))
        letter = chr(97 + int(self._rng.random() * 26))
        return (word[:at] + letter + word[at:], word[: at - 1] + letter + word[at:], word[:at] + word[at + 1 :] + letter)[at % 3]

    def _number(self) -> str:
        value = int(10 ** (2 + 6 * self._rng.random()))
        return (f"{value}", f"{value:,}", f"{value / 100:.2f}", f"${value}")[value % 4]

    def _identifier(self) -> str:
        first, second = self._word().lower(), self._compound()
        return f"{first}_{second.lower()}" if self._rng.random() < 0.5 else first + second.capitalize()

    def _accented(self) -> str:
        word = self._compound()
        at = int(self._rng.random() * len(word))
        return word[:at] + self._rng.choice(_LATIN_MARKS) + word[at + 1 :]

    def _address(self) -> str:
        top = self._rng.choice(_TOP)
        return f"https://www.{self._compound().lower()}.{top}/{self._word().lower()}/{self._number()}-{self._compound().lower()}"

    def _script(self) -> str:
        letters = self._rng.choice(_SCRIPTS)
        return "".join(self._rng.choices(letters, k=3 + int(self._rng.random() * 6)))

    def _hexadecimal(self) -> str:
        return f"{self._rng.getrandbits(40):x}"
