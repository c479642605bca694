"""Runs a command and draws its memory: resident memory of all its processes, summed, over time or over the bytes it was given.

    python benchmarks/memory.py --svg m.svg --csv m.csv -- python -m tokmill tokenize corpus.txt --out out
    python benchmarks/memory.py --generate text:20e9 --rss-only --svg m.svg -- python -m tokmill tokenize - --out out

With --generate the command's standard input is text made while it runs (the generator's own memory is not counted), and the
chart's axis is the bytes written to it:
text:BYTES (varied text, a pool of the library's sources or --seed-text in ever new orders, with new words as real text has them,
at 1.5 GB/s), unique:BYTES (no word twice), one-line:BYTES (the same without a newline), empty:COUNT (that many separators,
nothing between), letter:BYTES (the letter a). Prints the peaks, that of every tenth of the way, and the command's exit code;
RSS counts pages shared by two processes twice, PSS once. Measuring PSS slows a large process: --rss-only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import machine
import unique_words
import varied_text
import watch

WIDTH, HEIGHT, MARGIN = 800, 320, 56
MOST_POINTS = 1500
MIB = 1 << 20


def generated(what: str, seed_text: list[Path]) -> Iterator[bytes | memoryview]:
    """The text named by --generate, in blocks."""
    kind, _, amount_text = what.partition(":")
    amount = int(float(amount_text or "1e9"))
    if kind == "text":
        yield from varied_text.learn(seed_text, 64_000_000, 5.0, 0).blocks(amount)
    elif kind in ("unique", "one-line"):
        yield from unique_words.blocks(amount, 12 if kind == "unique" else 0)
    elif kind in ("empty", "letter"):
        unit = b"<|endoftext|>" if kind == "empty" else b"a"
        for done in range(0, amount, MIB):
            yield unit * min(MIB, amount - done)
    else:
        raise SystemExit(f"--generate {what}: the kinds are text, unique, one-line, empty, letter")


def feed(what: str, seed_text: list[Path]) -> None:
    """Write the text to standard output; ends quietly when nobody reads on."""
    try:
        for block in generated(what, seed_text):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def watch_command(args: argparse.Namespace) -> watch.Outcome:
    """Run it, with generated input or none, under the eye of `watch`."""
    pss = not args.rss_only
    if args.generate is None:
        return watch.run(args.command, interval_s=args.interval, pss=pss, env=watch.checkout_env())
    seed_text = ["--seed-text", *map(str, args.seed_text)] if args.seed_text else []
    feeder = subprocess.Popen([sys.executable, __file__, "--feed", args.generate, *seed_text], stdout=subprocess.PIPE)
    with feeder:
        source, feeder.stdout = feeder.stdout, None
        without = frozenset([feeder.pid])
        outcome = watch.run(
            args.command, interval_s=args.interval, pss=pss, stdin=source, without=without, env=watch.checkout_env()
        )
        if source:
            source.close()
    return outcome


def csv(samples: Iterable[watch.Sample]) -> str:
    """elapsed_s, fed_bytes, rss_bytes, pss_bytes, processes."""
    rows = (
        f"{s.elapsed_s:.3f},{s.fed_bytes},{s.rss_bytes},{'' if s.pss_bytes is None else s.pss_bytes},{s.n_processes}"
        for s in samples
    )
    return "\n".join(["elapsed_s,fed_bytes,rss_bytes,pss_bytes,processes", *rows, ""])


def on_the_way(samples: Sequence[watch.Sample]) -> Sequence[watch.Sample]:
    """Those that were taken while the command was fed; all of them where it reads files."""
    return [s for s in samples if s.fed_bytes] or samples


def tenths(samples: Sequence[watch.Sample]) -> list[float]:
    """Peak RSS, in MiB, of each tenth of the bytes that were fed; of the time where none were."""
    end = max(map(way, on_the_way(samples)), default=0) or 1
    parts: list[list[float]] = [[] for _ in range(10)]
    for s in on_the_way(samples):
        parts[min(9, int(10 * way(s) / end))].append(s.rss_bytes / MIB)
    return [max(part, default=0.0) for part in parts]


def way(sample: watch.Sample) -> float:
    """How far the command is: GB fed to it, or seconds where it reads files."""
    return sample.fed_bytes / 1e9 or sample.elapsed_s


def thinned(samples: Sequence[watch.Sample]) -> list[watch.Sample]:
    """At most MOST_POINTS of them, each the highest of its neighbourhood: no peak is lost."""
    step = -(-len(samples) // MOST_POINTS) or 1
    return [max(samples[i : i + step], key=lambda s: s.rss_bytes) for i in range(0, len(samples), step)]


def svg(all_samples: Sequence[watch.Sample], title: str, budget_mib: float | None) -> str:
    """A chart of RSS and PSS in MiB over GB fed or seconds; a dashed line at the budget."""
    samples = thinned(on_the_way(all_samples))
    unit = "GB read" if any(s.fed_bytes for s in samples) else "s"
    end = max((way(s) for s in samples), default=1.0)
    top_mib = 1.1 * max([s.rss_bytes / MIB for s in samples] + [budget_mib or 0, 1])

    def x(at: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * at / end

    def y(mib: float) -> float:
        return HEIGHT - MARGIN + (2 * MARGIN - HEIGHT) * mib / top_mib

    def line(values: list[float], colour: str) -> str:
        points = " ".join(f"{x(way(s)):.1f},{y(value):.1f}" for s, value in zip(samples, values, strict=True))
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

    def text(left: float, top: float, what: str, anchor: str = "start") -> str:
        escaped = what.replace("&", "&amp;").replace("<", "&lt;")
        return f'<text x="{left:.0f}" y="{top:.0f}" text-anchor="{anchor}">{escaped}</text>'

    has_pss = any(s.pss_bytes is not None for s in samples)
    what = "RSS (blue) and PSS (green)" if has_pss else "RSS"
    parts = [text(MARGIN, 20, title), text(MARGIN, 38, f"{what}, MiB, all processes")]
    for i in range(5):
        mib, at = top_mib * i / 4, end * i / 4
        parts += [
            f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(mib):.1f}" y2="{y(mib):.1f}" stroke="#ddd"/>',
            text(MARGIN - 6, y(mib) + 4, f"{mib:.0f}", "end"),
            text(x(at), HEIGHT - MARGIN + 18, f"{at:.1f} {unit}", "middle"),
        ]
    if budget_mib:
        parts.append(f'<path d="M{MARGIN} {y(budget_mib):.1f}H{WIDTH - MARGIN}" stroke="#c00" stroke-dasharray="6 4"/>')
    parts.append(line([s.rss_bytes / MIB for s in samples], "#06c"))
    if has_pss:
        parts.append(line([(s.pss_bytes or 0) / MIB for s in samples], "#090"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", metavar="KIND:AMOUNT", help="text on the command's standard input")
    parser.add_argument("--seed-text", nargs="+", type=Path, default=[], metavar="FILE", help="what --generate text learns from")
    parser.add_argument("--rss-only", action="store_true", help="no PSS, which costs the command time")
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
        feed(args.feed, args.seed_text)
        return
    watch.become_subreaper()
    outcome = watch_command(args)
    peak_mib = outcome.peak_rss_bytes / MIB
    print(" · ".join(f"{name} {value}" for name, value in machine.description().items()))
    print(outcome.stdout, end="")
    times = f"{outcome.elapsed_s:.2f} s, {outcome.cpu_s:.2f} s of processor"
    print(f"exit code {outcome.exit_code}, {times}, {len(outcome.samples)} samples")
    pss = "not measured" if outcome.peak_pss_bytes is None else f"{outcome.peak_pss_bytes / MIB:.1f} MiB"
    print(f"peak RSS {peak_mib:.1f} MiB, peak PSS {pss}")
    print("peak RSS of each tenth of the way, MiB:", *(f"{mib:.0f}" for mib in tenths(outcome.samples)))
    if args.csv:
        args.csv.write_text(csv(outcome.samples))
    if args.svg:
        args.svg.write_text(svg(outcome.samples, " ".join(args.command)[-110:], args.budget_mib))
    over = args.budget_mib is not None and peak_mib > args.budget_mib
    sys.exit(outcome.exit_code or int(over))


if __name__ == "__main__":
    main()
