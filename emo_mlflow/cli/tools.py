"""Commands of `emo-mlflow` that make files for other tools and readers, and scorers: options to work, as in main.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from emo_mlflow.cli.options import parameter_options
from emo_mlflow.settings.tables import EXPORT
from emo_mlflow.types import VectorFormat


@click.command("export-legacy")
@click.option("--run-id", required=True, help="A finished sweep.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write into.")
@click.option("--tracking-uri", default=None, help="MLflow tracking store.")
def export_legacy_command(run_id: str, out: Path, tracking_uri: str | None) -> None:
    """Write a sweep as the first system's pickle."""
    from emo_mlflow.interchange.first_system import export_legacy
    from emo_mlflow.tracking.reading import load_sweep

    for path in export_legacy(load_sweep(run_id, tracking_uri), out):
        click.echo(path)


@click.command("export-vectors")
@click.option("--directions", required=True, help="Id of a vectors, sweep or alignment run, or a .safetensors file.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@click.option("--format", "form", type=click.Choice(get_args(VectorFormat)), default="gguf", show_default=True, help="What it is for.")
@click.option("--emotion", default=None, help="Whose direction; may be left out where there is one only.")
@click.option("--layers", default=None, help="Layers to write, as in a sweep; by default the best one (all of them as safetensors).")
@click.option("--alpha", type=float, default=1.0, show_default=True, help="What the vectors are multiplied by.")
@click.option("--model-type", default=None, help="model_type of the model's configuration, where the file does not say.")
@click.option("--tracking-uri", default=None, help="MLflow tracking store.")
def export_vectors_command(
    directions: str,
    out: Path,
    form: Any,
    emotion: str | None,
    layers: str | None,
    alpha: float,
    model_type: str | None,
    tracking_uri: str | None,
) -> None:
    """Write a direction for another tool.

    For llama.cpp and repeng (gguf), for lm-evaluation-harness (lm-eval), or as plain safetensors.
    """
    from emo_mlflow.interchange.vector_files import ExportSettings, export_vectors
    from emo_mlflow.tracking.sweep_run import fetch_directions

    file = fetch_directions(directions, tracking_uri)
    click.echo(export_vectors(ExportSettings(file, out, form, emotion, layers, alpha, model_type, directions)))


@click.command("import-vectors")
@click.option("--source", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="A GGUF control vector or safetensors.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .safetensors file to write.")
@click.option("--emotion", default="imported", show_default=True, help="Name of the direction, where the file has none.")
@click.option("--model", default=None, help="The model that it is for; checked, and needed where the file leaves layers open.")
@click.option("--block", type=click.IntRange(0), default=None, help="To whose output its one vector is added, where the file does not say.")
def import_vectors_command(source: Path, out: Path, emotion: str, model: str | None, block: int | None) -> None:
    """Read another tool's direction, for `sweep --directions`."""
    from emo_mlflow.interchange.vector_files import ImportSettings, import_vectors

    click.echo(import_vectors(ImportSettings(source, out, emotion, model, block)))


@click.command("label")
@click.argument("run_id")
@click.option("--n", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Texts to draw, at most.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed draws other texts.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=None, help="The sheet.  [labels-RUN.csv]")
@click.option("--tracking-uri", default=None, help="MLflow tracking store.")
def label_command(run_id: str, n: int, seed: int, out: Path | None, tracking_uri: str | None) -> None:
    """Draw texts of a finished sweep for blind readers.

    Writes a sheet that does not say how the texts were made, and a page to label them in.
    """
    from emo_mlflow.commands.label import write_label_sheet

    write_label_sheet(run_id, n, seed, out, tracking_uri, click.echo)


@click.command("agree")
@click.argument("sheets", nargs=-1, required=True, metavar="SHEET [SHEET2]", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--run-id", required=True, help="The sweep that the texts are of.")
@click.option("--tracking-uri", default=None, help="MLflow tracking store.")
def agree_command(sheets: tuple[Path, ...], run_id: str, tracking_uri: str | None) -> None:
    """Log what readers' labels say of the scores.

    How well one or two readers agree, how well the scores agree with them, and the effects corrected by their labels.
    """
    from emo_mlflow.commands.agree import run_agreement

    run_agreement(sheets, run_id, tracking_uri, click.echo)


@click.command("train-scorer")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder with the corpora.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write the scorer into."
)
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--cross-validate/--no-cross-validate",
    default=False,
    show_default=True,
    help="Measure politeness by cross-validation too.",
)
def train_scorer_command(data: Path, out: Path, epochs: int, seed: int, cross_validate: bool) -> None:
    """Train the embedded scorer.

    Sentiment, politeness and the 28 GoEmotions on one small encoder, as one int8 ONNX graph.
    """
    from emo_mlflow.evaluators.embedded_scorer import train_scorer

    card = train_scorer(data, out, epochs, seed, cross_validate)
    click.echo(f"Wrote {card.name} to {out}")


@click.command("export")
@parameter_options(EXPORT)
def export_command(**given: str | None) -> None:
    """Export a classifier to ONNX, checked against PyTorch.

    Into the cache that sweeps read from. In brackets: the default.
    """
    from emo_mlflow.commands.export import run_export

    run_export(given, click.echo)


COMMANDS = (
    export_legacy_command, export_vectors_command, import_vectors_command, label_command, agree_command, train_scorer_command, export_command,
)  # fmt: skip
