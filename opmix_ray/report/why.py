"""Why a decision did not simply take the candidate that scored best."""

from __future__ import annotations

import math
from collections.abc import Mapping

from opmix_ray.config.objective import Objective
from opmix_ray.draw import numbers as n
from opmix_ray.report import decision_panels as panels
from opmix_ray.report.gather import DecisionFiles
from opmix_ray.report.outlook import IN_FORCE, PROPOSAL, TAKEN, Outlook, expected_of, outlooks
from opmix_ray.report.paired import difference


def taken_words(files: DecisionFiles) -> str:
    """What is in force from here, in a few words: `the proposal`, `the uniform mixture`, `the old mixture`."""
    if files.decision.get("kept") != "proposal":
        return "the old mixture"
    choice = files.details.get("choice")
    name = str(choice.get("name")) if isinstance(choice, dict) else "proposal"
    return (
        "the proposal" if name == "proposal" else name if name.startswith("half") else f"the {name} mixture"
    )


def why_not_best(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> list[str]:
    """Sentences that compare the proposal with the best candidate and with what was taken; none before a decision."""
    if not files.decision.get("proposal"):
        return []
    return [text for text in (_beside_best(files, objective), _beside_taken(files)) if text]


def _beside_best(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> str:
    scored = [row for row in files.rows if row.status == "ok" and math.isfinite(row.objective)]
    if not scored:
        return "No candidate was scored: the proposal comes from the law alone."
    best = min(scored, key=lambda row: row.objective)
    if files.checked is None or not math.isfinite(files.checked.objective):
        return f"Best of all is candidate {best.run} with {n.loss(best.objective)}; the proposal was not simulated."
    here = files.checked.objective
    if here <= best.objective:
        return (
            f"The proposal is the best of all: simulated it scores {n.loss(here)}, the best candidate, {best.run}, "
            f"{n.loss(best.objective)}."
        )
    try:
        gap = difference(files.checked, best, objective)
        known = f" ({panels.interval(gap)})" if math.isfinite(gap.mean) else ""
    except (TypeError, ValueError, AttributeError):
        gap, known = None, ""
    text = (
        f"Candidate {best.run} scores {n.loss(best.objective)}, the simulated proposal {n.loss(here)}{known}."
    )
    if gap is not None and gap.low <= 0 <= gap.high:
        text += " The difference may be noise of the held-out sequences."
    return f"{text} {_expected(files, best.run, best.ratios)}"


def _expected(files: DecisionFiles, run: str, ratios: dict[str, float]) -> str:
    """What the law expects of both for the steps ahead, which is what the proposal was chosen by."""
    candidate, proposal = (
        expected_of(files, ratios),
        expected_of(files, n.numbers(files.decision["proposal"])),
    )
    if not (math.isfinite(candidate) and math.isfinite(proposal)):
        return "No law says what training under either would lead to."
    ahead = (
        f"After training for the rest of the stage the law expects {n.loss(proposal)} of the proposal and "
        f"{n.loss(candidate)} of candidate {run}"
    )
    if proposal <= candidate:
        return (
            f"{ahead}. A candidate is a sum of probes: it knows their few steps, and neither the steps ahead nor how "
            "often a small domain would repeat. The proposal is chosen for the steps ahead."
        )
    return (
        f"{ahead}, which is lower: the proposal is held back by its limits and by KL to the prior "
        "(what holds it is listed below)."
    )


def _beside_taken(files: DecisionFiles) -> str:
    found = {outlook.name: outlook for outlook in outlooks(files, {})}
    taken, proposal = found.get(TAKEN), found.get(PROPOSAL)
    if taken is None or proposal is None or taken_words(files) == "the proposal":
        return ""
    before: Outlook = found[IN_FORCE]
    expected = f"Expected to end at {n.loss(taken.expected)}, the proposal at {n.loss(proposal.expected)}"
    if not math.isfinite(taken.expected):
        return ""
    kept = "" if files.decision.get("kept") == "proposal" else f", so {n.loss(before.expected)} is kept"
    return f"Taken was {taken_words(files)}. {expected}{kept}."
