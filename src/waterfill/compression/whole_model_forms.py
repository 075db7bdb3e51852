"""Importances of a model directory by estimators that see the whole model, or the weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from waterfill.compression.block_forward import BlockForward
from waterfill.compression.checkpoint_source import CheckpointSource
from waterfill.compression.estimated_forms import checked_forms, data_free_forms
from waterfill.compression.sensitivity import FormFinder
from waterfill.compression.settings import Settings
from waterfill.importance import DiagonalForm
from waterfill.io.parts import part_of
from waterfill.models.embedder import Embedder, pooling_of
from waterfill.models.skeleton import Place, Skeleton
from waterfill.protocols import DataFree, Estimator, QuadraticForm
from waterfill.records import Floats, Weight


def form_finder(estimator: Estimator, source: CheckpointSource, data: Sequence[Any], settings: Settings) -> FormFinder:
    """Estimate what errors cost, with the whole model in memory where data are looked at.

    Args:
        estimator: any but those that go block by block.
        source: the tensors.
        data: the batches to fit to, of all processes.
        settings: of the compression.

    Raises:
        CalibrationError: the data do not fit the model or the estimator.
    """
    if isinstance(estimator, DataFree):
        return lambda weight: data_free_forms(estimator, {weight.name: weight}).get(weight.name)
    checkpoint = source.checkpoint
    skeleton = Skeleton(checkpoint.directory, checkpoint, settings.device)
    places = skeleton.places(checkpoint.shapes)
    skeleton.fill(checkpoint)
    head = None if skeleton.is_language_model else Embedder(skeleton.model, pooling_of(checkpoint.directory))
    forward = BlockForward(skeleton, head)
    found = estimator.estimate(
        forward.model, data, forward.distortion.name, fold_norms=False, progress=settings.progress
    )
    forms = checked_forms(estimator, found)
    prefix = "" if head is None else "model."
    return lambda weight: _form_at(places.get(weight.name), weight, forms, prefix)


def _form_at(
    place: Place | None, weight: Weight, forms: Mapping[str, QuadraticForm], prefix: str
) -> QuadraticForm | None:
    """The form of rows of a parameter; of one of a stack of matrices, its entries."""
    if place is None:
        return None
    form = forms.get(prefix + place.parameter)
    if form is not None:
        whole = weight.is_vector or form.diagonal().shape == weight.matrix.shape
        found = form if whole else form.rows_of(slice(place.start, place.start + place.count))
        if found.diagonal().shape == weight.matrix.shape:
            return found
        turned = form.diagonal().T  # a table, whose rows are features to the estimator
        return _diagonal_of(turned, form) if turned.shape == weight.matrix.shape else None
    stack, _, index = place.parameter.rpartition(".")
    form = forms.get(prefix + stack)
    if form is None or not index.isdigit() or part_of(weight.name) is None:
        return None
    return _diagonal_of(form.diagonal()[int(index)].reshape(weight.matrix.shape), form)


def _diagonal_of(values: Floats, like: QuadraticForm) -> DiagonalForm:
    """A form of other entries in the same unit."""
    return DiagonalForm(np.ascontiguousarray(values), factor=like.factor, unit=like.unit)
