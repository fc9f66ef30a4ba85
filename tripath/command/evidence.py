"""`python -m tripath.command.evidence` writes docs/evidence.md and its picture: figures of others beside what the models say."""

import argparse
from importlib.resources import files
from pathlib import Path

from tripath.command.composition import compose_experiment
from tripath.report.evidence import draw_evidence, evidence_page
from tripath.validation import check_areas, read_areas
from tripath.validation.evidence import judge
from tripath.validation.predictions import Models

PAGE = Path("docs/evidence.md")
PICTURES = (Path("docs/pictures/evidence.svg"), Path("docs/pictures/evidence.png"))


def page(pictures: tuple[Path, ...] = ()) -> str:
    """Text of the page; the picture is drawn into each of `pictures`."""
    experiment = compose_experiment("experiment=figures")
    models = Models(devices=experiment.devices, models=experiment.models, memories=experiment.memories)
    judged = judge(experiment.figures, models)
    if pictures:
        draw_evidence(pictures, judged)
    areas = check_areas(read_areas("published"), experiment.technology)
    return evidence_page(
        judged, areas, files("tripath.report").joinpath("evidence_template.md").read_text(encoding="utf-8")
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(PICTURES), encoding="utf-8")
