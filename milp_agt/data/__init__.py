"""Data sets: where they come from, how they are split and scaled."""

from milp_agt.data.dataset import (
    Array,
    Dataset,
    DatasetUnavailableError,
    Task,
    dataset_names,
    load_dataset,
)

__all__ = ["Array", "Dataset", "DatasetUnavailableError", "Task", "dataset_names", "load_dataset"]
