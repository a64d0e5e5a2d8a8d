"""What a record of coverage.py says: counts by list, refusals by reason, tables. Nothing is run."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from _shared import tables

JUDGED = ("exact", "inexact", "refused", "failed")
# What reasons with names in them come to.
GROUPS = {
    "must be one tensor|one tensor output is supported": "the output is no single tensor",
    "cannot be traced": "it cannot be traced",
    "is not the quantised ANN": "the check on the example failed",
    "has NaN or infinite numbers": "NaN or infinite numbers",
    "took longer than": "it took too long",
}
HEAD = ("list", "networks", "converted", "exact", "worst", "refused", "failed", "skipped")


def summary(record: dict[str, Any]) -> str:
    """The table of the lists, and the reasons with how many networks each stops."""
    return "\n\n".join([counts(record), reasons(record)])


def drawn(record: dict[str, Any]) -> str:
    """All tables: the lists, the reasons, and every network."""
    return "\n\n".join([summary(record), *(networks(*each) for each in record["lists"].items())])


def counts(record: dict[str, Any]) -> str:
    lines = [tables.head(HEAD)]
    for name, rows in record["lists"].items():
        of = Counter(row["status"] for row in rows)
        judged = sum(of[status] for status in JUDGED)
        converted = of["exact"] + of["inexact"]
        errors = [row["error"] for row in rows if "error" in row]
        share = f"{converted} ({converted / judged:.0%})" if judged else "0"
        worst = f"{max(errors):.0e}" if errors else ""
        others = (of["refused"], of["failed"], of["skipped"] + of["unmade"])
        lines.append(tables.row([name, judged, share, of["exact"], worst, *others]))
    return "\n".join(lines)


def reasons(record: dict[str, Any]) -> str:
    """By reason: how many networks it stands in the way of, and of how many it is the only one."""
    stopped: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for rows in record["lists"].values():
        for row in rows:
            if row["status"] in ("refused", "failed"):
                found = {grouped(reason) for reason in row["reasons"]}
                stopped.update(found)
                alone.update(found if len(found) == 1 else ())
    lines = [tables.head(["reason", "networks", "it alone"])]
    lines += [tables.row([reason, n, alone[reason]]) for reason, n in stopped.most_common()]
    return "\n".join(lines)


def grouped(reason: str) -> str:
    """A reason without what differs from network to network: names, numbers, what to do."""
    for pattern, words in GROUPS.items():
        if re.search(pattern, reason):
            return words
    short = re.sub(r" \[[\w.]+:\d+.*", "", reason.split(";")[0])
    return re.sub(r"\d+", "N", short).replace("|", "/")


def networks(name: str, rows: list[dict[str, Any]]) -> str:
    lines = [tables.head([name, "", "error", "seconds", "why"], text=(0, 1, 4))]
    for row in rows:
        error = f"{row['error']:.0e}" if "error" in row else ""
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        why = "; ".join(dict.fromkeys(map(grouped, row.get("reasons", ()))))
        lines.append(tables.row([row["name"], row["status"], error, seconds, why]))
    return "\n".join(lines)
