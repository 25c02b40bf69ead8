"""Built-in analyses of circuits as sets of edges, and of the approximations by which edges are chosen."""

from typing import Annotated

import pandas as pd

from mechinterp.analysis.tables import CorruptionName, DirectionName, MetricName, Pairs, Seed, path_corruption
from mechinterp.circuits.circuit_pass import Replacement
from mechinterp.circuits.faithfulness import Ranking, faithfulness_curve
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Direction
from mechinterp.circuits.patching import patch as patch_sites
from mechinterp.circuits.paths import patch_paths
from mechinterp.errors import NamedEnum
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import corrupted_pairs

IntegrationSteps = Annotated[int, "Steps of integrated gradients."]
RankingName = Annotated[Ranking, "effect, attribution or integrated: the order in which edges are added."]
ReplacementName = Annotated[Replacement, "mean, resample or corrupt: what edges outside of the circuit carry."]


class Part(NamedEnum):
    """What a row of ``attribution`` is of."""

    site = "a site of `patch`: hook, role, head"
    edge = "an edge of `patch_paths`: sender, receiver"


def faithfulness(
    network: Network,
    task: Task,
    *,
    ranking: RankingName = Ranking.effect,
    metric: MetricName = Metric.logit_difference,
    replacement: ReplacementName = Replacement.mean,
    corruption: CorruptionName = None,
    integration_steps: IntegrationSteps = 8,
    n_pairs: Pairs = 256,
    seed: Seed = 0,
) -> pd.DataFrame:
    """The curve of `faithfulness_curve`: n_edges, the edge that is added, faithfulness, completeness, accuracy, ….

    The corruption gives the wrong label of every pair, and with ``corrupt`` the ablated values.
    """
    pairs = corrupted_pairs(task, corruption or path_corruption(task), n_pairs=n_pairs, seed=seed)
    options = {"integration_steps": integration_steps, "seed": seed}
    return faithfulness_curve(network, pairs, ranking=ranking, metric=metric, replacement=replacement, **options)


def attribution(
    network: Network,
    task: Task,
    *,
    corruption: CorruptionName = None,
    metric: MetricName = Metric.logit_difference,
    direction: DirectionName = Direction.denoise,
    integration_steps: IntegrationSteps = 8,
    n_pairs: Pairs = 256,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Every site and edge with its effect and the two approximations of it (`circuits.attribution`).

    part (`Part`), hook, role and head of a site (head −1: all of them; empty role: all positions), sender and receiver
    of an edge, effect, attribution, integrated, and attribution_gap and integrated_gap, which are what an
    approximation says too much.
    """
    pairs = corrupted_pairs(task, corruption or path_corruption(task), n_pairs=n_pairs, seed=seed)
    sites = patch_sites(network, pairs, metric=metric, direction=direction, integration_steps=integration_steps)
    edges = patch_paths(network, pairs, metric=metric, direction=direction, integration_steps=integration_steps)
    sites = sites.assign(part=Part.site.name, sender="", receiver="")
    sites["head"], sites["role"] = sites["head"].fillna(-1).astype(int), sites["role"].fillna("")
    table = pd.concat([sites, edges.assign(part=Part.edge.name, hook="", role="", head=-1)], ignore_index=True)
    gaps = {f"{name}_gap": table[name] - table["effect"] for name in ("attribution", "integrated")}
    names = ["part", "hook", "role", "head", "sender", "receiver", "effect", "attribution", "integrated"]
    return table.assign(**gaps)[[*names, *gaps, "span", "span_error"]]
