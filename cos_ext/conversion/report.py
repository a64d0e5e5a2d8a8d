"""What a conversion did with every module and call site, and the error that lists what it could not
do. No rules here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STATUSES = (
    *("converted", "kept", "difference", "folded", "moved", "fused", "replaced", "unused"),
    "unsupported",
)


@dataclass(frozen=True)
class Entry:
    """One line of a report: a module or call site, what it is, what became of it, its threshold,
    and why.
    """

    site: str
    kind: str
    status: str  # one of STATUSES
    threshold: str = ""
    reason: str = ""


@dataclass
class ConversionReport:
    """What convert() did with every module and call site, in execution order. Prints as a table.

    converted: became neurons. kept: works on spikes as it is. difference: computed on running means
    of what it reads; real numbers leave it, no spikes. folded: into the convolution or
    linear layer before it. moved: a max pooling, before its neurons. fused: done by the kernel of
    the neurons beside it. replaced: by average pooling. unused: forward does not call it.
    unsupported.
    """

    entries: list[Entry] = field(default_factory=list)
    # The share of the multiplications that read spikes, on the example; None without one.
    behind: float | None = None

    def unsupported(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == "unsupported"]

    def __str__(self) -> str:
        rows = [("call site", "kind", "status", "threshold", "reason")]
        rows += [(e.site, e.kind, e.status, e.threshold, e.reason) for e in self.entries]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows
        ]
        if self.behind is not None:
            lines.append(f"{self.behind:.0%} of the multiplications lie behind neurons")
        return "\n".join(lines)


class ConversionError(ValueError):
    """The model cannot be converted. `.report` has every offending module and call site; the
    message lists them all.
    """

    def __init__(self, message: str, report: ConversionReport | None = None) -> None:
        super().__init__(message)
        self.report = report or ConversionReport()
