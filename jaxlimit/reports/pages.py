"""The report as a page, as Markdown, and as shown in a notebook."""

import base64
import functools
from typing import Any

from jaxlimit.reports import _markdown, contents, figures
from jaxlimit.studies import Study, summary

_ASKED = {
    "certified": "How few weights can any mask keep, whichever it is, with the quadratic model of "
    "the loss within ε? This is a bound: it holds for every mask at once, within the model.",
    "found": "How few weights does the sparsest mask keep that was found, with the true training "
    "loss within ε?",
    "magnitude": "How few weights must stay if the smallest go first, with the true training loss "
    "within ε?",
    "accuracy": "How few weights must stay if the smallest go first, with accuracy within the "
    "tolerance?",
    "predicted": "Where does the theory of the paper put the limit of magnitude pruning? A "
    "prediction, not a bound.",
    "safe": "How far can one prune and still be sure, up to the stated probability, on data that "
    "training has not seen?",
}


@functools.cache
def _environment(suffix: str) -> Any:
    import jinja2
    from markupsafe import Markup

    def in_markdown(value: Any) -> Any:
        return value if isinstance(value, Markup) else _markdown.escape(value)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxlimit.reports"),
        autoescape=suffix == ".html.jinja",
        finalize=in_markdown if suffix == ".md.jinja" else None,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["zip"] = zip
    environment.filters["code"] = lambda text: Markup(_markdown.code(text))
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["percent"] = summary.percent
    environment.filters["number"] = lambda x: "-" if x is None or x != x else f"{x:.4g}"
    return environment


def html(study: Study, drawn: list[figures.Picture] | None = None) -> str:
    """Return the report as one HTML page without scripts or external files.

    Args:
        study: the study.
        drawn: its figures, drawn already; None draws them.

    Returns:
        The text of the page.
    """
    drawn = figures.pictures(study) if drawn is None else drawn
    images = [(picture, _inline(picture)) for picture in drawn]
    text = _render("report.html.jinja", study, images=images)
    return text.replace(" %", "\N{NO-BREAK SPACE}%")  # no line ends between a number and its unit


def markdown(study: Study, drawn: list[figures.Picture] | None = None) -> str:
    """Return the report as Markdown that refers to its figures as files.

    Args:
        study: the study.
        drawn: its figures, drawn already; None draws them.

    Returns:
        The text.
    """
    drawn = figures.pictures(study) if drawn is None else drawn
    return _render("report.md.jinja", study, images=[(picture, None) for picture in drawn])


def fragment(study: Study) -> str:
    """Return the table and the figure that a notebook shows.

    Args:
        study: the study.

    Returns:
        The text as HTML.
    """
    drawn = figures.pictures(study)[:1]
    images = [(picture, _inline(picture)) for picture in drawn]
    return _render("fragment.html.jinja", study, images=images)


def _render(template: str, study: Study, **values: Any) -> str:
    text = (
        _environment("." + template.partition(".")[2])
        .get_template(template)
        .render(
            study=study,
            measured=study.measured,
            found=study.found,
            about=study.about,
            sides=summary.sides(study),
            asked=_ASKED,
            layers=contents.layer_rows(study),
            stored=None if study.found is None else str(contents.stored_of(study)).splitlines(),
            verdict=summary.verdict(study),
            rise=lambda loss: loss - study.measured.dense_loss,
            hint=figures.HINT,
            **values,
        )
    )
    return text.rstrip() + "\n"


def _inline(picture: figures.Picture) -> str:
    from jaxlimit import plotting

    data = base64.b64encode(plotting.png(picture.figure)).decode()
    return f"data:image/png;base64,{data}"
