"""Tasks: sequences with correct labels and roles of their tokens."""

from mechinterp.tasks.base import Batch, Task, TokenTable
from mechinterp.tasks.induction_tokens import InductionTokensTask
from mechinterp.tasks.item_label import ItemLabelTask
from mechinterp.tasks.markov_chains import MarkovChainsTask
from mechinterp.tasks.modular_addition import ModularAdditionTask
from mechinterp.tasks.paired_items import PairedItemsTask
from mechinterp.tasks.registry import build_task, register_task

__all__ = [
    "Batch",
    "InductionTokensTask",
    "ItemLabelTask",
    "MarkovChainsTask",
    "ModularAdditionTask",
    "PairedItemsTask",
    "Task",
    "TokenTable",
    "build_task",
    "register_task",
]
