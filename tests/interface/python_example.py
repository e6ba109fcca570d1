"""Everything that commands do, from Python: the example that the type checkers see and that a test runs."""

from __future__ import annotations

from pathlib import Path

import sea_export


def work(model: str, rows: Path, folder: Path) -> dict[str, object]:
    """From demonstrations to a published model, and back.

    Args:
        model: the base.
        rows: a file of demonstrations.
        folder: where everything is written.

    Returns:
        what was found at each step, by the name of the call.
    """
    stages: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append((stage, done, total))

    found: dict[str, object] = {"version": sea_export.__version__}
    run = sea_export.RunOptions(dtype="float32", device="cpu")
    demonstrations = sea_export.load_demonstrations(rows)
    found["check"] = sea_export.check(demonstrations, run=run).to_frame()
    diagnosis: sea_export.Diagnosis = sea_export.diagnose(model, output=folder / "out", run=run, progress=progress)
    found["diagnose"] = diagnosis.to_frame()

    with sea_export.load(model, dtype="float32", device="cpu", threads=1) as base:
        edit: sea_export.SpectralEdit = sea_export.fit(
            *(base.model, base.tokenizer, demonstrations), layers=[2, 3], progress=progress
        )
        found["fit"] = edit.to_frame()
        answers = sea_export.compare(base, edit, prompt="Who knows?", new_tokens=4, strength=0.5, progress=progress)
        answers.save_page(folder / "answers.html")
        found["compare"] = answers.to_frame()
        measured: sea_export.Evaluation = sea_export.evaluate(base, "damage", edit=edit, progress=progress)
        measured.plot(folder / "damage.svg")
        found["evaluate"] = measured.to_frame()
        found["check with a model"] = sea_export.check(demonstrations, base, template="none", layer=1).to_dict()
        saved: sea_export.SaveResult = sea_export.save(0.5 * edit, base, folder / "half", progress=progress)
        found["save"] = saved.to_dict()

    edit.save(folder / "edit")
    inspection: sea_export.Inspection = sea_export.inspect(
        folder / "edit",
        plot_activations=folder / "activations.svg",
        model=model,
        plot_layers="2",
        demonstrations=demonstrations,
        run=run,
        progress=progress,
    )
    inspection.plot(folder / "edit.svg")
    found["inspect"] = inspection.to_frame()

    measured_edit: sea_export.SpectralEdit = sea_export.fit_and_measure(
        *(model, rows),
        fit=sea_export.FitOptions(layers="last:1"),
        effect=sea_export.EffectOptions(strength=0.5, measure=False),
        run=run,
        progress=progress,
    )
    found["fit_and_measure"] = measured_edit.to_frame()
    whole = sea_export.fit_and_save(
        *(model, folder / "out", rows),
        fit=sea_export.FitOptions(layers="last:2", edit=sea_export.EditOptions(explained_variance=0.7)),
        effect=sea_export.EffectOptions(strength=1.0, measure=False),
        export=sea_export.ExportOptions(format="merged"),
        run=run,
        progress=progress,
    )
    output = whole.saved.output
    found["fit_and_save"] = whole.to_dict()
    verification: sea_export.Verification = sea_export.verify(output, model, progress=progress)
    found["verify"] = verification.passed
    found["diff"] = sea_export.diff(model, output).to_frame()
    again: sea_export.Reproduction = sea_export.reproduce(
        *(output, folder / "again"), base=model, demonstrations=rows, progress=progress
    )
    found["reproduce"] = again.verdict
    pushed: sea_export.Pushed = sea_export.push(output, "edited", progress=progress)
    found["push"] = pushed.to_dict()
    found["recipes"] = [one.name for one in sea_export.recipes().recipes]
    found["stages"] = stages
    return found


def search(model: str, rows: Path, folder: Path) -> sea_export.TunedModel:
    """Settings that are searched.

    Args:
        model: the base.
        rows: a file of demonstrations.
        folder: where everything is written.
    """
    tuned = sea_export.tune(model, folder / "tuned", rows, max_kl=0.5, trials=3, method=["spectral"], seed=1)
    tuned.plot(folder / "search.svg")
    return tuned
