"""Outcomes as lines of a terminal and as a table of a page."""

from typing import Any

from gpus.parts import Outcome, Part, Row

# What a line shows of a row, in this order; all of it is in the JSON file.
SHOWN = {
    "gpu": "{}", "cores": "{} cores", "missing": "missing: {}", "bf16_tflops": "{} TFLOP/s bf16",
    "fp32_tflops": "{} fp32", "copy_gb_per_s": "{} GB/s", "how": "{}", "ms": "{} ms", "host_ms": "host {} ms",
    "samples_per_s": "{} crops/s", "tflops": "{} TFLOP/s", "of_matmul": "{} of matmul", "mfu": "MFU {}",
    "gib": "{} GiB", "waits": "{} waits", "steps": "{} steps", "killed_after": "killed after {}",
    "resumed_from": "resumed from {}", "equal_after": "same bits: {}", "apart_after": "apart {:.2g}",
    "samples_per_second": "{} crops/s", "data_wait": "data wait {}", "memory_gib": "{} GiB", "kernels": "{} kernels",
    "busy": "busy {}", "engine_ms": "engine {} ms", "plain_ms": "plain {} ms", "ratio": "ratio {}",
    "scans": "{} scans", "seconds": "{} s", "start": "from {}",
}  # fmt: skip


def told(row: Row) -> str:
    """A row in one line; of images and volumes, both."""
    if any(kind in row for kind in ("2d", "3d")):
        return "; ".join(f"{kind}: {told(row[kind])}" for kind in ("2d", "3d") if kind in row)
    return ", ".join(form.format(_plain(row[key])) for key, form in SHOWN.items() if row.get(key) not in (None, []))


def _plain(value: Any) -> Any:
    return " ".join(value) if isinstance(value, list) else value


def line(part: Part, outcome: Outcome) -> str:
    """One line of the terminal."""
    said = f"{outcome.status}: {outcome.why}" if outcome.why else told(outcome.row or {})
    return f"{part.name:24} {outcome.seconds:6.1f} s  {said}"


def markdown(parts: list[Part], found: dict[str, Outcome]) -> str:
    """A table with a line for each part that was come to."""
    lines = ["| part | what is run | seconds | what came of it |", "|---|---|---|---|"]
    for part in parts:
        if part.name in found:
            outcome = found[part.name]
            said = f"**{outcome.status}**: {outcome.why}" if outcome.why else told(outcome.row or {})
            lines.append(f"| {part.name} | {part.what} | {outcome.seconds:.0f} | {said.replace('|', '/')} |")
    return "\n".join(lines) + "\n"
