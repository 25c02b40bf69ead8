"""The causal audits that are committed: the table has the roles, and the figure."""

from pathlib import Path

import pandas as pd

from analyses.causal_audit import audits, ratios
from mechinterp.causes.verdicts import audit_roles

TABLES = Path(__file__).parents[2] / "analyses" / "tables"


def test_the_committed_table_is_of_the_design_and_gives_the_committed_roles_and_the_figure():
    table = pd.read_csv(TABLES / "causal_audit.csv").replace({"strength": {0.3333: 1 / 3, 0.6667: 2 / 3}})
    committed = pd.read_csv(TABLES / "causal_audit_roles.csv").set_index(["audit", "measure"])
    for name, audit in audits().items():
        part = table[table["audit"] == name]
        found = list(zip(part["measure"], part["way"], part["strength"], part["time"], strict=True))
        assert found == [(each.measure, each.way.name, each.strength, each.time.name) for each in audit.conditions]
        assert (part["n_seeds"] == len(audit.seeds)).all()
        assert audit_roles(part)["role"].to_dict() == committed.loc[name]["role"].to_dict()
    shown = table[table["audit"] != "decoy"]
    assert sum(len(trace.x) for trace in ratios(table).data) == len(shown)
