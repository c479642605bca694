"""Runs a command and draws its memory: resident memory of all its processes, summed, over time.

    python benchmarks/memory.py --svg m.svg --csv m.csv -- python -m tokmill tokenize corpus.txt --out out
    python benchmarks/memory.py --generate unique:2e9 -- python -m tokmill tokenize - --out out

With --generate the command's standard input is text made while it runs (the generator's own memory is not counted):
unique:BYTES (no word twice), one-line:BYTES (the same without a newline), empty:COUNT (that many separators, nothing between),
letter:BYTES (the letter a). Prints the peaks and the command's exit code; RSS counts pages shared by two processes twice,
PSS once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import machine
import unique_words
import watch

WIDTH, HEIGHT, MARGIN = 800, 320, 56
MIB = 1 << 20


def generated(what: str) -> Iterator[bytes]:
    """The text named by --generate, in blocks."""
    kind, _, amount_text = what.partition(":")
    amount = int(float(amount_text or "1e9"))
    if kind in ("unique", "one-line"):
        yield from unique_words.blocks(amount, 12 if kind == "unique" else 0)
    elif kind in ("empty", "letter"):
        unit = b"<|endoftext|>" if kind == "empty" else b"a"
        for done in range(0, amount, MIB):
            yield unit * min(MIB, amount - done)
    else:
        raise SystemExit(f"--generate {what}: the kinds are unique, one-line, empty, letter")


def feed(what: str) -> None:
    """Write the text to standard output; ends quietly when nobody reads on."""
    try:
        for block in generated(what):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def watch_command(command: list[str], generate: str | None, interval_s: float) -> watch.Outcome:
    """Run it, with generated input or none, under the eye of `watch`."""
    if generate is None:
        return watch.run(command, interval_s=interval_s, pss=True, env=watch.checkout_env())
    feeder = subprocess.Popen([sys.executable, __file__, "--feed", generate], stdout=subprocess.PIPE)
    with feeder:
        source, feeder.stdout = feeder.stdout, None
        without = frozenset([feeder.pid])
        outcome = watch.run(command, interval_s=interval_s, pss=True, stdin=source, without=without, env=watch.checkout_env())
        if source:
            source.close()
    return outcome


def csv(samples: Iterable[watch.Sample]) -> str:
    """elapsed_s, rss_bytes, pss_bytes, processes."""
    rows = (f"{s.elapsed_s:.3f},{s.rss_bytes},{s.pss_bytes},{s.n_processes}" for s in samples)
    return "\n".join(["elapsed_s,rss_bytes,pss_bytes,processes", *rows, ""])


def svg(samples: list[watch.Sample], title: str, budget_mib: float | None) -> str:
    """A chart of RSS and PSS in MiB over seconds; a dashed line at the budget."""
    end_s = max((s.elapsed_s for s in samples), default=1.0)
    top_mib = 1.1 * max([s.rss_bytes / MIB for s in samples] + [budget_mib or 0, 1])

    def x(elapsed_s: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * elapsed_s / end_s

    def y(mib: float) -> float:
        return HEIGHT - MARGIN + (2 * MARGIN - HEIGHT) * mib / top_mib

    def line(values: list[float], colour: str) -> str:
        points = " ".join(f"{x(s.elapsed_s):.1f},{y(value):.1f}" for s, value in zip(samples, values, strict=True))
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

    def text(left: float, top: float, what: str, anchor: str = "start") -> str:
        escaped = what.replace("&", "&amp;").replace("<", "&lt;")
        return f'<text x="{left:.0f}" y="{top:.0f}" text-anchor="{anchor}">{escaped}</text>'

    parts = [text(MARGIN, 20, title), text(MARGIN, 38, "RSS (blue) and PSS (green), MiB, all processes")]
    for i in range(5):
        mib, at_s = top_mib * i / 4, end_s * i / 4
        parts += [
            f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(mib):.1f}" y2="{y(mib):.1f}" stroke="#ddd"/>',
            text(MARGIN - 6, y(mib) + 4, f"{mib:.0f}", "end"),
            text(x(at_s), HEIGHT - MARGIN + 18, f"{at_s:.1f} s", "middle"),
        ]
    if budget_mib:
        parts.append(f'<path d="M{MARGIN} {y(budget_mib):.1f}H{WIDTH - MARGIN}" stroke="#c00" stroke-dasharray="6 4"/>')
    parts += [line([s.rss_bytes / MIB for s in samples], "#06c"), line([(s.pss_bytes or 0) / MIB for s in samples], "#090")]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", metavar="KIND:AMOUNT", help="text on the command's standard input")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--budget-mib", type=float, help="drawn in the chart; above it the exit code is 1")
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between samples")
    parser.add_argument("--feed", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", metavar="-- COMMAND ...")
    args = parser.parse_args()
    if not args.command and not args.feed:
        parser.error("no command: give it behind --")
    return args


def main() -> None:
    args = options()
    if args.feed:
        feed(args.feed)
        return
    watch.become_subreaper()
    outcome = watch_command(args.command, args.generate, args.interval)
    peak_mib = outcome.peak_rss_bytes / MIB
    print(" · ".join(f"{name} {value}" for name, value in machine.description().items()))
    print(outcome.stdout, end="")
    times = f"{outcome.elapsed_s:.2f} s, {outcome.cpu_s:.2f} s of processor"
    print(f"exit code {outcome.exit_code}, {times}, {len(outcome.samples)} samples")
    print(f"peak RSS {peak_mib:.1f} MiB, peak PSS {(outcome.peak_pss_bytes or 0) / MIB:.1f} MiB")
    if args.csv:
        args.csv.write_text(csv(outcome.samples))
    if args.svg:
        args.svg.write_text(svg(outcome.samples, " ".join(args.command)[-110:], args.budget_mib))
    over = args.budget_mib is not None and peak_mib > args.budget_mib
    sys.exit(outcome.exit_code or int(over))


if __name__ == "__main__":
    main()
