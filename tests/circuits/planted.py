"""The edges that the planted induction head has."""

import pandas as pd

PLANTED = {
    ("token.correct_item", "0.correct_label"): "previous_token",
    ("0.correct_label", "1.k.correct_label"): "write",
    ("token.target", "1.q.target"): "",
    ("1.k.correct_label", "1.q.target"): "match",
    ("1.q.target", "1.target"): "",
    ("token.correct_label", "1.v.correct_label"): "",
    ("1.v.correct_label", "1.target"): "copy",
    ("1.target", "answer"): "readout",
}
"""Every edge, with the operation that it does."""


def drawn(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The edges that a table of `circuit_edges` draws, with their operations."""
    rows = pd.DataFrame(table[table["drawn"]])
    return {(row["source"], row["target"]): row["operation"] for row in rows.to_dict("records")}
