"""Both ways to decode on a GPU, the window alone and the whole image, give equal crops (on the CPU's decoder: equal bits)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline

from pipeline.data.augment import AugmentConfig, training_views
from pipeline.data.dataset import Dataset, Split
from pipeline.data.decoders import Rung
from pipeline.data.graphs import Graph, GraphKind, Inputs, Normalization
from pipeline.data.views import Views, centre_views
from tests.pipeline.data.small_datasets import statistics_of_size

CPU = torch.device("cpu")


def crops(split: Split, views: Views, graph: Graph) -> NDArray[np.uint8]:
    """uint8 [N, crop, crop, 3]"""
    images = [split.read(sample) for sample in range(len(split))]
    batches = iter([graph.inputs(images, views)])

    def source() -> Inputs:
        return next(batches)

    (outputs,) = graph.build(source, len(split), CPU, threads=2, queue=1).run()
    return np.asarray(outputs.as_tensor())


def check(split: Split) -> None:
    shapes = np.stack([split.samples["height"], split.samples["width"]], axis=1).astype(np.int64)
    n, ids = len(split), np.arange(len(split))
    drawn = [
        training_views(3, np.full(n, epoch), ids, *shapes.T, AugmentConfig(), statistics_of_size(224))
        for epoch in range(2)
    ]
    assert all(0 < views.mirror.sum() < n for views in drawn)
    for views in (*drawn, centre_views(shapes, 256, 224)):
        window = crops(split, views, Graph("crop", 224, "gpu"))
        np.testing.assert_array_equal(crops(split, views, Graph("crop", 224, "gpu-whole")), window)


def test_photographs(varied_jpegs: Dataset) -> None:
    check(varied_jpegs.split("train"))


def test_real_images(real_imagenet: Dataset) -> None:
    check(real_imagenet.split("train"))


@pytest.mark.parametrize("kind", ["crop", "five-crops", "whole", "source"])
@pytest.mark.parametrize("rung", ["gpu", "gpu-whole", "cpu"])
def test_graphs_for_a_gpu_end_there(kind: GraphKind, rung: Rung) -> None:
    """What DALI's Python side checks of operators, arguments and devices; the rest takes a GPU."""
    normalization = Normalization.of(statistics_of_size(64), 64, (58.4, 57.1, 57.4))
    for graph in (Graph(kind, 64, rung), Graph(kind, 64, rung, normalization)):
        with Pipeline(batch_size=2, num_threads=1, device_id=0):
            assert graph._operators(lambda: (), 2, gpu=True).device == "gpu"
