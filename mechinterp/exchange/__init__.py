"""Networks that were trained elsewhere, recorded in their loops or imported from files; and export of checkpoints."""
