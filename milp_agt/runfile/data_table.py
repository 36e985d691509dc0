"""[data] and [model] of a RUN.toml: where samples and parameters come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from milp_agt.core.option_table import Count, Index, NonNegative, Table, problem
from milp_agt.data.dataset import dataset_names
from milp_agt.errors import Problem
from milp_agt.training.layers.builder import activations


class DataTable(Table):
    """A built-in `name` or the `path` of a file, and how the samples are split and scaled."""

    name: str | None = Field(
        default=None,
        description="A built-in data set; either this or `path`.",
        json_schema_extra={"enum": list(dataset_names())},
    )
    path: str | None = Field(
        default=None,
        description="A file, relative to the run file: `.npz` (arrays x_train, y_train and perhaps x_test, "
        "y_test; or X, y; or those of MedMNIST), `.csv` or `.tsv` with a header (commas, semicolons, tabs "
        "or bars), household power data, or the folder of a driving simulator.",
    )
    samples: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="How many samples to use in all, drawn anew for moons and at random "
        "elsewhere; unless given, 100 of moons and all of others.",
    )
    noise: NonNegative | None = Field(
        default=None,
        description="Standard deviation of the noise of moons, for which it is 0.1 unless given.",
    )
    target: str | None = Field(
        default=None,
        description="Target column of a `.csv`, which needs it; whole numbers are classes.",
    )
    id: str | None = Field(
        default=None,
        description="Column of a `.csv` (array of an `.npz`) that says who a sample is: no feature, but a "
        "name by which `ids` of threats and properties find it.",
    )
    test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Share of the samples held out for testing, where the file brings no test part; "
        "0.2 unless given, and at 0 the order of the samples is kept.",
    )
    seed: Index = Field(
        default=0, description="Seed of the drawing of moons, of the subset and of the split."
    )
    standardise: bool = Field(
        default=False,
        description="Subtract the mean of each feature and divide by its standard deviation, both of "
        "the training part.",
    )
    standardise_targets: bool = Field(
        default=False, description="The same for the targets of a regression."
    )
    pca: Count | None = Field(
        default=None,
        description="Project the features on so many principal components, fitted on a fifth of the "
        "training part that training then leaves out.",
    )
    image_size: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="Height and width to which the frames of a driving log are scaled.",
    )
    crop: Annotated[list[Index], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="Rows that are cut off the frames of a driving log at the top and at the bottom.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        if ("name" in given) == ("path" in given):
            found = "both 'name' and 'path'" if "name" in given else "neither 'name' nor 'path'"
            yield found, "give a built-in name, or the path of a file"


def _with_activations(schema: dict[str, Any]) -> None:
    schema["enum"] = list(activations())


class ModelTable(Table):
    """The network and its initial parameters: `layers`, or a `factory` in a Python file."""

    layers: Annotated[list[Count], Field(min_length=2)] | None = Field(
        default=None,
        description="Sizes of dense layers, from the features to the outputs; either this or `factory`.",
    )
    activation: str = Field(
        default="relu",
        description="Activation between the `layers`.",
        json_schema_extra=_with_activations,
    )
    bias: bool = Field(default=True, description="Whether the `layers` have biases.")
    seed: Index = Field(
        default=0, description="Seed of torch for the initial parameters and for the `factory`."
    )
    state: str | None = Field(
        default=None,
        description="File with the initial parameters, as `torch.save(model.state_dict(), path)` writes "
        "it, relative to the run file; unless given, they are drawn.",
    )
    factory: str | None = Field(
        default=None,
        description="A function without arguments that returns a torch module, in a file relative to "
        "the run file; either this or `layers`.",
        examples=["file.py:function"],
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        if ("layers" in given) == ("factory" in given):
            found = (
                "'layers' and 'factory'" if "layers" in given else "neither 'layers' nor 'factory'"
            )
            yield found, "give one of layers = [4, 8, 3] and factory = 'file.py:function'"
        idle = " and ".join(sorted(given.keys() & {"activation", "bias"}))
        if "factory" in given and idle:
            yield f"{idle} beside 'factory', which builds the whole module", f"drop {idle}"

    @field_validator("activation")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        if name not in activations():
            known = ", ".join(f"'{each}'" for each in activations())
            raise problem(f"activation = '{name}'", f"activation should be one of {known}")
        return name
