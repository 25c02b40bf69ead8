"""Which measures are causes of the transition, and which only lead? Each is held up and removed in training.

    python -m analyses.causal_audit [--workers N] [--out FOLDER]

Three audits (`mechinterp.causes`): of the measures of Reddy 2023 in ``reddy2023-fast`` (two seeds; 5,000 steps, 1.45
times the step of the transition), of previous-token attention and prefix matching in ``induction-tokens`` (two seeds of
those in which heads form; 360 steps, 1.55 to 1.8 times), and of a decoy, layer 1's W_Q and W_K frozen while they do not
move. Each measure is held and removed at three strengths for the whole run, and in whole in windows about the
transition. Writes ``causal_audit.csv``, a row for each manipulation, ``roles.csv``, a row for each measure, and a
figure of the ratios. Rules of verdicts and roles: `mechinterp.causes.verdicts`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses._common import Analysis, run_analysis
from mechinterp.causes.audit import run_audit
from mechinterp.causes.design import STRENGTHS, Audit, Time
from mechinterp.causes.verdicts import audit_roles
from mechinterp.config import Freeze, RunConfig
from mechinterp.figures import PALETTE, styled
from mechinterp.files import make_folder
from mechinterp.labels import measure_name
from mechinterp.measures.manipulations import Manipulations, SideEffect, manipulation

DECOY = Manipulations(
    remove=manipulation(
        Freeze(parameters=("blocks.0.attn.W_Q", "blocks.0.attn.W_K")), also=(SideEffect.gradient, SideEffect.bypass)
    )
)
"""Weights that make ILA1, kept at their initial values: until the transition they hardly move."""
MOST = 2.0
"""Where the figure draws a transition that is not made."""


def audits() -> dict[str, Audit]:
    """The audits, by the title of their part of the figure."""
    vectors = RunConfig.preset("reddy2023-fast").updated({"training.steps": 5_000, "checkpoints.every": 200})
    tokens = RunConfig.preset("induction-tokens").updated({"training.steps": 360, "checkpoints.every": 15})
    of_tokens = ["previous_token_1", "prefix_matching_2", "previous_token_2"]
    return {
        "reddy2023-fast": Audit.of(vectors, seeds=(0, 1), stop_accuracy=0.9, name="audit reddy2023"),
        "decoy": Audit.of(
            vectors, {"layer1_qk": DECOY}, seeds=(0, 1), times=[Time.before], stop_accuracy=0.9, name="audit decoy"
        ),
        "induction-tokens": Audit.of(tokens, of_tokens, seeds=(4, 5), times=[Time.before], name="audit tokens"),
    }


@dataclass
class CausalAudit(Analysis):
    """Which measures are causes of the transition, and which only lead?"""

    workers: int | None = None
    """Processes on this machine; by default one for each core."""
    retry: bool = False
    """Try runs again that failed."""
    runs: Path = Path("checkpoints/studies")
    """Folder of the runs, by id; studies share it."""

    def execute(self) -> None:
        make_folder(self.out)
        tables = {
            name: run_audit(audit, self.runs, workers=self.workers, retry=self.retry)
            for name, audit in audits().items()
        }
        table = pd.concat(tables, names=["audit"]).reset_index(level="audit").reset_index(drop=True)
        roles = pd.concat({name: audit_roles(each) for name, each in tables.items()}, names=["audit"])
        table.to_csv(self.out / "causal_audit.csv", index=False, float_format="%.4g")
        roles.to_csv(self.out / "roles.csv", float_format="%.4g")
        print(roles.round(3).to_string())
        self.write(ratios(table), "causal_audit")


def ratios(table: pd.DataFrame) -> go.Figure:
    """The ratio of every manipulation with its range over seeds; on the right edge, transitions that are not made."""
    shown = table[(table["n_seeds"] > 0) & (table["audit"] != "decoy")]
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=["reddy2023-fast", "induction-tokens"], horizontal_spacing=0.22
    )
    kinds = [("whole", strength) for strength in STRENGTHS] + [
        (time.name, 1.0) for time in Time if time is not Time.whole
    ]
    named = {("whole", strength): f"whole run, strength {strength:.2g}" for strength in STRENGTHS}
    offsets = np.linspace(-0.32, 0.32, len(kinds))[::-1]
    for column, (_, part) in enumerate(shown.groupby("audit", sort=False), start=1):
        rows = list(dict.fromkeys(zip(part["measure"], part["way"], strict=True)))[::-1]
        for kind, offset, colour in zip(kinds, offsets, PALETTE, strict=False):
            chosen = part[(part["time"] == kind[0]) & np.isclose(part["strength"], kind[1])]
            places = [rows.index(each) + offset for each in zip(chosen["measure"], chosen["way"], strict=True)]
            ratio, low, high = (chosen[name].clip(upper=MOST) for name in ("ratio", "ratio_low", "ratio_high"))
            never = np.isinf(chosen["ratio"])
            figure.add_scatter(
                x=ratio,
                y=places,
                error_x={"type": "data", "symmetric": False, "array": high - ratio, "arrayminus": ratio - low},
                mode="markers",
                marker={"color": colour, "size": 8, "symbol": np.where(never, "triangle-right-open", "circle")},
                name=named.get(kind, f"{kind[0]}, strength 1"),
                legendgroup=str(kind),
                showlegend=column == 1,
                row=1,
                col=column,
            )
        labels = [f"{measure_name(measure)}: {way}" for measure, way in rows]
        figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=labels, row=1, col=column)
        figure.add_vline(1.0, line={"color": "#999999", "dash": "dot"}, row=1, col=column)  # pyright: ignore[reportArgumentType]
    ticks = [0.03, 0.1, 0.3, 0.5, 1.0, MOST]
    figure.update_xaxes(
        type="log", tickvals=ticks, ticktext=[*(f"{tick:g}" for tick in ticks[:-1]), "none"], range=[-1.65, 0.36]
    )
    styled(figure, "Step of the transition, relative to the control of the same seed", None, None)
    return figure.update_layout(height=560, width=1240, margin={"t": 90}, legend={"orientation": "h", "y": -0.1})


if __name__ == "__main__":
    run_analysis(CausalAudit)
