"""Classes for tests, made of their names."""

from scripts.data.classes import Classes


def some_classes(names, background=True, **keys):
    """Classes with the values 1, 2, ..., or without background 0, 1, ..., in masks too; ``keys`` in place of these.

    The colours are those of the LUAD-HistoSeg data set, as far as they reach.
    """
    values = [position + background for position in range(len(names))]
    colors = [[255, 255, 255], [205, 51, 51], [0, 255, 0], [65, 105, 225], [255, 165, 0]]
    settings = {
        "class_names": names,
        "classifier_values": values,
        "segmenter_values": values,
        "mask_values": {str(value): value for value in range(values[-1] + 1)},
        "palette": colors[: values[-1] + 1],
    }
    return Classes(**settings | keys)
