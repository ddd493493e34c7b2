"""The published closed-form methods, as rows of parts."""

from __future__ import annotations

from dataclasses import replace

from bluedit.editors.closed_form.constraints import PRUNING, RELATIVE_CHANGE
from bluedit.editors.closed_form.method import Method
from bluedit.editors.closed_form.objectives import MLP_AND_ATTENTION, MLP_OUTPUT, ValueSettings
from bluedit.editors.closed_form.priors import NULL_SPACE
from bluedit.strategies import EVEN, SINGLE, SQUARE_ROOT

__all__ = ["ALPHAEDIT", "EMMET", "MEMIT", "MEMIT_SEQ", "PMET", "PRUNE", "RECT", "ROME", "R_ROME"]

MEMIT = Method(
    name="memit",
    strategy=EVEN,
    summary="least squares against the second moment of keys",
    reference="Meng et al. 2022b, Mass-Editing Memory in a Transformer, eq. 14",
)
MEMIT_SEQ = replace(
    MEMIT,
    name="memit-seq",
    caches_keys=True,
    summary="MEMIT that caches the keys of earlier batches",
    reference="Li et al. 2025, Rethinking Residual Distribution in Locate-then-Edit Model Editing, eq. 8",
)
RECT = replace(
    MEMIT,
    name="rect",
    constraint=RELATIVE_CHANGE,
    summary="MEMIT that keeps only the entries that change most, relative to the weight",
    reference="Gu et al. 2024, Model Editing Harms General Abilities of Large Language Models",
)
PRUNE = replace(
    MEMIT,
    name="prune",
    constraint=PRUNING,
    summary="MEMIT whose total change has its largest singular values reduced at the end of the sequence",
    reference="Ma et al. 2024, Perturbation-Restrained Sequential Model Editing",
)
ALPHAEDIT = Method(
    name="alphaedit",
    strategy=EVEN,
    prior=NULL_SPACE,
    caches_keys=True,
    summary="changes only in the null space of the keys, past keys cached",
    reference="Fang et al. 2024, AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models",
)
PMET = Method(
    name="pmet",
    strategy=SQUARE_ROOT,
    objective=MLP_AND_ATTENTION,
    summary="values optimised at MLP and attention together; the MLP's output is the target",
    reference="Li et al. 2024, PMET: Precise Model Editing in a Transformer",
)
EMMET = Method(
    name="emmet",
    strategy=EVEN,
    noise=0.0,
    summary="residuals met exactly, for a batch",
    reference="Gupta et al. 2024, A Unified Framework for Model Editing",
)
ROME = Method(
    name="rome",
    strategy=SINGLE,
    noise=0.0,
    reads_bare_prompt=True,
    objective=MLP_OUTPUT,
    largest_batch=1,
    settings=ValueSettings(v_lr=0.5, v_num_grad_steps=20, clamp_norm_factor=4.0),
    summary="one fact, one layer, its residual met exactly at the bare prompt",
    reference="Meng et al. 2022a, Locating and Editing Factual Associations in GPT, eq. 2 to 4",
)
R_ROME = replace(
    ROME,
    name="r-rome",
    reads_bare_prompt=False,
    summary="ROME with the mean key in both places",
    reference="Gupta et al. 2024, Rebuilding ROME: Resolving Model Collapse during Sequential Model Editing",
)
