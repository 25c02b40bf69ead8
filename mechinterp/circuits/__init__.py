"""What the weights do: subspaces, QK and OV circuits, order parameters, patching and ablation."""
