"""Where sequences come from."""

from mechinterp.tasks.base import Batch, Task, TokenTable
from mechinterp.tasks.item_label import ItemLabelTask
from mechinterp.tasks.paired_items import PairedItemsTask

__all__ = ["Batch", "ItemLabelTask", "PairedItemsTask", "Task", "TokenTable"]
