"""Rows as they are measured: what they say, how one is found, and how two are held against each
other.

A row is a dict of facts and times, as it stands in the record.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cases import (
    LARGE,
    LEARN,
    LEARN_LOOP,
    LEARN_OLD,
    LEARN_SJ,
    MIB,
    QCFS_COMPILED,
    QCFS_LEARN,
    QCFS_PLAIN,
    Case,
    Row,
)


def brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def differs(result: Tensor, expected: Tensor, whose: str) -> str:
    if result.dtype != expected.dtype or result.shape != expected.shape:
        wanted = f"{expected.dtype} {tuple(expected.shape)}"
        return f"{result.dtype} {tuple(result.shape)} instead of {wanted}"
    if torch.equal(result, expected):
        return ""
    wrong = (result != expected).sum().item()
    return f"{wrong} of {result.numel()} outputs differ from {whose}"


def find(rows: list[Row], **wanted: Any) -> Row | None:
    """The measured row with these facts."""
    return next(
        (
            row
            for row in rows
            if "median_us" in row and all(row.get(k) == v for k, v in wanted.items())
        ),
        None,
    )


def same_case(row: Row, case: Case) -> bool:
    return all(row[name] == value for name, value in case.facts().items())


CASE_FACTS = ("dtype", "timesteps", "elements", "layout", "v_threshold", "static")


def case_of(row: Row) -> Row:
    return {name: row[name] for name in CASE_FACTS}


def described(row: Row) -> str:
    words = [row["call"]]
    if "rho" in row:
        words.append(f"rho {row['rho']}" + (" exact" if row.get("iterations", 1) is None else ""))
    words += ["in place"] * bool(row.get("inplace"))
    words += [row["dtype"], f"T={row['timesteps']}", f"{row['mib']:.4g} MiB"]
    words += [row["layout"]] * (row["layout"] != "flat") + ["per channel"] * (
        row["v_threshold"] != "scalar"
    )
    return ", ".join(words + ["static"] * row["static"])


# Peers that learn, and what of ours does their work.
LEARNING = {
    **dict.fromkeys((LEARN_LOOP, LEARN_SJ, LEARN_OLD), LEARN),
    **dict.fromkeys((QCFS_PLAIN, QCFS_COMPILED), QCFS_LEARN),
}


def ours_for(rows: list[Row], peer: Row) -> Row | None:
    """Our out-of-place row that does a peer's work."""
    if peer["call"] in LEARNING:
        return find(rows, call=LEARNING[peer["call"]], **case_of(peer))
    if "rho" in peer:
        return find(
            rows, call="cos_forward", inplace=False, rho=peer["rho"], iterations=1, **case_of(peer)
        )
    return find(rows, call="if_forward", inplace=False, **case_of(peer))


def ratios(
    rows: list[Row], *calls: str, dtypes: tuple[str, ...] = ("f32", "f16", "bf16")
) -> list[tuple[float, Row]]:
    """(peer's time / ours, peer's row) of large layers; where a call has several forms, the
    fastest.
    """
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if (
            row["call"] in calls
            and row["dtype"] in dtypes
            and "median_us" in row
            and row["mib"] * MIB >= LARGE
        ):
            key = (*case_of(row).values(), row["call"], row.get("rho"))
            if key not in best or row["median_us"] < best[key]["median_us"]:
                best[key] = row
    pairs = [(row, ours_for(rows, row)) for row in best.values()]
    return [(row["median_us"] / ours["median_us"], row) for row, ours in pairs if ours]
