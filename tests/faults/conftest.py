"""Shows after the tests what was tried."""

from __future__ import annotations

import pytest
from support.faults import FOUND, RESULTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in FOUND:
        terminalreporter.write_line(line)
    if not RESULTS:
        return
    terminalreporter.section("faults")
    row = "{:<10} {:<8} {:<22} {:>6} {:>7}".format
    terminalreporter.write_line(row("call", "error", "run", "tried", "failed"))
    for (call, error, scene), (tried, failed) in sorted(RESULTS.items()):
        terminalreporter.write_line(row(call, error, scene, tried, failed))
    total = [sum(counts) for counts in zip(*RESULTS.values(), strict=True)]
    terminalreporter.write_line(row("all", "", "", *total))
