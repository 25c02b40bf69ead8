"""Commands of studies: many runs, of which one thing is varied."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mechinterp.cli.common import Json, print_result
from mechinterp.errors import MechinterpError


@dataclass
class Study:
    """Do the runs of a study that are not done yet, and compare the transitions of its variants."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help="A TOML file.")]
    workers: int | None = None
    """Processes on this machine; by default one for each core."""
    cluster: Path | None = None
    """A TOML file that says where workers run instead (mechinterp.studies.cluster)."""
    paper_scale: bool = False
    """The full thing, as the file's section [paper_scale] has it."""
    retry: bool = False
    """Try runs again that failed."""
    runs: Path = Path("checkpoints/studies")
    """Folder of the runs, by id; studies may share it."""
    out: Path | None = None
    """Folder of the table and the page; by default results/NAME, or results/NAME-paper-scale."""
    json: Json = False

    def execute(self) -> int:
        from contextlib import nullcontext

        from mechinterp.files import make_folder
        from mechinterp.report.study import write_study_report
        from mechinterp.studies.cluster import cluster
        from mechinterp.studies.conduct import compare, run_study
        from mechinterp.studies.study import Study

        if self.cluster and self.workers:
            raise MechinterpError("--workers and --cluster exclude each other; the cluster's file says how many")
        study = Study.from_toml(self.file, paper_scale=self.paper_scale)
        out = make_folder(self.out or results_folder(study.name, self.paper_scale))
        with cluster(self.cluster) if self.cluster else nullcontext() as executor:
            table = run_study(study, self.runs, workers=self.workers, executor=executor, retry=self.retry)
        csv, page = out / f"{study.name}.csv", out / f"{study.name}.html"
        table.to_csv(csv, index=False)
        write_study_report(study, table, self.runs, page)
        compared = compare(table)
        for each in table.to_dict("records"):
            if each["status"] == "failed":
                print(f"{each['variant']}, seed {each['seed']} ({each['run']}): {each['error']}", file=sys.stderr)
        result = {"study": study.name, "table": str(csv), "report": str(page), "runs": table.to_dict("records")}
        result["variants"] = compared.reset_index().to_dict("records")
        text = f"{compared.round(3).T.to_string()}\ntable: {csv}\nreport: {page}"
        print_result(result, self.json, text)
        return int((table["status"] != "done").any())


def results_folder(name: str, paper_scale: bool) -> Path:
    """The folder of a study's table and page."""
    return Path("results") / (f"{name}-paper-scale" if paper_scale else name)
