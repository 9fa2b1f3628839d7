"""A benchmark's cells or a run's JSON lines -> report.md, report.png and one self-contained report.html.

Reads `bench.json` and `cells/*.json` of one or several folders, or `metrics.jsonl` (with `result.json` and
`freeze_ledger.json`); runs nothing.
"""

from pathlib import Path

from ptft.bench import results
from ptft.core import writing
from ptft.core.errors import UserError


def write(*folders: Path, to: Path | None = None, table: bool = False) -> dict[str, Path]:
    """Writes the report of a run's folder, or of one or several benchmarks', into the first of them, or into
    `to`.

    Args:
      table: also every cell of a benchmark as a line of report.csv.
    Returns:
      {"md": path, "png": path, "html": path}, and with `table` "csv".
    Raises:
      UserError: nothing to report on in a folder, or a broken file (file, or file:line).
    """
    folders = tuple(map(Path, folders))
    for folder in folders:
        if not results.is_bench(folder) and not ((folder / "metrics.jsonl").is_file() and len(folders) == 1):
            raise UserError(_nothing_in(folder, len(folders) == 1))
    if table and not results.is_bench(folders[0]):
        raise UserError(
            f"{folders[0]}: --csv is of benchmarks; a run's numbers are lines of JSON, in metrics.jsonl"
        )
    # To draw is a second to import: a mistake is told at once.
    import jinja2

    from ptft.report import bench_csv, bench_page, figures, markdown, run_page

    page, panels = bench_page.page(folders) if results.is_bench(folders[0]) else run_page.page(folders[0])
    png, md = figures.png(panels), markdown.write(page)
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for section, its_panels in zip(page["sections"], panels, strict=True):
        section["figures"] = [
            {"svg": figures.svg(panel), "broad": figures.broad(panel)} for panel in its_panels
        ]
    made = {"md": md.encode(), "png": png, "html": env.get_template("page.html.j2").render(page).encode()}
    if table:
        made["csv"] = bench_csv.write(results.merge(folders).rows).encode()
    paths = {kind: Path(to or folders[0]) / f"report.{kind}" for kind in made}
    for kind, path in paths.items():
        with writing.at_once(path) as part:
            part.write_bytes(made[kind])
    return paths


def _nothing_in(folder: Path, alone: bool) -> str:
    """Why there is no report of a folder."""
    if (folder / "tune.json").is_file():
        return (
            f"{folder}: a search has no report; `ptft tune` prints its trials, and tune.json has all of them"
        )
    there = "it is empty" if folder.is_dir() else "the folder does not exist"
    if folder.is_dir() and (
        names := sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())[:20]
    ):
        there = f"there is: {', '.join(names)}"
    one = " or metrics.jsonl (of ptft train)" if alone else "; only benchmarks are merged"
    return f"{folder}: expected bench.json and cells/ (of ptft bench){one}; {there}"
