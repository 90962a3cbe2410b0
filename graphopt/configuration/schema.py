"""The keys of a configuration file: what each takes and means, and how it looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

from graphopt.clipping import ClipNormPer
from graphopt.configuration import kinds, train_kinds
from graphopt.configuration.kinds import Kind
from graphopt.configuration.semantics import SEMANTICS
from graphopt.gradients import MEMORY
from graphopt.half import Precision
from graphopt.losses import BUILT_IN
from graphopt.update.layout import LayoutName


@dataclass(frozen=True)
class Key:
    """A key of a section.

    Attributes:
        name: Its name, which is that of the argument in Python, where there is one.
        kind: Checks its value, and makes of it what Python takes.
        says: What it means, in one sentence.
        example: A value, as TOML has it.
        active: Whether the example stands in the file that is printed, or in a comment, because it
            excludes another or needs a model that has something.
    """

    name: str
    kind: Kind
    says: str
    example: str
    active: bool = True


@dataclass(frozen=True)
class Section:
    """A section of the file.

    Attributes:
        name: Its name.
        says: What it is for.
        keys: Its keys.
        repeated: Whether it is a list of tables, ``[[name]]``.
    """

    name: str
    says: str
    keys: tuple[Key, ...]
    repeated: bool = False

    @property
    def by_name(self) -> Mapping[str, Key]:
        """The keys by their names."""
        return {key.name: key for key in self.keys}


_GRAPH = Section(
    "graph",
    "What is computed: the arguments of graphopt.training_graph.",
    (
        Key("loss", kinds.text, f"{', '.join(BUILT_IN)}, or a scalar output of the model.",
            '"cross_entropy"'),
        Key("loss_output", kinds.text, "The output that the loss applies to, if several.",
            '"logits"', active=False),
        Key("labels", kinds.text, "The name of the input with the labels.", '"labels"'),
        Key("memory", kinds.one_of(*MEMORY), "What the backward pass keeps: fast (most), balanced "
            "or low (a few values).", '"fast"'),
        Key("precision", kinds.one_of(*get_args(Precision)), "What products and convolutions are "
            "computed in, if not in float32.", '"float16"', active=False),
        Key("accumulation", kinds.accumulation, "After how many steps there is an update; or a "
            'table with steps (left out: the caller says) and reduction ("mean", "sum").',
            '{ steps = 4, reduction = "mean" }', active=False),
        Key("group_mask", kinds.boolean, "An input says in each step which groups are updated.",
            "false"),
        Key("gradient_outputs", kinds.names_or_all, "Report the gradients of all parameters, or of "
            "those that are named.", "false"),
        Key("straight_through", kinds.boolean, "Train through quantization as if it did not round.",
            "false"),
        Key("seed", kinds.seed, "What random numbers begin with; "
            '"runtime": the runtime draws them.', "0"),
        Key("provider", kinds.text, "The execution provider to be fast on.",
            '"CPUExecutionProvider"'),
        Key("layout", kinds.one_of(*get_args(LayoutName)),
            "What is updated together; auto suits the provider.", '"auto"'),
        Key("portable", kinds.boolean, "False: onnxruntime-training builds the gradients.", "true"),
    ),
)  # fmt: skip

_OPTIMIZER = Section(
    "optimizer",
    "The arguments of graphopt.RMSProp.",
    (
        Key("semantics", kinds.one_of(*SEMANTICS), "Whose RMSProp it is; what stands below "
            "overrides its defaults. With any but mindspore, weight decay leaves nothing out.",
            '"mindspore"'),
        Key("learning_rate", kinds.rate, "A number, a list with a value for each step, or a "
            "schedule: the name of one of graphopt.schedules, with its arguments.",
            '{ schedule = "SequentialLR", milestones = [100], schedules = [\n'
            '  { schedule = "WarmUpLR", learning_rate = 0.01, warmup_steps = 100 },\n'
            '  { schedule = "CosineDecayLR", min_lr = 0.0, max_lr = 0.01, decay_steps = 900 },\n'
            "] }"),
        Key("decay", kinds.at_least_zero, "Decay of the mean square.", "0.9"),
        Key("momentum", kinds.at_least_zero, "Momentum of the update.", "0.9"),
        Key("epsilon", kinds.above_zero, "Added to the mean square under the root.", "1e-10"),
        Key("centered", kinds.boolean, "Subtract the square of the mean gradient.", "false"),
        Key("weight_decay", kinds.rate_not_listed, "Factor of the L2 penalty: a number or a "
            "schedule.", "1e-4"),
        Key("epsilon_inside_root", kinds.boolean, "False: epsilon is added to the root.", "true"),
        Key("initial_mean_square", kinds.at_least_zero, "What the mean square starts at.", "1.0"),
        Key("learning_rate_inside_moment", kinds.boolean, "False: the moment is multiplied by the "
            "learning rate when the weight moves.", "true"),
        Key("decoupled_weight_decay", kinds.boolean, "Shrink the weight, instead of adding to the "
            "gradient.", "false"),
        Key("nesterov", kinds.boolean, "Move by what the next moment would be; needs momentum.",
            "false"),
        Key("loss_scale", kinds.loss_scale, 'A number; "dynamic"; a table of a DynamicLossScale; '
            '{ like = "pytorch" } (keras, flax, mindspore); or { input = "NAME" }, which is fed.',
            "{ initial = 65536.0, growth_interval = 2000 }", active=False),
        Key("skip_on_overflow", kinds.boolean, "Leave out steps with a gradient that is infinite "
            "or NaN.", "false"),
        Key("clip_norm", kinds.above_zero, "The largest norm of the gradients.", "1.0",
            active=False),
        Key("clip_norm_per", kinds.one_of(*get_args(ClipNormPer)), "What each norm is over: all "
            "gradients, those of a group, or that of a parameter.", '"all"'),
        Key("clip_value", kinds.above_zero, "The largest element of the gradients; not beside "
            "clip_norm.", "0.5", active=False),
        Key("average", kinds.average, "Carry a moving average of the parameters: its decay, or a "
            "table.", "{ decay = 0.999, warm_up = true, statistics = false }", active=False),
        Key("use_locking", kinds.boolean, "Serialise steps from several threads.", "false"),
    ),
)  # fmt: skip

_PARAMETERS = Section(
    "parameters",
    "Which parameters are trained, in which order. Patterns have * and ?, as in file names.",
    (
        Key("freeze", kinds.texts, "Patterns of those that stay as they are.", '["conv1.*"]',
            active=False),
        Key("order", kinds.texts, "Patterns of all others, in the order of the optimizer.",
            '["*.weight", "*.bias"]', active=False),
    ),
)  # fmt: skip

_GROUPS = Section(
    "groups",
    "Parameters with a rule of their own. A group has those that all of its selecting keys name; "
    "each parameter that is trained must be in exactly one.",
    (
        Key("params", kinds.texts, "Selects by patterns of names.", '["*"]', active=False),
        Key("types", kinds.texts, "Selects weights of operators.", '["Conv"]', active=False),
        Key("ranks", kinds.whole_numbers, "Selects by the number of dimensions.", "[0, 1]",
            active=False),
        Key("decays", kinds.boolean, "Selects those that recipes decay; false: biases and scales "
            "of normalization.", "false"),
        Key("except", kinds.texts, "Patterns of those that it does not have.", '["head.*"]',
            active=False),
        Key("rest", kinds.boolean, "Has all that no other group has.", "true", active=False),
        Key("learning_rate", kinds.rate, "As that of the optimizer; lr is another name.", "0.01",
            active=False),
        Key("lr", kinds.rate, "The same as learning_rate.", "0.01", active=False),
        Key("weight_decay", kinds.rate_not_listed, "As that of the optimizer.", "0.0"),
        Key("grad_centralization", kinds.boolean, "Subtract its mean from the gradient of weights "
            "of convolutions.", "false"),
    ),
    repeated=True,
)  # fmt: skip

_ON_DEVICE = Section(
    "on_device",
    "What graphopt export-on-device writes besides; graphopt build does not look at it.",
    (
        Key("outputs", kinds.texts, "Outputs of the model that a step reports after the loss.",
            '["logits"]', active=False),
        Key("optimizer_model", kinds.boolean, "The update is a model of its own, for "
            "OptimizerStep.", "false"),
        Key("gradient_accumulation", kinds.boolean, "The input update says whether a step only "
            "adds its gradients up.", "false"),
        Key("nominal_checkpoint", kinds.boolean, "Write the checkpoint without values too.",
            "false"),
        Key("ort_format", kinds.boolean, "Write the models as .ort too.", "false"),
    ),
)  # fmt: skip

_TRAIN = Section(
    "train",
    "What graphopt train does with the graph: its options, with _ for -. Paths are seen from the "
    "current folder.",
    (
        Key("data", kinds.text, "The samples: an .npz file, a Parquet file, hf:NAME:SPLIT, or a "
            "folder.", '"digits.npz"'),
        Key("epochs", train_kinds.at_least(1), "Passes over the data, those of a run that it goes "
            "on from included.", "10"),
        Key("batch_size", train_kinds.at_least(1), "Samples in a step.", "32", active=False),
        Key("seed", train_kinds.at_least(0), "Seed of the order of the samples.", "0"),
        Key("feed", train_kinds.columns, "The arrays or columns of feeds that have another name.",
            '{ x = "pixels" }', active=False),
        Key("constant", train_kinds.constants, "What each step is fed beside the data.",
            "{ learning_rate = 0.01, group_mask = [true, false] }", active=False),
        Key("image_size", train_kinds.image_size, "Height and width of pictures, if the graph's "
            "are open.", "[32, 32]", active=False),
        Key("image_mean", train_kinds.numbers, "What is subtracted of pictures from 0 to 1: one "
            "number, or one a channel.", "[0.485, 0.456, 0.406]", active=False),
        Key("image_std", train_kinds.divisors, "What they are divided by then.",
            "[0.229, 0.224, 0.225]", active=False),
        Key("validation", kinds.text, "Data of any kind to look at after each epoch.",
            '"test.npz"', active=False),
        Key("metric", train_kinds.text_or_texts, "accuracy, top5, precision, recall, f1, mae, rmse "
            "or r2 of the validation data.", '["accuracy", "f1"]', active=False),
        Key("monitor", kinds.text, "What says which epoch is the best: loss or a metric, of "
            "the validation data if there are any.", '"accuracy"', active=False),
        Key("patience", train_kinds.at_least(1), "End after so many epochs without a better one.",
            "3", active=False),
        Key("min_delta", kinds.at_least_zero, "By how much a better one must be better, to go on.",
            "0.0"),
        Key("resume", kinds.text, "A checkpoint to continue from.", '"start.safetensors"',
            active=False),
        Key("checkpoint", kinds.text, "A folder for checkpoints, or one file, to save to after "
            "each epoch and to go on from.", '"checkpoints"'),
        Key("save_every", train_kinds.at_least(1), "Save after so many steps too.", "500",
            active=False),
        Key("save_minutes", kinds.above_zero, "Save after so many minutes too.", "10",
            active=False),
        Key("keep", train_kinds.at_least(1), "How many checkpoints stay in the folder.", "3"),
        Key("keep_best", kinds.boolean, "Keep that of the best epoch beside them.", "false"),
        Key("background", kinds.boolean, "Write to the folder while training goes on.", "false"),
        Key("export", kinds.text, "The trained model to write, for inference.", '"trained.onnx"',
            active=False),
        Key("export_best", kinds.boolean, "Export that of the best epoch; needs keep_best.",
            "false"),
        Key("log", kinds.text, "A log with a row for each epoch, .csv or .jsonl.", '"log.csv"',
            active=False),
        Key("log_every", train_kinds.at_least(1), "A row for each so many steps too.", "100",
            active=False),
        Key("plot", kinds.text, "A picture of the epochs, .png, .svg or .pdf.", '"epochs.png"',
            active=False),
        Key("distributed", kinds.one_of("mpi", "torch"), "Train with all processes that mpiexec or "
            "torchrun has started.", '"mpi"', active=False),
    ),
)  # fmt: skip

SECTIONS: Mapping[str, Section] = MappingProxyType(
    {
        section.name: section
        for section in (_GRAPH, _OPTIMIZER, _PARAMETERS, _GROUPS, _ON_DEVICE, _TRAIN)
    }
)
"""The sections of a configuration file, in the order in which it is written."""
