"""The figures as bars, in an SVG that is readable on light and on dark pages."""

from __future__ import annotations

from html import escape

from results import MINE, Results

PANELS = [
    ("drain1", "rate", "Drain, one process: tasks a second", True),
    ("drain2", "rate", "Drain, two processes: tasks a second", True),
    ("drain1", "cpu_us", "CPU of server and worker: µs a task", False),
    ("latency", "p50_ms", "Latency on an idle worker: p50, ms", False),
    ("latency", "p99_ms", "Latency on an idle worker: p99, ms", False),
    ("one", "rate", "Enqueue one by one: tasks a second", True),
]
# The limit is not a queue that one would use, and would make all others' bars short.
LEFT_OUT = {"mintable"}
WIDTH, LABEL, ROW, GAP = 760, 150, 20, 34


def draw(results: Results) -> str:
    """Return the plot."""
    parts: list[str] = []
    y = 10
    for workload, figure, title, more_is_better in PANELS:
        values = {
            peer: median
            for peer in results.peers(workload)
            if peer not in LEFT_OUT and (median := results.median(workload, peer, figure))
        }
        if not values:
            continue
        better = "more is better" if more_is_better else "less is better"
        parts.append(f'<text x="10" y="{y + 14}" class="title">{escape(title)} ({better})</text>')
        y += 22
        for peer, value in sorted(values.items(), key=lambda item: -item[1]):
            parts.append(_bar(y, peer, value, value / max(values.values())))
            y += ROW
        y += GAP - ROW
    style = (
        "text { font: 13px system-ui, sans-serif; fill: #57606a } .title { font-weight: 600 } "
        ".mine { fill: #1f6feb } .other { fill: #8c959f } "
        "@media (prefers-color-scheme: dark) { text { fill: #b1bac4 } }"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img">'
    title = "<title>Drain, latency, CPU and enqueue rates of each queue</title>"
    return "\n".join([head, title, f"<style>{style}</style>", *parts, "</svg>"]) + "\n"


def _bar(y: int, peer: str, value: float, share: float) -> str:
    kind = "mine" if peer.startswith(MINE) else "other"
    width = max(1.0, share * (WIDTH - LABEL - 90))
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return (
        f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(peer)}</text>'
        f'<rect x="{LABEL}" y="{y + 2}" width="{width:.1f}" height="14" class="{kind}"/>'
        f'<text x="{LABEL + width + 6:.1f}" y="{y + 13}">{shown}</text>'
    )
