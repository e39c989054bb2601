"""Sections of configs for text. The released code of Lee et al. 2023 has no text part: the
values are those of Gururangan et al. 2020 (Don't Stop Pretraining, task-adaptive
pre-training) where they have one, else ours.
"""

from typing import Any

from flax_adapt import data, models, weights
from flax_adapt.base.errors import UserError, choose, reword_errors
from flax_adapt.defaults import augment, sections, shared
from flax_adapt.defaults.source import SOURCE_ARGUMENTS, measured_source
from flax_adapt.defaults.texts.optim import text_finetune_optim, text_optim


def text_data(source: str, split: str, tokenizer: str, **changes: Any) -> dict:
    """Returns a data section: field "text", classes in "label", a text a row, 128 tokens.

    tokenizer: path of a model folder. `data` explains the layouts.
    """
    section = dict(
        modality="text",
        source=source,
        data_dir="",
        split=split,
        tokenizer=tokenizer,
        text_fields=("text",),
        label_field="label",
        label_kind="class",
        classes=(),
        layout="padded",
        seq_len=128,
        buckets=(16, 32, 48, 64, 96, 128, 192, 256, 384),
        subset=shared.ALL,
        prefetch_batches=4,
        max_bad_fraction=0.01,
    )
    return sections.change(section, changes)


def mlm(mask_token_id: int) -> dict[str, Any]:
    """Returns the objective of BERT (Devlin et al. 2019): 15 % of the tokens are predicted.

    Of these 80 % are masked, 10 % random, 10 % unchanged. The head is applied to a quarter of
    a row at most (ours): of the rows of 128 tokens one in 1 000 has more hidden.
    """
    return dict(
        name="mlm",
        mask_rate=0.15,
        mask_token_id=mask_token_id,
        mask_share=0.8,
        random_share=0.1,
        whole_word=False,
        max_masked_fraction=0.25,
    )


def text_pretrain_stage(
    name: str, texts: dict[str, Any], mask_token_id: int, **changes: Any
) -> dict[str, Any]:
    """Returns further masked pre-training: 12 500 steps of 64 rows, dropout 0.1."""
    num_steps = changes.get("num_steps", 12_500)
    section = shared.pretrain_stage(
        name,
        texts,
        objective=mlm(mask_token_id),
        num_steps=num_steps,
        optim=text_optim(num_steps),
        model=text_model(),
    )
    return sections.change(section, changes)


def text_model(**changes: Any) -> dict[str, Any]:
    """Returns `sections.stage_model` with dropout 0.1, as BERT and RoBERTa were pre-trained."""
    return sections.stage_model(**{"dropout": 0.1, **changes})


def text_finetune_stage(
    name: str, texts: dict[str, Any], test: dict[str, Any], pooling: str, **changes: Any
) -> dict[str, Any]:
    """Returns fine-tuning: 1 000 steps of 16 texts (10 epochs of 1 600), macro-F1.

    pooling: features that the new head reads, "pooler" (BERT's and RoBERTa's own: a tanh
    layer on CLS, always new since masked pre-training has none), "cls" or "mean".
    """
    num_steps = changes.get("num_steps", 1_000)
    section = shared.finetune_stage(
        name,
        texts,
        test,
        num_steps=num_steps,
        batch_size=16,
        optim=text_finetune_optim(num_steps),
        model=text_model(
            pooling=pooling,
            fresh=("pooler", "head") if pooling == "pooler" else ("head",),
        ),
        eval=dict(
            every_steps=0, batch_size=64, data=test, metric="macro_f1", mode="max"
        ),
    )
    return sections.change(section, changes)


# Arguments of all configs of text; the docstring of bert_self_distill explains them.
TEXT_ARGUMENTS: dict[str, Any] = dict(
    dataset="",
    init="",
    init_format="",
    data_dir="",
    seq_len=128,
    text_field="text",
    pair_field="",
    label_field="label",
    test_split="test",
    heldout_split="",
    per_class=0,
    labels="each_seed",
    seeds=5,
    steps=12_500,
    batch_size=64,
    lr=1e-4,
    finetune_steps=1_000,
    finetune_lr=2e-5,
    regress=False,
    mlm_warmup=0,
    pooling="pooler",
    augment="",
    **SOURCE_ARGUMENTS,
)

# Pooling of the head -> the state that self-distillation compares.
STATES = {"pooler": "cls", "cls": "cls", "mean": "mean"}


class TextData:
    """Makes the stages of the configs of text, from TEXT_ARGUMENTS."""

    def __init__(self, args: Any):
        if not args.dataset or not args.init:
            raise UserError(
                "the config needs dataset=SOURCE (jsonl:PATH, csv:PATH, tsv:PATH, "
                "text:PATH, tfds:NAME) and init=PATH, a Hugging Face text encoder's "
                "folder with its tokenizer"
            )
        augment.check_texts(args.augment)
        self.args, self.init = args, args.init
        self.init_options = shared.describe_init(args.init, args.init_format, {})
        with reword_errors(shared.ARGUMENTS):
            self.model = weights.model_config(args.init, **self.init_options)
        kind = self.model["kind"]
        if models.TASKS[kind]["encoder"].modality != "text":
            raise UserError(
                f"init={args.init} holds a {kind}; this config takes text models"
            )
        self.mask_token_id = data.open_tokenizer(args.init).mask_id
        few = shared.few(args.per_class, args.labels)
        self.texts = self._unlabelled_data("train")
        self.labelled = self._make_section("train", subset=few)
        rest = args.test_split == "rest"
        self.test = (
            self._make_section("train", subset={**few, "part": "rest"})
            if rest
            else self._make_section(args.test_split)
        )

    def _unlabelled_data(self, split: str) -> dict[str, Any]:
        """Returns texts for masked pre-training: packed into rows; of pairs one a row."""
        layout = "padded" if self.args.pair_field else "packed"
        return self._make_section(split, label_field="", layout=layout)

    def _make_section(self, split: str, **changes: Any) -> dict[str, Any]:
        args = self.args
        section = text_data(
            args.dataset,
            split,
            args.init,
            data_dir=args.data_dir,
            seq_len=args.seq_len,
            text_fields=tuple(filter(None, (args.text_field, args.pair_field))),
            label_field=args.label_field,
            label_kind="number" if args.regress else "class",
        )
        return sections.change(section, changes)

    @property
    def start(self) -> str:
        """The weights that all masked pre-training starts from: those with an MLM head."""
        return "stage:mlm_warmup" if self.args.mlm_warmup else "pretrained"

    def warmup_stages(self) -> list[dict[str, Any]]:
        """Returns the stage that trains a new MLM head with the encoder frozen, or [].

        Raises UserError without `mlm_warmup` for weights without an MLM head.
        """
        steps = self.args.mlm_warmup
        if not steps and "mlm" not in weights.parts(
            self.init, "mlm", **self.init_options
        ):
            raise UserError(
                f"init={self.init} has no masked-language head; give mlm_warmup=STEPS, "
                "such as 500, to train a new one with the encoder frozen"
            )
        if not steps:
            return []
        stage = self._make_pretraining(
            "mlm_warmup",
            init_from="pretrained",
            num_steps=steps,
            optim=text_optim(steps, lr=1e-3, freeze=("encoder/.*",)),
        )
        stage["model"] = text_model(fresh=("mlm",))
        return [stage]

    def pretrain_stage(self, name: str) -> dict[str, Any]:
        """Returns masked pre-training from `start`."""
        return self._make_pretraining(name, init_from=self.start)

    def _make_pretraining(self, name: str, **changes: Any) -> dict[str, Any]:
        fields = {**self._shared_fields(), **changes}
        return text_pretrain_stage(name, self.texts, self.mask_token_id, **fields)

    def _shared_fields(self) -> dict[str, Any]:
        """Returns the fields that all masked pre-training shares."""
        args, heldout = self.args, None
        if args.heldout_split:
            heldout = dict(
                every_steps=0,
                batch_size=args.batch_size,
                data=self._unlabelled_data(args.heldout_split),
                metric="perplexity",
                mode="min",
            )
        return dict(
            num_steps=args.steps,
            batch_size=args.batch_size,
            optim=text_optim(args.steps, lr=args.lr),
            eval=heldout,
        )

    def distill_stages(self, first_teacher: str, rounds: int) -> list[dict[str, Any]]:
        """Returns the rounds of self-distillation on text; the masked loss is `mlm`."""
        state = choose("pooling", self.args.pooling, STATES)
        objective = {**sections.distill(mlm(self.mask_token_id)), "state": state}
        return shared.distill_stages(
            self.texts,
            first_teacher,
            rounds,
            objective=objective,
            init_from=self.start,
            model=text_model(),
            **self._shared_fields(),
        )

    def finetune_stage(self, name: str, init_from: str) -> dict[str, Any]:
        args = self.args
        stage = text_finetune_stage(
            name,
            self.labelled,
            self.test,
            args.pooling,
            init_from=init_from,
            seeds=tuple(range(args.seeds or TEXT_ARGUMENTS["seeds"])),
            num_steps=args.finetune_steps,
            optim=text_finetune_optim(args.finetune_steps, lr=args.finetune_lr),
        )
        if args.regress:
            stage["objective"] = sections.regress()
            stage["eval"] = {**stage["eval"], "metric": "spearman"}
        return stage

    def experiment(self, stages: list[dict[str, Any]]) -> dict[str, Any]:
        return shared.experiment(
            init=self.init,
            init_format=self.args.init_format,
            model=self.model,
            evaluate=shared.evaluate(
                self.labelled,
                self.test,
                source=measured_source(self.args, self._make_source),
                pooling=choose("pooling", self.args.pooling, STATES),
            ),
            stages=tuple(stages),
        )

    def _make_source(self, name: str, split: str) -> dict[str, Any]:
        """Returns the labelled section of the source: of single texts with classes."""
        fields = dict(source=name, text_fields=(self.args.text_field,))
        return self._make_section(split, label_kind="class", **fields)
