"""Where sequences come from."""

from mechinterp.tasks.base import Batch, Task, TokenTable
from mechinterp.tasks.item_label import ItemLabelTask

__all__ = ["Batch", "ItemLabelTask", "Task", "TokenTable"]
