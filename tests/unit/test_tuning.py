"""Tuning: the search finds what is there to find, trials measure what an edit does, and nothing is lost when it stops."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bluedit
from bluedit.datasets import Case, read_dataset
from bluedit.editing import plan_edit, run_plan
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.errors import DatasetError, InputError, NumericsError, SettingsError
from bluedit.evaluation import score_cases
from bluedit.facts import Fact
from bluedit.models import EditableModel, load_model
from bluedit.models.likelihood import Answer, answer_queries
from bluedit.statistics import Statistics
from bluedit.tuning import Trial, Tuning, read_tuning, tune
from bluedit.tuning import tuning as module
from bluedit.tuning.held_out import Material, hold_out
from bluedit.tuning.search import Axis, Point, compass

AXES = {
    name: Axis.named(name, method)
    for method in bluedit.METHODS.values()
    for name, setting in method.settings.described().items()
    if setting.search and name in method.uses
}
"""Every setting that can be searched over."""

# -- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES.values(), ids=lambda axis: axis.name)
def test_steps_there_and_back_again_lead_to_the_same_value(axis: Axis) -> None:
    start = math.sqrt(axis.lowest * axis.highest)
    whole = axis.value(start, 2)
    assert axis.value(start, 0) == start
    assert whole == pytest.approx(start * axis.factor, rel=0.05)
    assert axis.value(start, 1) == pytest.approx(start * axis.factor**0.5, rel=0.05)
    assert axis.value(start, -2) == pytest.approx(start / axis.factor, rel=0.05)
    assert axis.value(axis.highest, 2) is None
    assert axis.value(axis.lowest, -2) is None


def test_a_setting_of_zero_is_left_upwards_only() -> None:
    axis = Axis.named("shrinkage", bluedit.MEMIT)
    assert (axis.value(0.0, -1), axis.value(0.0, 0), axis.value(0.0, 1)) == (None, 0.0, axis.lowest)
    rising = [axis.value(0.0, halves) for halves in range(5)]
    assert rising == sorted(rising, key=float)  # type: ignore[arg-type]


def _walk(axes: int, objective: Callable[[Point], float | None]) -> tuple[list[Point], list[Point]]:
    """The points that were asked for, and those that were moved to."""
    asked: list[Point] = []
    moves: list[Point] = []

    def counted(point: Point) -> float | None:
        asked.append(point)
        assert len(asked) <= 500, "the search does not end"
        return objective(point)

    compass(list(AXES.values())[:axes], counted, moves.append)
    return asked, moves


@pytest.mark.parametrize("peak", [(0, 0, 0), (-6, 3, 1), (5, -4, 7), (1, 1, -1)])
def test_a_single_peak_is_found_to_half_a_step(peak: Point) -> None:
    asked, moves = _walk(3, lambda point: -sum((one - other) ** 2 for one, other in zip(point, peak, strict=True)))
    assert moves[-1] == peak
    assert len(set(asked)) <= 40


def test_a_ridge_that_runs_aslant_is_walked_up() -> None:
    _, moves = _walk(2, lambda point: -0.1 * (point[0] - point[1]) ** 2 - 0.6 * abs(point[0] + point[1] - 12))
    assert moves[-1] == (6, 6)


def test_plateaus_are_not_walked_along() -> None:
    asked, moves = _walk(3, lambda point: 0.1 * sum(point))
    assert moves == [(0, 0, 0)]
    assert len(set(asked)) == 1 + 3 * 2 * 2


def test_the_search_goes_around_what_fails_and_stops_at_the_ends() -> None:
    def objective(point: Point) -> float | None:
        if point[0] < 0:
            return None
        return -1000.0 if point == (4, 0) or point == (0, 0) else float(min(point[0], 8) + point[1] * (point[1] < 3))

    _, moves = _walk(2, objective)
    assert moves[0] == (0, 0)
    assert moves[-1] == (8, 2)


# -- what settings are tried on --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> EditableModel:
    return load_model("gpt2-mini", device="cpu")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return read_dataset("world:counterfact:0:5:person", 30)


@pytest.fixture(scope="module")
def known(cases: list[Case]) -> list[Case]:
    """The same facts as tracing prompts have them: the truth, and nothing else."""
    return [Case(fact=replace(case.fact, target=case.true_target or ""), true_target=case.true_target) for case in cases]


def test_edits_with_all_their_prompts_are_asked_as_they_are_scored(mini: EditableModel, cases: list[Case]) -> None:
    material = hold_out(mini, cases, count=20)
    assert (len(material.search), len(material.check)) == (12, 8)
    by_id = {case.fact.id: case for case in cases}
    for held in (*material.search, *material.check):
        case = by_id[held.fact.id]
        asked = {(one.score, one.prompt, one.wanted, one.other) for one in held.questions}
        new, true = case.fact.target, case.true_target
        assert ("ES", case.fact.text, new, true) in asked
        assert {one for one in asked if one[0] == "PS"} == {("PS", prompt, new, true) for prompt in case.paraphrases}
        assert {one for one in asked if one[0] == "NS"} <= {("NS", prompt, true, new) for prompt in case.neighborhood}


def _ids(material: Material) -> set[str]:
    return {held.fact.id for held in (*material.search, *material.check)}


def test_known_facts_are_given_other_objects_and_bystanders(mini: EditableModel, known: list[Case]) -> None:
    material = hold_out(mini, known)
    truths = {case.fact.id: case for case in known}
    texts = {case.fact.text: case.fact for case in known}
    edited = {held.fact.text for held in (*material.search, *material.check)}
    watched: list[set[str]] = []
    for part in (material.search, material.check):
        watched.append({one.prompt for held in part for one in held.questions if one.score == "NS"})
        for held in part:
            truth = truths[held.fact.id].fact
            assert held.fact.target != truth.target
            assert held.fact.target in {fact.target for fact in texts.values() if fact.relation == truth.relation}
            assert {(one.wanted, one.other) for one in held.questions if one.score != "NS"} == {
                (held.fact.target, truth.target)
            }
            # Two contexts, the prompt at the end of each.
            again = [one.prompt for one in held.questions if one.score == "PS"]
            assert len(set(again)) == 2
            assert all(prompt.endswith(held.fact.text) and prompt != held.fact.text for prompt in again)
            for one in held.questions:
                if one.score == "NS":
                    assert one.wanted == texts[one.prompt].target
    assert not watched[0] & watched[1]
    assert not (watched[0] | watched[1]) & edited


def test_facts_that_are_not_known_are_left_out_and_counted(mini: EditableModel, known: list[Case]) -> None:
    wrong = [replace(case, fact=replace(case.fact, target="Ruvo"), true_target="Ruvo") for case in known[:4]]
    material = hold_out(mini, [*wrong, *known[4:]])
    assert material.left_out == {"not known": 4}
    assert not _ids(material) & {case.fact.id for case in wrong}


def test_rows_whose_target_the_model_says_already_are_known_facts(mini: EditableModel, known: list[Case]) -> None:
    assert hold_out(mini, [replace(case, true_target=None) for case in known]) == hold_out(mini, known)


def test_draws_are_those_of_the_seed(mini: EditableModel, known: list[Case]) -> None:
    assert hold_out(mini, known, seed=3) == hold_out(mini, known, seed=3)
    assert _ids(hold_out(mini, known, seed=3, count=12)) != _ids(hold_out(mini, known, seed=4, count=12))


def test_rows_that_say_nothing_of_the_truth_take_what_the_model_says(mini: EditableModel, cases: list[Case]) -> None:
    bare = [Case(fact=case.fact) for case in cases]
    material = hold_out(mini, bare)
    for held in material.search:
        for one in held.questions:
            if one.score == "ES":
                said = answer_queries(mini, [(one.prompt, one.other)])[one.prompt, one.other]
                assert said.correct[0]  # the token that the model would say


def test_what_is_left_out_is_counted(mini: EditableModel, cases: list[Case]) -> None:
    holds = replace(cases[0], true_target=cases[0].fact.target, fact=replace(cases[0].fact, target=str(cases[0].true_target)))
    material = hold_out(mini, [*cases[1:], cases[1], holds])
    assert material.left_out == {"asked before": 1, "said already": 1}
    assert cases[0].fact.id not in _ids(material)


def test_a_question_asked_in_other_words_is_asked_before(mini: EditableModel, known: list[Case]) -> None:
    """One relation of one subject would be given two objects, and the batch refused as contradicting itself."""
    fact = known[0].fact
    again = replace(known[0], fact=replace(fact, prompt="It is said that " + fact.prompt, id="again"))
    material = hold_out(mini, [*known, again])
    assert material.left_out == {"asked before": 1}
    assert "again" not in _ids(material)


@pytest.mark.parametrize(("count", "match"), [(8, "8 of 8 facts are left to edit; a search needs at least 10"), (0, "0 of 0")])
def test_too_few_facts_are_refused(mini: EditableModel, cases: list[Case], count: int, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        hold_out(mini, cases[:count])


def test_facts_that_all_have_one_object_cannot_be_given_another(mini: EditableModel, known: list[Case]) -> None:
    (one, *_) = {case.fact.target for case in known}
    with pytest.raises(DatasetError, match="known, with no other object to be given"):
        hold_out(mini, [case for case in known if case.fact.target == one])


# -- trials ----------------------------------------------------------------------------------------------------------

_QUICK = {"v_num_grad_steps": 4, "lambda": 300, "shrinkage": 0.01}
_OPTIONS: dict[str, Any] = {"layers": (0, 4), "settings": _QUICK, "vary": ("lambda", "v_lr"), "trials": 5, "count": 15}


@pytest.fixture(scope="module")
def moments(mini: EditableModel) -> Statistics:
    corpus = Statistics(bluedit.read_corpus("world:0"), 300)
    return Statistics(precomputed=corpus.moments(mini, range(8)))


@pytest.fixture(scope="module")
def found(mini: EditableModel, cases: list[Case], moments: Statistics) -> Tuning:
    before = mini.fingerprint()
    tuning = tune(mini, cases, corpus=moments, **_OPTIONS)
    assert mini.fingerprint() == before
    return tuning


def _without_seconds(tuning: Tuning) -> dict[str, Any]:
    document = json.loads(tuning.model_dump_json())
    for trial in [*document["trials"], *(document["check"][name] for name in ("start", "chosen"))]:
        trial.pop("seconds")
    return document


@pytest.mark.filterwarnings("ignore:the change of layer")
def test_a_trial_scores_what_an_edit_with_its_settings_does(
    mini: EditableModel, cases: list[Case], moments: Statistics, found: Tuning
) -> None:
    material = hold_out(mini, cases, count=_OPTIONS["count"])
    by_id = {case.fact.id: case for case in cases}
    standing = {held.fact.id: tuple(one.prompt for one in held.questions if one.score == "NS") for held in material.search}
    edited = [replace(by_id[name], neighborhood=prompts) for name, prompts in standing.items()]
    for trial in found.trials:
        patch = bluedit.edit(
            mini, [case.fact for case in edited], layers=(0, 4), settings=_QUICK | trial.settings, corpus=moments
        )
        with patch.applied(mini):
            scores = score_cases(mini, edited).as_dict()
            graded = _graded(mini, material.search)
        assert {name: trial.scores[name] for name in ("ES", "PS", "NS", "S")} == {
            name: scores[name] for name in ("ES", "PS", "NS", "S")
        }
        norm = max(record.relative_norm for record in patch.manifest.weights.values())
        assert trial.relative_norm == pytest.approx(norm, rel=1e-3)
        assert trial.objective == pytest.approx(graded - math.log2(max(1.0, norm)), abs=0.01)


def test_the_best_trial_is_chosen_and_checked_on_other_facts(found: Tuning) -> None:
    objectives = [trial.objective for trial in found.trials]
    assert found.chosen is not None
    best = found.trials[found.chosen]
    assert best.objective == max(objectives)  # type: ignore[type-var]
    assert found.check is not None
    assert (found.check.start.settings, found.check.chosen.settings) == (found.trials[0].settings, best.settings)
    assert (found.facts["search"], found.facts["check"]) == (9, 6)
    assert found.check.start.scores["S"]["n"] == 6
    assert found.settings.items() >= {"v_num_grad_steps": 4, "shrinkage": 0.01}.items()
    better = found.check.difference is not None and found.check.difference["value"] >= 0
    assert {name: found.settings[name] for name in found.varied} == (best if better else found.trials[0]).settings
    assert len(found.trials) == 5
    assert len({tuple(trial.settings.values()) for trial in found.trials}) == 5
    assert found.complete


def _graded(model: EditableModel, held: Any) -> float:
    """S with p / (p + p') for every comparison, in percent, spelled out."""
    shares: dict[str, list[list[float]]] = {"ES": [], "PS": [], "NS": []}
    for one in held:
        for score, of_score in shares.items():
            asked = [question for question in one.questions if question.score == score]
            answers = answer_queries(model, [(q.prompt, answer) for q in asked for answer in (q.wanted, q.other)])
            odds = [(math.exp(answers[q.prompt, q.wanted][0]), math.exp(answers[q.prompt, q.other][0])) for q in asked]
            if odds:
                of_score.append([wanted / (wanted + other) for wanted, other in odds])
    means = [sum(sum(case) / len(case) for case in cases) / len(cases) for cases in shares.values()]
    return 100 * 3 / sum(1 / mean for mean in means)


@pytest.mark.parametrize(("margin", "share"), [(0.0, 0.5), (-1e6, 0.0), (1e6, 1.0), (math.log(3), 0.75)])
def test_a_comparison_counts_by_how_clear_it_is(
    mini: EditableModel,
    cases: list[Case],
    moments: Statistics,
    monkeypatch: pytest.MonkeyPatch,
    margin: float,
    share: float,
) -> None:
    """Every wanted answer is likelier than its rival by `margin` nats."""
    material = hold_out(mini, cases, count=_OPTIONS["count"])
    wanted = {(one.prompt, one.wanted) for held in (*material.search, *material.check) for one in held.questions}

    class Sure:
        def answer(self, queries: Any) -> Any:
            return {query: Answer(margin if query in wanted else 0.0, (True,)) for query in queries}

    monkeypatch.setattr(module, "as_respondent", lambda _: Sure())
    seen: list[Trial] = []
    with contextlib.suppress(DatasetError):  # nothing is edited where the rival is as likely
        tune(mini, cases, corpus=moments, on_trial=seen.append, **_OPTIONS | {"trials": 1})
    assert seen[0].objective == pytest.approx(100 * share - math.log2(max(1.0, seen[0].relative_norm or 0.0)), abs=1e-3)


def test_values_that_were_optimised_before_give_the_same_edit(
    mini: EditableModel, cases: list[Case], moments: Statistics
) -> None:
    facts = [case.fact for case in cases[:3]]
    plan = plan_edit(mini, facts, layers=(0, 4), settings=_QUICK, corpus=moments)
    values = optimise_values(mini, plan.facts, 0, plan.templates, plan.settings)

    class Given:
        """A store that has the values at layer 0, and nothing else."""

        def recall(self, model: Any, plan: Any, layer: int) -> Any:
            return (values, 0.0) if layer == 0 else None

        def keep(self, model: Any, plan: Any, layer: int, values: Any, seconds: float) -> None:
            assert layer == 4

    patch, given = run_plan(mini, plan), run_plan(mini, plan, store=Given())
    for name, change in patch.changes.items():
        assert change.dense().equal(given.changes[name].dense())
    assert given.manifest.optimisation == patch.manifest.optimisation


def test_batches_are_edited_apart(mini: EditableModel, cases: list[Case], moments: Statistics) -> None:
    tuning = tune(mini, cases, corpus=moments, **_OPTIONS | {"trials": 1, "batch_size": 1})
    material = hold_out(mini, cases, count=_OPTIONS["count"])
    outcomes: list[float] = []
    for held in material.search:
        patch = bluedit.edit(mini, held.fact, layers=(0, 4), settings=_QUICK, corpus=moments)
        (question,) = (one for one in held.questions if one.score == "ES")
        with patch.applied(mini):
            answers = answer_queries(mini, [(question.prompt, question.wanted), (question.prompt, question.other)])
        wanted, other = (answers[question.prompt, text].log_prob for text in (question.wanted, question.other))
        outcomes.append(float(wanted > other))
    assert tuning.trials[0].scores["ES"]["value"] == pytest.approx(100 * sum(outcomes) / len(outcomes), abs=0.01)


@pytest.mark.parametrize(
    ("method", "varied"),
    [
        ("memit", ("lambda", "shrinkage", "clamp_norm_factor", "v_lr")),
        ("alphaedit", ("L2", "nullspace_threshold", "clamp_norm_factor", "v_lr")),
        ("rome", ("shrinkage", "clamp_norm_factor", "v_lr")),
        ("ft-m", ("ft_lr", "norm_constraint")),
    ],
)
def test_every_kind_of_method_can_be_tuned(
    mini: EditableModel, cases: list[Case], moments: Statistics, method: str, varied: tuple[str, ...]
) -> None:
    few = {"ft_num_steps": 2} if method == "ft-m" else {"v_num_grad_steps": 12}
    tuning = tune(mini, cases, corpus=moments, method=method, settings=few, trials=2, count=10)
    assert tuning.varied == varied
    assert not any(trial.problem for trial in tuning.trials)
    chosen = bluedit.METHODS[method].override({}, tuning.settings)
    assert chosen.as_dict().items() >= tuning.settings.items()


# -- stopping and going on -----------------------------------------------------------------------------------------


class _StopError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_a_stopped_search_goes_on_to_the_same_end(
    mini: EditableModel,
    cases: list[Case],
    moments: Statistics,
    found: Tuning,
    tmp_path: Path,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, seen = tmp_path / "tuning.json", []

    def stop(trial: Trial) -> None:
        seen.append(trial)
        if len(seen) == after:
            raise _StopError

    with pytest.raises(_StopError):
        tune(mini, cases, corpus=moments, out=path, on_trial=stop, **_OPTIONS)
    stopped = read_tuning(path)
    assert (len(stopped.trials), stopped.complete, stopped.check) == (after, False, None)
    ran: list[Any] = []
    plain = module.run_plan
    monkeypatch.setattr(module, "run_plan", lambda *arguments: ran.append(0) or plain(*arguments))
    assert _without_seconds(tune(mini, cases, corpus=moments, out=path, **_OPTIONS)) == _without_seconds(found)
    assert len(ran) == len(found.trials) - after + len({str(one.settings) for one in (found.check.start, found.check.chosen)})  # type: ignore[union-attr]
    # Once more: it is only read, trial by trial.
    told: list[Trial] = []
    again = tune(mini, cases, corpus=moments, out=path, on_trial=told.append, **_OPTIONS)
    assert (again, tuple(told)) == (read_tuning(path), again.trials)


def test_a_file_of_another_search_is_not_lost(
    mini: EditableModel, cases: list[Case], moments: Statistics, found: Tuning, tmp_path: Path
) -> None:
    path = tmp_path / "tuning.json"
    found.save(path)
    kept = path.read_bytes()
    for other in ({"trials": 4}, {"settings": _QUICK | {"kl_factor": 0.1}}, {"seed": 5}, {"batch_size": 2}):
        with pytest.raises(InputError, match=r"is of another search .* --force"):
            tune(mini, cases, corpus=moments, out=path, **_OPTIONS | other)
    assert path.read_bytes() == kept


def test_a_trial_that_cannot_be_edited_with_is_part_of_the_trail(
    mini: EditableModel, cases: list[Case], moments: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module.run_plan

    def fragile(model: Any, plan: Any, *more: Any) -> Any:
        if plan.settings.lambda_ == 300:
            raise NumericsError("no numbers here")
        return plain(model, plan, *more)

    monkeypatch.setattr(module, "run_plan", fragile)
    tuning = tune(mini, cases, corpus=moments, **_OPTIONS | {"trials": 3})
    assert tuning.trials[0].problem == "no numbers here"
    assert tuning.trials[0].objective is None
    assert tuning.chosen
    assert tuning.settings["lambda"] != 300
    monkeypatch.setattr(module, "run_plan", lambda *_: (_ for _ in ()).throw(NumericsError("nowhere")))
    with pytest.raises(NumericsError, match="none of 5 trials made an edit; the first error: nowhere"):
        tune(mini, cases, corpus=moments, **_OPTIONS)


def test_facts_that_no_trial_edits_are_said_to_be_such(
    mini: EditableModel, cases: list[Case], moments: Statistics, tmp_path: Path
) -> None:
    hopeless = _QUICK | {"lambda": 1e8, "v_lr": 1e-3}
    options = _OPTIONS | {"settings": hopeless, "trials": 2, "out": tmp_path / "tuning.json"}
    with pytest.raises(DatasetError, match=r"none of 2 trials edits these facts \(S is 0 in the best\)"):
        tune(mini, cases, corpus=moments, **options)
    assert len(read_tuning(tmp_path / "tuning.json").trials) == 2


def test_what_the_check_does_not_bear_out_is_not_recommended(
    mini: EditableModel, cases: list[Case], moments: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search on facts that want the opposite of what the check wants: its best settings edit nothing."""

    def perverse(*arguments: Any, **options: Any) -> Material:
        material = hold_out(*arguments, **options)
        swapped = tuple(
            replace(
                held,
                questions=tuple(
                    one if one.score == "NS" else one._replace(wanted=one.other, other=one.wanted) for one in held.questions
                ),
            )
            for held in material.search
        )
        return replace(material, search=swapped)

    monkeypatch.setattr(module, "hold_out", perverse)
    options = {"settings": _QUICK | {"v_num_grad_steps": 12}, "vary": ("lambda",), "trials": 3}
    tuning = tune(mini, cases, corpus=moments, **_OPTIONS | options)
    assert tuning.chosen
    assert tuning.trials[tuning.chosen].settings["lambda"] > 300
    assert tuning.check is not None
    assert tuning.check.difference is not None
    assert tuning.check.difference["value"] < 0
    assert tuning.settings["lambda"] == 300


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"vary": ("lamda",)}, "unknown setting to vary 'lamda'. Did you mean 'lambda'"),
        ({"vary": ("L2",)}, "memit does not use the setting 'L2'"),
        ({"vary": None, "settings": _QUICK | {"v_lr": 1, "clamp_norm_factor": 1}}, "every setting that would be varied is set"),
        ({"trials": 0}, "leaves nothing to try"),
        ({"method": "rome", "layers": (0,), "vary": ("v_lr",), "settings": {}, "batch_size": 2}, "rome solves for 1 fact"),
    ],
)
def test_bad_options(mini: EditableModel, cases: list[Case], moments: Statistics, options: Any, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        tune(mini, cases, corpus=moments, **_OPTIONS | options)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', b"\xff\xfe"])
def test_files_that_are_no_tuning_files(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "tuning.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=r"is not a tuning file, or .*; `bluedit tune --out` writes"):
        read_tuning(path)
    with pytest.raises(SettingsError, match=r"is missing.*`bluedit tune --out`"):
        read_tuning(tmp_path / "none.json")


def test_a_tuning_file_is_for_one_model_and_method(mini: EditableModel, tiny_gpt2: EditableModel, found: Tuning) -> None:
    memit = bluedit.blue(bluedit.MEMIT)
    assert found.settings_for(mini, memit) == found.settings
    with pytest.raises(SettingsError, match="for a model with another configuration"):
        found.settings_for(tiny_gpt2, memit)
    with pytest.raises(SettingsError, match=r"is for memit with strategy boundary; .* for rect with strategy even"):
        found.settings_for(mini, bluedit.RECT)
    with pytest.raises(SettingsError, match="from an interrupted search"):
        found.model_copy(update={"complete": False}).settings_for(mini, memit)


def test_facts_of_one_kind_of_answer_are_enough(mini: EditableModel) -> None:
    """Ten facts of one relation: bystanders are drawn from it."""
    cases = read_dataset("world:counterfact:0:5:person")
    relation = cases[0].fact.relation
    same = [Case(fact=Fact(c.fact.prompt, c.fact.subject, str(c.true_target), c.fact.id, c.fact.relation)) for c in cases]
    material = hold_out(mini, [case for case in same if case.fact.relation == relation][:40])
    assert all(one.score != "NS" or one.wanted != one.other for held in material.search for one in held.questions)
