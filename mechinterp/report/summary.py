"""What a run has come to, in a paragraph: what formed, when, how sure that is, and what carries the answer.

The sentences are made from numbers alone: the transition of the headline measure (`emergence`), the evidence for an
induction head (`circuits.evidence`), what ablations cost (`circuits.ablation`) and what edges restore
(`circuits.paths`). Where a number is missing, its sentence is left out.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod

import pandas as pd

from mechinterp.analysis.headline import Evidence, guessing_level, guessing_levels, induction_evidence
from mechinterp.circuits.evidence import Fact
from mechinterp.emergence import Shape, steps_around
from mechinterp.errors import MechinterpError
from mechinterp.figures.analysed import TAKEN_OUT
from mechinterp.labels import edge_name, measure_label, removed_name
from mechinterp.measures.table import main_column
from mechinterp.models.registry import parameter_shapes
from mechinterp.run import Run

_EITHER = "earlier layers tell the keys which token stood before, or the query where the match stands"
MATTERS = 0.05
"""The least loss of accuracy of an ablation that is named, and four times that is the least effect of an edge."""
_TASKS = {
    "item_label": "The network sees {n_pairs} items, each followed by its label, then one more item, the target, and"
    " names the target's label.",
    "paired_items": "The network sees {n_pairs} items that carry their labels, then one more item, the target, and says"
    " which of two labels it has.",
    "induction_tokens": "The network reads tokens in which a random passage repeats, and names each next token.",
    "markov_chains": "The network reads tokens of a Markov chain, a new one in every sequence, and names the next one.",
    "modular_addition": "The network reads two numbers a and b and names their sum modulo {modulus}. It trains on some"
    " of the pairs and is tested on the others.",
}


@dataclass(frozen=True)
class Summary:
    """What a run has come to."""

    lead: str
    """In a sentence."""
    parts: dict[str, str] = field(default_factory=dict)
    """In a paragraph: its parts, by what they are about."""
    terms: dict[str, str] = field(default_factory=dict)
    """What the words in it mean."""

    @property
    def text(self) -> str:
        """The paragraph."""
        return " ".join(self.parts.values())


def summarise(
    run: Run,
    curve: pd.Series,
    emergence: pd.Series,
    *,
    ablations: pd.DataFrame | None = None,
    paths: pd.DataFrame | None = None,
) -> Summary:
    """The summary of a run whose headline measure is `curve`, with the row `emergence` of the emergence table.

    `ablations` and `paths` are the tables of ``ablate`` and ``paths`` at all steps, where they apply.
    """
    steps = steps_around(emergence, run.steps) if emergence["transition"] else run.steps[-1:]
    evidence = _evidence(run, steps)
    measure, n_heads = str(curve.name), run.network_config.model.n_heads if run.can_be_analysed else 1
    parts = {
        "What happened": [*_what_it_did(run, curve, emergence), *_levels(run, curve, emergence)],
        "How sure": [*_how_sure(emergence), *_evidence_in_words(evidence)],
        "What carries it": _carriers(curve, ablations, paths, steps, n_heads),
    }
    told = {about: " ".join(sentences) for about, sentences in parts.items() if sentences}
    return Summary(lead(measure, emergence, evidence), told, _terms(run, measure, evidence))


def lead(measure: str, emergence: pd.Series, evidence: Evidence | None) -> str:
    """The main result in a sentence."""
    name = measure_label(measure).name
    name = name if name[0].isupper() else name[0].upper() + name[1:]
    not_formed = f"no induction head formed by step {evidence.last:,}" if evidence and not evidence.holds else ""
    if emergence["transition"]:
        when, verb = f"around step {emergence['step']:,.0f}", "rose" if _rises(emergence) else "fell"
        if evidence and evidence.holds and evidence.before:
            return f"{name} {verb} {when}; there was an induction head already at step {evidence.first:,}."
        if evidence and evidence.holds:
            return f"An induction head formed; {name} {verb} {when}."
        return f"{name} {verb} {when}" + (f", but {not_formed}." if not_formed else ".")
    if emergence["shape"] in (Shape.several_steps.name, Shape.transient.name):
        changes = " and ".join(f"{point:,.0f}" for point in emergence["change_points"])
        result = f"{name} changed twice, around steps {changes}"
    else:
        result = f"{name} made no located transition"
    if evidence and evidence.holds:
        return f"There is an induction head at the end, but {_lowered(result)}."
    return f"{not_formed[0].upper()}{not_formed[1:]}: {_lowered(result)}." if not_formed else f"{result}."


def _evidence(run: Run, steps: Sequence[int]) -> Evidence | None:
    """The evidence for an induction head at a first and a last step; None where it is not tested."""
    with suppress(MechinterpError):
        return induction_evidence(run, [steps[0], steps[-1]]) if run.can_be_analysed else None


def percent_or_number(measure: str, value: float) -> str:
    """A value of a measure in words: a share in percent, a loss in nats."""
    unit = measure_label(measure).unit
    if unit != "share":
        return f"{value:.3g}{f' {unit}' if unit else ''}"
    near_an_end = value < 0.1 or value > 0.99
    text = f"{100 * value:.{1 if near_an_end else 0}f}"
    return f"{text.removesuffix('.0')} %"


def guess_of(run: Run, curve: pd.Series, level: float | None) -> str | None:
    """The way of guessing that has the accuracy `level`, by default that of the last tenth of the curve."""
    if not run.can_be_analysed or str(curve.name) != main_column(run):
        return None
    end = curve.iloc[-max(len(curve) // 10, 1) :].median()
    return guessing_level(run.task, float(end if level is None else level))


def _what_it_did(run: Run, curve: pd.Series, emergence: pd.Series) -> list[str]:
    """Level before and after, the step with its interval, and the width of a transition; else why there is none."""
    measure = str(curve.name)
    name = measure_label(measure).name
    if not emergence["transition"]:
        end = percent_or_number(measure, float(curve.iloc[-1]))
        guess = f", about what {level} gives" if (level := guess_of(run, curve, None)) else ""
        return [f"{_capital(name)} is {end} at the end{guess}. No transition is located: {emergence['reason']}."]
    before, after = (percent_or_number(measure, float(emergence[end])) for end in ("before", "after"))
    verb = "rose" if _rises(emergence) else "fell"
    texts = [
        f"{_capital(name)} {verb} from {before} to {after} (levels of the fit); it was halfway at step"
        f" {emergence['step']:,.0f} (95 % interval of the fit: {emergence['low']:,.0f} to {emergence['high']:,.0f}),"
        f" and 10 to 90 % of it took {emergence['width']:,.0f} steps."
    ]
    spacing = _spacing(curve, float(emergence["step"]))
    if emergence["width"] < 2 * spacing:
        texts.append(f"Checkpoints are {spacing:,} steps apart there, and resolve no finer times.")
    if emergence["low"] <= curve.index[0]:
        texts.append("The interval reaches the first checkpoint: it may have begun before.")
    if emergence["shape"] == Shape.ramp_then_jump.name:
        texts.append(f"It began slowly and ended fast, at step {max(emergence['change_points']):,.0f}.")
    return texts


def _levels(run: Run, curve: pd.Series, emergence: pd.Series) -> list[str]:
    """The ways of guessing that have the accuracies before and after a transition."""
    if not emergence["transition"]:
        return []
    before, after = (guess_of(run, curve, float(emergence[end])) for end in ("before", "after"))
    levels = guessing_levels(run.task) if run.can_be_analysed and str(curve.name) == main_column(run) else {}
    known = [f"Before, it was at the level of {before}."] if before else []
    nearest = min(levels, key=lambda name: abs(levels[name] - float(emergence["before"])), default=None)
    texts = known or ([f"For comparison: {nearest}."] if nearest else [])
    return texts + ([f"What it reaches is about what {after} gives."] if after else [])


def _how_sure(emergence: pd.Series) -> list[str]:
    """The evidence for the transition."""
    if not emergence["transition"]:
        return []
    return [
        f"A step explains the curve far better than a straight line (ΔBIC {emergence['delta_bic']:.0f}; 10 is very"
        " strong). This is one run; other seeds may differ."
    ]


def _evidence_in_words(evidence: Evidence | None) -> list[str]:
    """What was tested of an induction head."""
    if evidence is None:
        return []
    if not evidence.holds:
        missing = "; ".join(_EITHER if fact is Fact.k_composition else fact.value for fact in evidence.lacking)
        return [f"Patching at step {evidence.last:,} finds no induction head. Tests that do not hold: {missing}."]
    then = ""
    if evidence.first != evidence.last:
        then = f" At step {evidence.first:,} {'they did already' if evidence.before else 'they did not yet'}."
    weakest = min(evidence.values, key=lambda fact: 1 - abs(1 - evidence.values[fact]))
    return [
        f"Patching finds an induction head by {evidence.composition}-composition at step {evidence.last:,}: all"
        f" {len(evidence.values)} tests hold, the weakest with {evidence.values[weakest]:.2f} (1: an ideal head):"
        f" {weakest.value}.{then}"
    ]


def _carriers(
    curve: pd.Series, ablations: pd.DataFrame | None, paths: pd.DataFrame | None, steps: Sequence[int], n_heads: int
) -> list[str]:
    """The edge that restores most, and the ablations that cost most, at the end and before."""
    texts = list[str]()
    if paths is not None and (edge := strongest_edge(paths, n_heads)):
        texts.append(
            f"The strongest path between layers, {edge[0]}, alone restores {100 * edge[1]:.0f} % of a corrupted answer."
        )
    if ablations is None or not (costs := costliest(ablations, n_heads)):
        return texts
    name = measure_label(str(curve.name)).name if str(curve.name).endswith("accuracy") else "accuracy"
    listed = ", ".join(f"{what} ({100 * cost:.0f} points)" for what, cost in costs.items())
    texts.append(f"What costs most {name} when it is taken out at the end, of every layer: {listed}.")
    if single := costliest_head(ablations, n_heads):
        texts.append(f"Of single heads it is {single[0]} ({100 * single[1]:.0f} points).")
    earlier = ablations[ablations["step"] == steps[0]]
    if len(steps) > 1 and not earlier.empty:
        most = float((earlier["intact"] - earlier["value"])[earlier["ablation"].isin(TAKEN_OUT)].max())
        intact = percent_or_number(str(curve.name), float(earlier["intact"].iloc[0]))
        texts.append(
            f"Before the transition, at step {steps[0]:,} ({intact}), none cost more than {100 * most:.0f} points."
        )
    return texts


def strongest_edge(paths: pd.DataFrame, n_heads: int) -> tuple[str, float] | None:
    """The edge from one layer into a later one with the largest effect at the last step, and that effect, if it is
    4 `MATTERS` or more."""
    end = paths[paths["step"] == paths["step"].max()].dropna(subset=["effect"])
    between = end[(end["sender"] != "embed") & ~end["receiver"].isin(["classifier", "unembed"])]
    if between.empty or float(between["effect"].max()) < 4 * MATTERS:
        return None
    sender, receiver, effect = between.loc[between["effect"].idxmax(), ["sender", "receiver", "effect"]]
    return edge_name(str(sender), str(receiver), n_heads), float(effect)


def costliest(ablations: pd.DataFrame, n_heads: int, most: int = 3) -> dict[str, float]:
    """What is lost at the last step by taking out: the costliest ablation of each layer's attention and MLP, all heads
    together, by name, the largest first."""
    lost = _lost(ablations)
    heads = lost["head"] if "head" in lost else pd.Series(None, index=lost.index, dtype=float)
    whole = lost[heads.isna()].drop_duplicates("part").head(most)
    return {
        removed_name(row["hook"], row["ablation"], None, n_heads): float(row["cost"])
        for row in whole.to_dict("records")
    }


def costliest_head(ablations: pd.DataFrame, n_heads: int) -> tuple[str, float] | None:
    """The costliest ablation of a single head at the last step, and what is lost; None if the heads were not taken out
    one by one, or none costs `MATTERS`."""
    lost = _lost(ablations)
    single = lost[lost["head"].notna()] if "head" in lost else lost[:0]
    if single.empty:
        return None
    row = single.iloc[0].to_dict()
    return removed_name(row["hook"], row["ablation"], int(row["head"]), n_heads), float(row["cost"])


def _lost(ablations: pd.DataFrame) -> pd.DataFrame:
    """The ablations at the last step that take something out and cost `MATTERS` or more, the costliest first, with the
    ``part`` that they are of."""
    end = ablations[(ablations["step"] == ablations["step"].max()) & ablations["ablation"].isin(TAKEN_OUT)]
    end = end.assign(
        cost=end["intact"] - end["value"], part=end["hook"].str.extract(r"(blocks\.\d+\.(?:attn|hook_mlp))")
    )
    return end[end["cost"] >= MATTERS].sort_values("cost", ascending=False, kind="stable")


def _spacing(curve: pd.Series, step: float) -> int:
    """The distance of the two checkpoints around a step."""
    steps = curve.index.to_numpy()
    after = min(max(int(steps.searchsorted(step)), 1), len(steps) - 1)
    return int(steps[after] - steps[after - 1])


def _terms(run: Run, measure: str, evidence: Evidence | None) -> dict[str, str]:
    """What the words of the summary mean."""
    terms = dict[str, str]()
    if run.can_be_analysed and not run.origin and run.config.task.kind in _TASKS:
        settings = {"n_pairs": "several", **run.config.task.model_dump()}
        settings["n_pairs"] = getattr(run.config.task, "n_pairs", settings["n_pairs"])
        terms["Task"] = _TASKS[run.config.task.kind].format(**settings)
    if run.can_be_analysed:
        terms["Network"] = _network(run)
    label = measure_label(measure)
    if label.meaning:
        terms[_capital(label.name)] = f"{_capital(label.meaning)}."
    if evidence is not None:
        tests = ", ".join(f"{fact.value} {value:.2f}" for fact, value in evidence.values.items())
        terms["Induction head"] = (
            "Attention that finds where the present item stood before, and copies what followed it there. Its tests at"
            f" step {evidence.last:,}, by patching (1: an ideal head): {tests}."
        )
        terms["K-composition"] = (
            "How it finds it: an earlier layer has written, at every token, which token stood before; the keys of the"
            " induction head read that."
        )
    terms["Transition"] = "The middle of one fast rise or fall of a measure, found by fitting a logistic curve."
    return terms


def _network(run: Run) -> str:
    """The network in a sentence."""
    model = run.network_config.model
    layers = f"{model.n_layers} layer{'s' if model.n_layers > 1 else ''} of attention"
    heads = f"{model.n_heads} head{'s' if model.n_heads > 1 else ''}{' each' if model.n_layers > 1 else ''}"
    count = sum(prod(shape) for shape in parameter_shapes(run.network_config).values())
    return f"{layers}, {heads}{', with MLPs' if getattr(model, 'd_mlp', 0) else ''}; {count:,} trained numbers."


def _rises(emergence: pd.Series) -> bool:
    return float(emergence["after"]) >= float(emergence["before"])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lowered(text: str) -> str:
    """A sentence's first letter in lower case, unless it begins with an abbreviation."""
    return text if text[:2].isupper() else text[:1].lower() + text[1:]
