"""What a run would do: the steps that it would take, with nothing made (`optimize run --dry-run`)."""

from __future__ import annotations

from pipeline.fallback import can_fall_back
from pipeline.figures import seconds_text
from pipeline.flow import flow_of, resolve
from pipeline.plan import Choice
from pipeline.recipe import Recipe
from stages.prepare import locate_data
from stages.source import locate, suggest_name

__all__ = ["describe_plan"]


def describe_plan(recipe: Recipe) -> str:
    """The steps that a run of this recipe would take, for people. Raises what `run` would for a model or data that
    are not there."""
    source = locate(recipe.model, task=recipe.task, allow_pickle=recipe.allow_pickle)
    recipe = resolve(recipe, source.metadata.get("task") if source is not None else recipe.task)
    flow = flow_of(recipe)
    for data in (recipe.evaluation, recipe.calibration):
        if data is not None:
            locate_data(data.path)
    rows = [("source", recipe.model)]
    plan = flow.measuring(recipe)
    if recipe.variants == "auto":
        plan = flow.groundwork(recipe)
        names = ", ".join(variant.name for variant in flow.variants(recipe)[1:])
        rest = ("search", f"what is worth measuring in full, in {seconds_text(recipe.search_budget)} at most: {names}")
    for step in plan:
        if isinstance(step, Choice):
            how = "the faster one, measured" if step.measured else "the fused one, if fusion changed anything"
            what = f"{step.unfused} | {step.fused}: {how}" if step.fused else step.unfused
            rows.append((step.name, what))
        else:
            rows.append((step.name, ", ".join(step.inputs.values())))
    if recipe.variants == "auto":
        rows += [rest, ("profile", "what the search leaves"), ("check", "what the search leaves")]
    if recipe.fallback and any(can_fall_back(variant) for variant in flow.variants(recipe)):
        time_for = seconds_text(recipe.fallback_budget)
        rows.append(("fall back", f"every quantised variant that fails on accuracy, in {time_for} at most"))
    rows.append(("select", f"every variant that passes its gates, by {recipe.objective}"))
    for step in flow.release(recipe, recipe.name or suggest_name(recipe.model), "the chosen variant", {}):
        rows.append((step.name, ", ".join(step.inputs.values())))
    rows.append(("publish", recipe.repository))
    return "\n".join(f"{name:<26} ← {what}" for name, what in rows)
