"""A training step of networks with all parts: ours, plain PyTorch, and TransformerLens, interleaved.

    python -m benchmarks.transformer [--rounds 15] [--json]

All start from the same weights, and their first losses are compared. Ours is the engine's step, as in training: it also
gives the accuracy and the norm of the gradient. Plain PyTorch is written as nanoGPT is: one product for queries, keys
and values, torch's fused attention and LayerNorm, `torch.optim.AdamW` as it comes (`plain`) or fused (`plain_fused`).
TransformerLens' HookedTransformer, of version 3.9, is trained by the same optimizer. Batches are given.

Then runs of small networks that differ in their seed, in one batch against one after the other; and patching of all
sites of a network against a loop of `run_with_hooks`.
"""

import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import mechinterp as mi
from analyses._common import run_analysis
from benchmarks.patching import two_ways
from benchmarks.timing import interleaved, machine, median_ratio
from mechinterp.circuits.activations import activations_of
from mechinterp.circuits.patching import sites
from mechinterp.config import TransformerConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.hooked import HookedNetwork
from mechinterp.models.hooked_lens import HookedTransformer, HookedTransformerConfig
from mechinterp.models.layer import ACTIVATIONS, distance_buckets
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters
from mechinterp.tasks.base import Batch
from mechinterp.tasks.corruption import Corruption, corrupted_pairs
from mechinterp.training.engines import AutogradEngine

COMMON: dict[str, Any] = {"kind": "transformer", "input": "tokens", "output": "unembedding", "biases": True}
COMMON |= {"output_matrix": "trained", "use_attn_scale": True, "init_mode": "transformer_lens"}
ADAMW: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "loss_at": "all"}
TOKENS: dict[str, Any] = {"kind": "induction_tokens", "n_tokens": 64, "n_pos": 48}
WIDE: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "d_model": 64, "d_head": 16, "normalization_type": "LN"}
SMALL: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 32, "d_head": 16, "normalization_type": "LN"}


def _custom(n_tokens: int, n_pos: int) -> dict[str, Any]:
    return {"kind": "custom", "name": "random", "n_tokens": n_tokens, "n_pos": n_pos, "n_labels": n_tokens}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "attention": (TOKENS, WIDE | {"positional_embedding_type": "rotary"}, {"batch_size": 64}),
    "mlp": (
        TOKENS,
        WIDE | {"positional_embedding_type": "standard", "d_mlp": 256, "act_fn": "gelu"},
        {"batch_size": 64},
    ),
    "grokking": (
        _custom(114, 3),
        {"n_layers": 1, "n_heads": 4, "d_model": 128, "d_head": 32, "d_mlp": 512}
        | {"positional_embedding_type": "standard"},
        {"batch_size": 3831, "loss_at": "target", "weight_decay": 0.999},
    ),
    "relative": (
        _custom(3, 100),
        {"n_layers": 2, "d_model": 16, "normalization_type": "LN"}
        | {"positional_embedding_type": "relative_positional_bias"},
        {"batch_size": 64},
    ),
}
"""Task, model and training of every case."""
SEEDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "seeds_16": (_custom(16, 16), SMALL | {"positional_embedding_type": "standard"}, {"batch_size": 32}),
    "seeds_48": (
        TOKENS | {"n_tokens": 32, "max_period": 16},
        SMALL | {"positional_embedding_type": "rotary"},
        {"batch_size": 32},
    ),
    "seeds_mlp": (_custom(16, 8), SMALL | {"positional_embedding_type": "standard", "d_mlp": 64}, {"batch_size": 32}),
}
"""Small networks, of which several seeds are trained."""
N_SEEDS = 8


@dataclass
class Transformer:
    """Time a training step, seeds together and patching of networks with all parts."""

    rounds: int = 15
    """Rounds, each running every variant in turn."""
    only: tuple[str, ...] = ()
    """Cases to run; all by default."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        result: dict[str, object] = {}
        parts: list[tuple[str, Callable[[], dict[str, Callable[[], int]]], list[tuple[str, str]]]] = [
            *((name, lambda name=name: _steps(name), [("ours", "plain"), ("ours", "plain_fused"), ("lens", "ours")])
              for name in CASES),
            *((name, lambda name=name: _seeds(name), [("alone", "together")]) for name in SEEDS),
            *((f"patching_{name}", lambda name=name: _patching(name), [("run_with_hooks", "patch")])
              for name in list(CASES)[:2]),
        ]  # fmt: skip
        for name, make, ratios in parts:
            if self.only and name not in self.only:
                continue
            times = interleaved(make(), self.rounds)
            found = {f"{name}.{variant}_ms": round(statistics.median(each), 3) for variant, each in times.items()}
            found |= {f"{name}.{a}/{b}": round(median_ratio(times[a], times[b]), 2) for a, b in ratios}
            result |= found
            if not self.json:
                print("\n".join(f"{name:32}{value}" for name, value in found.items()), flush=True)
        print(json.dumps(result | machine()) if self.json else machine())


def _config(case: tuple[dict[str, Any], dict[str, Any], dict[str, Any]], seed: int = 0) -> mi.RunConfig:
    task, model, training = case
    return mi.RunConfig.from_dict({"task": task, "model": COMMON | model, "training": ADAMW | training, "seed": seed})


def _batches(config: mi.RunConfig, count: int = 8) -> list[Batch]:
    """Training batches; of a custom task, random tokens whose sums are the answers."""
    size, task = config.training.batch_size, config.task
    if task.kind != "custom":
        drawn = mi.build_task(config)
        return [drawn.train_batch(step, size) for step in range(count)]
    generator = torch.Generator().manual_seed(config.seed)
    tokens = [torch.randint(task.d_vocab, (size, task.n_pos), generator=generator) for _ in range(count)]
    answers = [of_batch.cumsum(dim=1) % task.n_labels for of_batch in tokens]
    return [Batch(x, y[:, -1].clone(), answers=y) for x, y in zip(tokens, answers, strict=True)]


def _steps(name: str) -> dict[str, Callable[[], int]]:
    """A training step of every variant, after their first losses were compared."""
    config = _config(CASES[name])
    start, batches = initial_parameters(config), _batches(config)
    engine = AutogradEngine([config], [start])
    count = {"grokking": 1}.get(name, 4)
    given = cycle(batches)

    def ours() -> int:
        for step in range(count):
            engine.step(next(given), step=step)
        return count

    rate, decay = config.training.learning_rate, config.training.weight_decay
    adamw = lambda model, **how: torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, **how)  # noqa: E731
    variants: dict[str, tuple[nn.Module, dict[str, bool]]] = {
        "plain": (Plain(config, start), {}),
        "plain_foreach": (Plain(config, start), {"foreach": True}),
        "plain_fused": (Plain(config, start), {"fused": True}),
        "lens": (lens_model(config, start), {}),
    }
    first, at_target = engine.gradients(batches[0])[0], config.training.loss_at == "target"
    cases: dict[str, Callable[[], int]] = {"ours": ours}
    for variant, (model, how) in variants.items():
        theirs = _loss(model(batches[0].inputs), batches[0], at_target).item()
        if abs(theirs - first) > 1e-4:
            raise MechinterpError(f"{name}: the first loss is {first:g}, of {variant} {theirs:g}")

        cases[variant] = _trained(model, adamw(model, **how), given, count, at_target)
    return cases


def _trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, given: Iterator[Batch], count: int, at_target: bool
) -> Callable[[], int]:
    """Takes `count` steps of a plain loop, and returns their number."""

    def steps() -> int:
        for batch in islice(given, count):
            loss = _loss(model(batch.inputs), batch, at_target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        return count

    return steps


def _loss(logits: Tensor, batch: Batch, at_target: bool) -> Tensor:
    if at_target:
        return functional.cross_entropy(logits[:, -1], batch.labels)
    assert batch.answers is not None
    return functional.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())


class Plain(nn.Module):
    """The network in plain PyTorch, as nanoGPT is written."""

    def __init__(self, config: mi.RunConfig, start: dict[str, Tensor]):
        super().__init__()
        model = config.model
        assert isinstance(model, TransformerConfig)
        self.at_target, kind = config.training.loss_at == "target", model.positional_embedding_type
        self.embed = nn.Embedding.from_pretrained(start["embed.W_E"].clone(), freeze=False)
        self.positions = None
        if kind == "standard":
            self.positions = nn.Parameter(start["pos_embed.W_pos"].clone())
        self.blocks = nn.ModuleList(
            PlainBlock(model, config.task.n_pos, _of(start, f"blocks.{layer}.")) for layer in range(model.n_layers)
        )
        self.norm = _norm(start, "ln_final")
        self.unembed = _linear(start["unembed.W_U"], start["unembed.b_U"])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.norm(x[:, -1:] if self.at_target else x))


class PlainBlock(nn.Module):
    """Attention by torch's fused function, and an MLP."""

    def __init__(self, model: TransformerConfig, n_pos: int, start: dict[str, Tensor]):
        super().__init__()
        self.heads = model.n_heads
        W = torch.cat([start[f"attn.W_{name}"].transpose(0, 1).flatten(1) for name in "QKV"], dim=1)
        self.qkv = _linear(W, torch.cat([start[f"attn.b_{name}"].flatten() for name in "QKV"]))
        self.out = _linear(start["attn.W_O"].flatten(0, 1), start["attn.b_O"])
        self.norm1, self.mlp = _norm(start, "ln1"), None
        if model.d_mlp:
            self.norm2, self.act = _norm(start, "ln2"), ACTIVATIONS[model.act_fn]
            self.mlp = _linear(start["mlp.W_in"], start["mlp.b_in"])
            self.down = _linear(start["mlp.W_out"], start["mlp.b_out"])
        self.cos, self.sin, self.buckets = torch.empty(0), torch.empty(0), None
        if model.positional_embedding_type == "rotary":
            half = start["attn.W_Q"].shape[-1] // 2
            angle = torch.arange(n_pos)[:, None] * model.rotary_base ** (-torch.arange(half) / half)
            self.cos, self.sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        if model.positional_embedding_type == "relative_positional_bias":
            self.buckets = distance_buckets(model, n_pos)
            self.bias = nn.Parameter(start["attn.rel_pos_bias"].clone())
            self.later = torch.zeros(n_pos, n_pos).masked_fill(torch.ones(n_pos, n_pos).triu(1).bool(), -torch.inf)

    def forward(self, x: Tensor) -> Tensor:
        batch, n_pos, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, n_pos, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if len(self.cos):
            q, k = self._rotated(q), self._rotated(k)
        if self.buckets is None:
            z = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            bias = functional.embedding(self.buckets, self.bias).permute(2, 0, 1) + self.later
            z = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        x = x + self.out(z.transpose(1, 2).reshape(batch, n_pos, -1))
        return x if self.mlp is None else x + self.down(self.act(self.mlp(self.norm2(x))))

    def _rotated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], dim=-1) * self.sin


def _of(start: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in start.items() if name.startswith(prefix)}


def _linear(W: Tensor, b: Tensor) -> nn.Linear:
    linear = nn.Linear(W.shape[0], W.shape[1])
    linear.weight, linear.bias = nn.Parameter(W.T.contiguous()), nn.Parameter(b.clone())
    return linear


def _norm(start: dict[str, Tensor], name: str) -> nn.Module:
    if f"{name}.w" not in start:
        return nn.Identity()
    norm = nn.LayerNorm(len(start[f"{name}.w"]))
    norm.load_state_dict({"weight": start[f"{name}.w"], "bias": start[f"{name}.b"]})
    return norm


def lens_model(config: mi.RunConfig, start: dict[str, Tensor]) -> HookedTransformer | HookedNetwork:
    """TransformerLens' own model; with relative biases, which it has for T5 alone, our view of the network in it."""
    network, model = Network(config, start), config.model
    assert isinstance(model, TransformerConfig)
    if model.positional_embedding_type == "relative_positional_bias":
        return HookedNetwork(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = HookedTransformer(
            HookedTransformerConfig(
                n_layers=model.n_layers,
                n_heads=model.n_heads,
                d_model=network.d_model,
                d_head=model.head_width(config.task),
                d_mlp=model.d_mlp,
                act_fn=model.act_fn,
                attn_only=model.attn_only,
                n_ctx=config.task.n_pos,
                d_vocab=config.task.d_vocab,
                d_vocab_out=config.task.n_labels,
                normalization_type=model.normalization_type,
                positional_embedding_type=str(model.positional_embedding_type),
                device="cpu",
            )
        )
    theirs.load_state_dict(start, strict=False)
    return theirs


def _seeds(name: str) -> dict[str, Callable[[], int]]:
    """A step of several runs in one batch, and of one after the other; milliseconds per step of a run."""
    configs = [_config(SEEDS[name], seed) for seed in range(N_SEEDS)]
    starts, batches = [initial_parameters(config) for config in configs], [_batches(config) for config in configs]
    together = AutogradEngine(configs, starts)
    alone = [AutogradEngine([config], [start]) for config, start in zip(configs, starts, strict=True)]

    def run_together() -> int:
        for step in range(4):
            together.step_runs([of_run[step] for of_run in batches], [None] * N_SEEDS, [step] * N_SEEDS)
        return 4 * N_SEEDS

    def run_alone() -> int:
        for engine, of_run in zip(alone, batches, strict=True):
            for step in range(4):
                engine.step(of_run[step], step=step)
        return 4 * N_SEEDS

    return {"together": run_together, "alone": run_alone}


def _patching(name: str) -> dict[str, Callable[[], int]]:
    """Patching of every hook × role, per site, after the two ways were compared."""
    config = _config(CASES[name])
    task, start = mi.build_task(config), initial_parameters(config)
    network, model = Network(config, start), lens_model(config, start)
    pairs = corrupted_pairs(task, Corruption.replace_target, n_pairs=256)
    where = sites(activations_of(network)(pairs.clean.inputs[:2]), pairs.roles)
    return two_ways(network, model, pairs, where)[0]


if __name__ == "__main__":
    run_analysis(Transformer)
