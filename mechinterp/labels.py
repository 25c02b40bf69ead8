"""Names that a reader understands, of measures, hooks, ablations, components, edges and blocks of QK and OV circuits.

Tables and files have short names that code can read: ``icl_accuracy``, ``blocks.0.attn.hook_pattern``, ``0.0.k``.
Pages, figures and messages have these names instead: "IC accuracy", "layer 1 attention", "layer 1 keys". In text,
layers and heads count from 1, and a layer with one head is called by its layer alone. A name that is not known here, of
a measure of one's own for instance, is shown as it is, with spaces for underscores.
"""

import re
from dataclasses import dataclass

_CLAMPED = "clamped_"


@dataclass(frozen=True)
class Label:
    """How a measure is called and what it is."""

    name: str
    """The name in text, as in the papers."""
    meaning: str = ""
    """What it measures, in a line."""
    unit: str = ""
    """``share`` of a whole, in [0, 1]; ``nats``; or nothing, for a number without unit."""


_SETS = {
    "icl": ("IC", "sequences that only the context can answer"),
    "iwl": ("IWL", "trained classes whose context does not help, so that only the weights can answer"),
    "swap": ("swapped-label", "trained classes whose labels are swapped in the context, which is right"),
    "train": ("training", "sequences as in training"),
    "test": ("test", "what was held out of training"),
    "unrepeated": ("unrepeated", "sequences without repetition, where nothing can be known"),
    "unigram": ("unigram", "sequences of independent tokens"),
}
"""The evaluation sets of the built-in tasks: a prefix, and what they are."""
_MEASURES = {
    "cla": Label("CLA", "answers that are one of the context's labels", "share"),
    "cla_mass": Label("CLA, by probability", "probability of the context's labels", "share"),
    "ila1": Label("ILA1", "attention of labels to the token before them, in layer 1", "share"),
    "ila1_all": Label("previous-token attention", "attention of all tokens to the token before, in layer 1", "share"),
    "tila2": Label("TILA2", "attention of the target to its correct label, in layer 2", "share"),
    "tla2": Label("TLA2", "attention of the target to all labels, in layer 2", "share"),
    "tca1": Label("TCA1", "attention of the target to the tokens that show its item, in layer 1", "share"),
    "tca2": Label("TCA2", "attention of the target to the tokens that show its item, in layer 2", "share"),
    "c1": Label("c₁", "mean probability of the wrong label on trained items; ½: nothing is memorised", "share"),
    "c2": Label("c₂", "how far the probability of the wrong label is from being 0 or 1", "share"),
    "c3": Label("c₃", "mean odds of the wrong label on trained items; 1 at the start"),
    "kl_to_uniform": Label("divergence from uniform", "KL(uniform ‖ network)", "nats"),
    "kl_to_unigram": Label("divergence from unigram", "KL(frequencies of tokens in the context ‖ network)", "nats"),
    "kl_to_bigram": Label("divergence from bigram", "KL(what followed in the context ‖ network)", "nats"),
    "prefix_matching_1": Label(
        "prefix matching, layer 1", "attention of repeated tokens to what followed them before", "share"
    ),
    "prefix_matching_2": Label(
        "prefix matching, layer 2", "attention of repeated tokens to what followed them before", "share"
    ),
    "previous_token_1": Label(
        "previous-token attention, layer 1", "attention of tokens to the one before them, in layer 1", "share"
    ),
    "previous_token_2": Label(
        "previous-token attention, layer 2", "attention of tokens to the one before them, in layer 2", "share"
    ),
    "embedding_gini": Label(
        "Gini of the embedding", "concentration of the embedding on few frequencies; 1: on one alone", "share"
    ),
    "restricted_loss": Label("restricted loss", "loss of the key frequencies alone", "nats"),
    "excluded_loss": Label("excluded loss", "training loss without the key frequencies", "nats"),
    "weight_norm": Label("norm of the weights", "Euclidean norm of all weights"),
    "weights_from_first": Label(
        "distance from the first checkpoint", "distance of all weights, as a share of the norm there"
    ),
    "weights_from_previous": Label(
        "distance from the checkpoint before", "distance of all weights, as a share of the norm there"
    ),
    "spikes": Label("loss spikes", "loss spikes since the checkpoint before"),
}


def measure_label(column: str) -> Label:
    """The label of a column of the table of measures; see `measure_name`."""
    if column.startswith(_CLAMPED):
        free = measure_label(column.removeprefix(_CLAMPED))
        return Label(f"{free.name}, intervened", f"{free.meaning}, under the interventions", free.unit)
    if column in _MEASURES:
        return _MEASURES[column]
    name, _, what = column.rpartition("_")
    if what == "accuracy" and name in _SETS:
        prefix, sequences = _SETS[name]
        return Label(f"{prefix} accuracy", f"right answers on {sequences}", "share")
    if what == "loss" and name in _SETS:
        prefix, sequences = _SETS[name]
        return Label(f"{prefix} loss", f"cross-entropy on {sequences}", "nats")
    unit = {"accuracy": "share", "loss": "nats"}.get(what or column, "")
    return Label(column.replace("_", " "), unit=unit)


def set_label(evaluation: str) -> Label:
    """The name and the meaning of an evaluation set: ``icl`` is "IC", sequences that only the context can answer."""
    return Label(*_SETS[evaluation]) if evaluation in _SETS else Label(evaluation.replace("_", " "))


def measure_name(column: str) -> str:
    """The name of a column of the table of measures: ``icl_accuracy`` is "IC accuracy"."""
    return measure_label(column).name


def head_name(layer: int, head: int | None = None, n_heads: int = 1) -> str:
    """The name of a head, counted from 0: "layer 2, head 3", or "layer 2" of all of its heads or if it has but one."""
    return f"layer {layer + 1}" + (f", head {head + 1}" if head is not None and n_heads > 1 else "")


_HOOKS = {
    **{"attn.hook_pattern": "attention", "attn.hook_attn_scores": "attention scores", "attn.hook_q": "queries"},
    **{"attn.hook_k": "keys", "attn.hook_v": "values", "attn.hook_z": "output", "hook_attn_out": "attention output"},
    **{"hook_mlp_out": "MLP", "mlp.hook_pre": "MLP input", "mlp.hook_post": "MLP neurons"},
    **{"hook_resid_pre": "input", "hook_resid_mid": "stream after attention", "hook_resid_post": "stream"},
    **{"ln1.hook_normalized": "normalised input", "ln2.hook_normalized": "normalised input of the MLP"},
}
_HOOKS_OUTSIDE = {
    **{"hook_embed": "embedding", "hook_pos_embed": "positions", "classifier.hook_in": "classifier input"},
    **{"unembed.hook_out": "logits", "ln_final.hook_normalized": "normalised final stream"},
}


def hook_name(hook: str, head: int | None = None, n_heads: int = 1) -> str:
    """The name of what is at a hook: ``blocks.0.attn.hook_pattern`` is "layer 1 attention"."""
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", hook):
        layer, rest = match.groups()
        what = _HOOKS.get(rest, rest.rpartition("hook_")[2].replace("_", " "))
        return _of(head_name(int(layer), head, n_heads), what)
    return _HOOKS_OUTSIDE.get(hook, hook.rpartition("hook_")[2].replace("_", " "))


_REPLACED = {"zero": "zeroed", "mean": "averaged", "resample": "of another sequence"}
_ATTENDING = {
    "uniform": "uniform attention",
    "previous_token": "previous-token attention only",
    "not_previous_token": "without previous-token attention",
    "correct_label": "attention to the correct label only",
}


def ablation_name(ablation: str) -> str:
    """The name of a way of ablating (`circuits.ablation.Ablation`): ``not_previous_token`` is "without previous-token
    attention"."""
    return _REPLACED.get(ablation) or _ATTENDING.get(ablation) or ablation.replace("_", " ")


def ablated_name(hook: str, ablation: str, head: int | None = None, n_heads: int = 1) -> str:
    """What an ablation leaves of an activation: "layer 1: without previous-token attention", "layer 2 values
    zeroed"."""
    match = re.fullmatch(r"blocks\.(\d+)\.attn\.hook_pattern", hook)
    if match and ablation in _ATTENDING:
        return f"{head_name(int(match[1]), head, n_heads)}: {_ATTENDING[ablation]}"
    return f"{hook_name(hook, head, n_heads)} {ablation_name(ablation)}"


def removed_name(hook: str, ablation: str, head: int | None = None, n_heads: int = 1) -> str:
    """What an ablation takes away: "layer 1 previous-token attention" by ``not_previous_token``, "layer 2 output" by
    ``mean``."""
    match = re.fullmatch(r"blocks\.(\d+)\.attn\.hook_pattern", hook)
    if match and ablation == "not_previous_token":
        return _of(head_name(int(match[1]), head, n_heads), "previous-token attention")
    return hook_name(hook, head, n_heads)


_THROUGH = {"q": "queries", "k": "keys", "v": "values"}
_ENDS = {"embed": "embedding", "classifier": "classifier", "unembed": "unembedding", "answer": "answer"}


def component_name(component: str, n_heads: int = 1) -> str:
    """The name of a sender or a receiver of path patching.

    ``embed`` is "embedding", ``0.0`` is "layer 1 output", ``0.mlp`` is "layer 1 MLP", ``1.0.k`` is "layer 2 keys", and,
    of several heads, "layer 2, head 1: keys".
    """
    if match := re.fullmatch(r"(\d+)\.mlp", component):
        return f"layer {int(match[1]) + 1} MLP"
    if match := re.fullmatch(r"(\d+)\.(\d+)(?:\.([qkv]))?", component):
        layer, head, through = match.groups()
        what = _THROUGH[through] if through else "output"
        return _of(head_name(int(layer), int(head), n_heads), what)
    return _ENDS.get(component, component.replace("_", " "))


def edge_name(sender: str, receiver: str, n_heads: int = 1) -> str:
    """The name of an edge: "layer 1 output → layer 2 keys"."""
    return f"{component_name(sender, n_heads)} → {component_name(receiver, n_heads)}"


def block_name(layer: int, head: int, part: str, other: str, n_heads: int = 1) -> str:
    """The name of a query–key interaction, or of a block of an OV circuit: "layer 2: content → buffer"."""
    return f"{head_name(layer, head, n_heads)}: {part} → {other}"


_PLACES = {
    **{"other_item": "other items", "other_label": "other labels", "other": "other tokens"},
    **{"correct_item": "correct item", "correct_label": "correct label", "target": "target", "answer": "answer"},
}


def role_name(role: str) -> str:
    """The name of a role of tokens: ``correct_label`` is "correct label"."""
    return _PLACES.get(role, role.replace("_", " "))


def node_name(node: str, role: str | None = None) -> str:
    """The name of a node of the circuit diagram, with another name for its role if one is given.

    ``token.target`` is "token of the target", ``1.k.correct_label`` "layer 2 keys of the correct label",
    ``0.correct_label`` "layer 1 output at the correct label", and ``1.h2.q.target`` "layer 2, head 3: queries of the
    target".
    """
    if match := re.fullmatch(r"token\.(.+)", node):
        return f"token of the {role or role_name(match[1])}"
    if match := re.fullmatch(r"(\d+)\.(?:h(\d+)\.)?(?:([qkv]|mlp)\.)?(.+)", node):
        layer, head, through, of = match.groups()
        what = {**_THROUGH, "mlp": "MLP output"}.get(through, "output")
        what += f" {'of' if through in _THROUGH else 'at'} the {role or role_name(of)}"
        return _of(head_name(int(layer), *(() if head is None else (int(head), 2))), what)
    return _PLACES.get(node, node.replace("_", " "))


def parameter_name(parameter: str) -> str:
    """The name of a weight: ``blocks.0.attn.W_Q`` is "layer 1 W_Q", ``embed.W_E`` is "embedding W_E"."""
    if match := re.fullmatch(r"blocks\.(\d+)\.(attn|mlp|ln1|ln2)\.(.+)", parameter):
        layer, part, name = match.groups()
        inside = {"attn": "", "mlp": "MLP ", "ln1": "normalisation ", "ln2": "MLP normalisation "}[part]
        return f"layer {int(layer) + 1} {inside}{name}"
    part, _, name = parameter.partition(".")
    outside = {"embed": "embedding", "pos_embed": "positions", "unembed": "unembedding", "ln_final": "normalisation"}
    return f"{outside.get(part, part.replace('_', ' '))} {name}".strip()


def _of(head: str, what: str) -> str:
    return f"{head}: {what}" if "," in head else f"{head} {what}"
