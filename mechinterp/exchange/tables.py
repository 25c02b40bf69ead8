"""Tables as files: CSV or Parquet."""

import io
from pathlib import Path

import pandas as pd

from mechinterp.errors import MechinterpError
from mechinterp.files import make_folder, replace_bytes, require_path


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """The path of a table, written as ``.csv`` or ``.parquet``, with its index as the first column."""
    if not isinstance(table, pd.DataFrame):
        raise MechinterpError(f"table is a {type(table).__name__}; expected a DataFrame, as mi.measure(run)")
    path, content = require_path(path), io.BytesIO()
    if path.suffix.lower() == ".csv":
        content.write(table.to_csv().encode())
    elif path.suffix.lower() == ".parquet":
        table.reset_index().to_parquet(content, index=False)
    else:
        raise MechinterpError(f"{path}: a table is .csv or .parquet")
    make_folder(path.parent)
    replace_bytes(path, content.getvalue())
    return path
