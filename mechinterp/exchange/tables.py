"""Tables as files: CSV or Parquet."""

import io
from pathlib import Path

import pandas as pd

from mechinterp.errors import MechinterpError
from mechinterp.files import make_folder, replace_bytes


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """The path of a table, written as ``.csv`` or ``.parquet``, with its index as the first column."""
    path, content = Path(path), io.BytesIO()
    if path.suffix.lower() == ".csv":
        content.write(table.to_csv().encode())
    elif path.suffix.lower() == ".parquet":
        table.reset_index().to_parquet(content, index=False)
    else:
        raise MechinterpError(f"{path}: a table is .csv or .parquet")
    make_folder(path.parent)
    replace_bytes(path, content.getvalue())
    return path
