"""Characters that engine and reference treat otherwise: first and last code point of each range, hexadecimal.

Written by `make unicode`, which asks both about every character (`tests/support/unicode_tables.py`); not by hand.
"""

from __future__ import annotations

VERSIONS = {"gigatoken": "0.10.0", "tiktoken": "0.14.0", "tokenizers": "0.23.3"}
"""Those that were asked. Within a minor version of the references their tables do not move."""

NEWER = """
    88F C5C CDC 1ACF-1ADD 1AE0-1AEB A7CE-A7CF A7D2 A7D4 A7F1 10940-10959 10EC5-10EC7 10EFA-10EFB 11B60-11B67 11DB0-11DDB
    11DE0-11DE9 16EA0-16EB8 16EBB-16ED3 16FF2-16FF6 187F8-187FF 18D09-18D1E 18D80-18DF2 1E6C0-1E6DE 1E6E0-1E6F5 1E6FE-1E6FF
    2B73A-2B73F 2CEA2-2CEAD 323B0-33479
"""
"""Letters, marks, digits or white space of one, and not of the other."""

NEWER_SYMBOLS = """
    20C1 2B96 FBC3-FBD2 FD90-FD91 FDC8-FDCE 10ED0-10ED8 1CCFA-1CCFC 1CEBA-1CED0 1CEE0-1CEF0 1F6D8 1F777-1F77A 1F8D0-1F8D8
    1FA54-1FA57 1FA8A 1FA8E 1FAC8 1FACD 1FAEA 1FAEF 1FBFA
"""
"""Further characters, for patterns that name symbols and punctuation (deepseek_v3)."""

NEWER_FOR_NFC = """
    7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1ACE 1DF6-1DFA A82C 105D2 105DA 10D24-10D27 10D69-10D6D 10EAB-10EAC
    10EFD-10EFF 10F46-10F50 10F82-10F85 11070 1133B 113BB 113C2 113C5 113C7-113C9 113CE-113D0 1145E 11839-1183A 11935
    1193D-1193E 11943 119E0 11A34 11A47 11A99 11D42 11D44-11D45 11D97 11F41-11F42 1611E-16129 1612F 16D67-16D69 16FF0-16FF1
    1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF
"""
"""Further characters, for NFC: of another combining class, or the rarer one of two that only one of both composes."""
