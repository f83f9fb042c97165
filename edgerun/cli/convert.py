"""`edgerun convert`."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgerun.verbs.convert import Parity


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .onnx file to write.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME:DTYPE[DIMS]",
    help="An input as image:float32[batch,3,224,224]; words are dynamic dimensions. Repeat in call order.",
)
@click.option(
    "--factory", metavar="MODULE:CALLABLE", help="Builds the nn.Module or keras.Model that a file's weights belong to."
)
@click.option("--from", "converter", metavar="NAME", help="The converter to use, instead of asking the file.")
@click.option("--target", metavar="NAME", help="Whose opset and IR limits to keep (onnxruntime, or the device's).")
@click.option("--device", metavar="NAME|FILE.toml", help="The device whose limits to keep (edgerun devices).")
@click.option("--opset", type=int, help="The newest ONNX opset to write, instead of the preferred one.")
@click.option(
    "--trust",
    is_flag=True,
    help="Run the code that a file brings (.joblib, .pkl, types of your own), with your rights.",
)
@click.option(
    "--preprocessing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What happens to a picture before the model: edgerun's JSON, preprocessor_config.json, timm's config.json, or "
    "an .onnx that tells it. Kept in the model.",
)
@click.option(
    "--postprocessing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the outputs mean: edgerun's JSON, config.json of Transformers or timm, or an .onnx that tells it.",
)
@click.option(
    "--fold-preprocessing",
    "fold",
    is_flag=True,
    help="Move scale, mean, std, channel order and layout into the graph: the input becomes uint8 NHWC.",
)
@click.option(
    "--data",
    metavar="FILE.npz|FOLDER|MODULE:CALLABLE",
    help="Inputs of your own to compare on, beside random ones: the first 32 samples.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=900,
    show_default=True,
    metavar="SECONDS",
    help="End the work on the file after this time.",
)
@click.option(
    "--loop-timeout",
    type=click.FloatRange(min=0.1),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="End one run of a model with loops after this time.",
)
@click.option(
    "--memory-cap",
    type=click.FloatRange(min=0),
    default=0,
    metavar="GIB",
    help="Memory for the work on the file; default: this machine's.",
)
@click.option(
    "--reproduction",
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="Where PyTorch cannot export the model: write the smallest part that fails, as a program.",
)
@click.option("--signature", metavar="NAME", help="Which one to convert, of a SavedModel or TFLite file with several.")
@click.option("--as-is", is_flag=True, help="Leave the graph of an ONNX file as it came: not simplified.")
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")  # fmt: skip
def command(
    source: Path, output: Path, inputs: tuple[str, ...], factory: str | None, converter: str | None, target: str | None,
    device: str | None, opset: int | None, trust: bool, preprocessing: Path | None,
    postprocessing: Path | None, fold: bool, data: str | None, timeout: float, loop_timeout: float, memory_cap: float,
    reproduction: Path | None, signature: str | None, as_is: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Bring a trained model in: PyTorch, Keras, TensorFlow, TFLite, scikit-learn or ONNX to checked ONNX.

    Ends with a comparison with the source on random inputs, and on --data; when one fails, nothing is written (exit 1).
    """
    os.environ.setdefault(
        "OPENBLAS_THREAD_TIMEOUT", "4"
    )  # numpy's threads have no work here, and would wait by spinning
    from edgerun.sandbox import Limits
    from edgerun.verbs import meaning
    from edgerun.verbs.convert import Parity, convert

    progress = logging.StreamHandler()
    logging.getLogger("edgerun").addHandler(progress)
    logging.getLogger("edgerun").setLevel(logging.INFO)
    try:
        model = convert(
            source, output=output, inputs=inputs, factory=factory, converter=converter, target=target, device=device,
            opset=opset, trust=trust, preprocessing=preprocessing, postprocessing=postprocessing,
            fold_preprocessing=fold, force=force, reproduction=reproduction, signature=signature, as_is=as_is,
            data=data, limits=Limits(memory=int(memory_cap * 2**30), wall_seconds=timeout, loop_seconds=loop_timeout),
        )  # fmt: skip
    finally:
        logging.getLogger("edgerun").removeHandler(progress)
    step = next(step for step in reversed(model.history) if "parity" in step.options)
    compared = {key: Parity.of(model, key) for key in ("parity", "parity on data") if key in step.options}
    if as_json:
        doors = {"inputs": [str(s) for s in model.inputs], "outputs": [str(s) for s in model.outputs]}
        routes = next(({"routes": s.options["routes"]} for s in model.history if "routes" in s.options), {})
        routes |= {key: step.options[key] for key in ("nodes", "compared before") if key in step.options}
        told = {"output": str(output), "passed": all(parity.passed for parity in compared.values()), **doors,
                "preprocessing": model.preprocessing, "postprocessing": model.postprocessing}  # fmt: skip
        drawn, *own = (parity.to_json() for parity in compared.values())
        click.echo(json.dumps({**told, **routes, **drawn, **({"on data": own[0]} if own else {})}))
        return
    click.echo(f"{output}: {', '.join(map(str, model.inputs))} -> {', '.join(map(str, model.outputs))}")
    if model.preprocessing is not None:
        click.echo(f"preprocessing: {json.dumps(model.preprocessing)}")
    if model.postprocessing is not None:
        click.echo(f"postprocessing: {meaning.short(model.postprocessing)}")
    if "nodes" in step.options:
        click.echo("simplified: {after} nodes of {before}".format(**step.options["nodes"]))
    for parity in compared.values():
        _table(parity)
    for name, op in step.options.get("compared before", {}).items():
        click.echo(f"{name} was compared before its {op}: on these inputs it is all but 0 or 1")


def _table(parity: Parity) -> None:
    precision, drawn = "float64" if parity.exact else "its own precision", len(parity.shapes)
    where = f"in {precision} on {drawn} draws"
    if 0 < parity.exact < drawn:
        where = f"on {drawn} draws, on {parity.exact} of them in float64"
    click.echo(f"compared with the source {where}; {parity.data}")
    click.echo(f"{'output':<24}{'max abs error':>15}{'relative error':>16}{'allowed':>10}{'SQNR':>12}")
    for o in parity.outputs:
        sqnr = "exact" if o.sqnr_db is None else f"{o.sqnr_db:.1f} dB"
        bound = "-" if o.bound is None else f"{o.bound:.2g}"
        click.echo(f"{o.name:<24}{o.max_abs_error:>15.2g}{o.relative_error:>16.2g}{bound:>10}{sqnr:>12}")
    if parity.codes:
        click.echo("computes on codes: judged piece by piece, each fed with the source's own")
        click.echo(f"{'operator':<32}{'pieces':>8}{'codes':>12}{'differ':>10}{'steps':>7}{'allowed':>9}{'floats':>9}")
    for c in parity.codes:
        share = f"{c.differing / c.elements:.2%}" if c.elements else "-"
        floats = f"{c.relative_error:.2g}" if c.relative_error else "-"
        click.echo(f"{c.kind:<32}{c.pieces:>8}{c.elements:>12}{share:>10}{c.steps:>7g}{c.bound:>9}{floats:>9}")
