"""The measures of a study's runs on disk: ``{id}.csv``, step × measure, whose digest is in the outcome of the run."""

import hashlib
from io import BytesIO
from pathlib import Path

import pandas as pd

from mechinterp.files import read_regular, replace_text


def write_table(path: Path, table: pd.DataFrame) -> str:
    """Write a run's measures; the SHA-256 of the file, which goes into the outcome."""
    text = table.to_csv()
    replace_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_table(path: Path, digest: str | None) -> pd.DataFrame | None:
    """A run's measures; None if the file is missing, or is not the one with this digest."""
    try:
        content = read_regular(path)
    except OSError:
        return None
    is_same = hashlib.sha256(content).hexdigest() == digest
    return pd.read_csv(BytesIO(content), index_col="step") if is_same else None
