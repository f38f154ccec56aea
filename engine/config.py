"""All settings, as sections of one YAML file; loads without torch.

A config file holds only what differs from the defaults. `docs/config.md` is generated from the
descriptions below.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from engine.errors import ConfigError
from engine.types import GateInput, HistoryScope, MixingMode


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def settings(self, *, without: Iterable[str] = ()) -> dict[str, Any]:
        """Return the section as JSON values, some names left out."""
        return self.model_dump(mode="json", exclude=set(without))


DEFAULT_STATE = "sqlite:///state/lifelora.db"


class RunConfig(Section):
    """Where a run writes and how it is seeded."""

    root: str = Field(default="runs/default")
    """Folder or object-store URI of the stages' outputs."""
    registry: str = Field(default="runs/releases")
    """Folder or URI of the releases and of the `live` file."""
    seed: int = Field(default=17, ge=0)
    """Seed of every draw: samples, negatives, initial weights, batch order."""
    promote: bool = Field(default=True)
    """Whether a finished release becomes the live one."""
    state: str | None = Field(default=DEFAULT_STATE)
    """Database URL of the service whose deleted users no import takes up; null: there is none. The
    default one may be missing. Releases keep their settings, so a password belongs into
    `PGPASSWORD` or `~/.pgpass`."""

    @field_validator("state")
    @classmethod
    def _has_no_password(cls, state: str | None) -> str | None:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = None if state is None else make_url(state)
        except ArgumentError:
            raise ValueError("must be sqlite:///file or postgresql://user@host/name") from None
        if url is not None and (url.password is not None or "password" in url.query):
            raise ValueError("must not hold a password; use PGPASSWORD or ~/.pgpass")
        return state


class ColumnsConfig(Section):
    """Column names of a generic CSV or Parquet source; None where there is none."""

    user: str = Field(default="user_id")
    """User id."""
    item: str = Field(default="item_id")
    """Item id."""
    timestamp: str = Field(default="timestamp")
    """Time of the event: seconds since 1970 (number), or ISO 8601 text."""
    rating: str | None = Field(default=None)
    """Rating, or None."""
    label: str | None = Field(default=None)
    """Label column of impressions (0 or 1), or None."""
    item_title: str = Field(default="title")
    """Title in the items file."""


class LabelConfig(Section):
    """How an event becomes a label."""

    kind: Literal["threshold", "column", "implicit"] = Field(default="threshold")
    """`threshold`: 1 where rating >= threshold. `column`: the label column as it is. `implicit`:
    every event is a positive and negatives are drawn (see `slates`)."""
    threshold: float = Field(default=4.0)
    """Lowest rating that counts as positive."""


class SourceConfig(Section):
    """Raw logs."""

    format: Literal["recbole", "movielens", "csv", "parquet"] = Field(default="recbole")
    """`recbole`: atomic files. `movielens`: a GroupLens layout (`ratings.dat` or `ratings.csv` and
    its companions), as a folder or as the downloaded .zip. `csv`, `parquet`: see `columns`."""
    path: str = Field(default="cache/ml-100k")
    """Folder, .zip, or (generic formats) a folder with `interactions.*`, `items.*`, `users.*`."""
    columns: ColumnsConfig = Field(default=ColumnsConfig())
    """Column names of the generic formats."""
    label: LabelConfig = Field(default=LabelConfig())
    """How labels are made."""
    rating_min: float = Field(default=1.0)
    """Lowest allowed rating; rows outside the range are quarantined."""
    rating_max: float = Field(default=5.0)
    """Highest allowed rating."""
    rating_levels: int = Field(default=5, ge=1, le=100)
    """Evenly spaced rating levels that the CRM tells apart."""
    item_fields: tuple[str, ...] = Field(default=("genres", "year"))
    """Item columns used as features, prompt text and filters."""
    user_fields: tuple[str, ...] = Field(default=("gender", "age", "occupation"))
    """User columns used as features and prompt text."""
    max_bad_share: float = Field(default=0.02, ge=0, le=1)
    """The import stops if a larger share of rows is quarantined."""
    chunk_rows: int = Field(default=200_000, ge=1)
    """Rows read at a time from one file."""

    @property
    def has_ratings(self) -> bool:
        """Tell whether events may have ratings of their own; else all are imported with 1."""
        if self.label.kind == "implicit":
            return False
        return self.format in ("recbole", "movielens") or self.columns.rating is not None


class SplitConfig(Section):
    """One timeline for all users."""

    train: float = Field(default=0.8, gt=0, lt=1)
    """Share of all events, by time, before T1."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share of all events, by time, in [T1, T2)."""
    crm: float = Field(default=0.8, gt=0, lt=1)
    """Share of the training events before T0: these train the CRM, the rest train the bank."""

    @model_validator(mode="after")
    def _leave_a_test_window(self) -> Self:
        if self.train + self.validation >= 1:
            raise ValueError("split.train + split.validation must leave room for the test window")
        return self


class HistoryConfig(Section):
    """Per-user histories."""

    num_partitions: int = Field(default=8, ge=2)
    """Files that histories, slates and examples are cut into, by a stable hash of the user. At
    least two: the CRM's training rows of one read item statistics of the others."""


class SlateConfig(Section):
    """Groups of consecutive rows of one user that share one history."""

    max_size: int = Field(default=10, ge=1, le=100)
    """Rows of a slate."""
    max_span_s: int = Field(default=86_400, ge=1)
    """A slate ends where the next row is more than this many seconds after its first."""
    negatives: int = Field(default=4, ge=1)
    """Negatives drawn for each positive of implicit feedback."""
    negative_draw: Literal["popularity", "uniform"] = Field(default="popularity")
    """How negatives of items new to the user are drawn from the catalogue (implicit feedback):
    in proportion to (events before T1 + 1) ^ 0.75, or uniformly. Those of a repeated item are
    drawn uniformly from the user's own earlier items."""


class ItemTextConfig(Section):
    """Item text vectors."""

    encoder: Literal["base_model", "sentence_transformer"] = Field(default="base_model")
    """`base_model`: mean-pooled hidden states of the base model."""
    encoder_path: str | None = Field(default=None)
    """Folder or id of the sentence encoder."""
    dims: int = Field(default=64, ge=2)
    """Width of the projected vectors (PCA after centring)."""
    batch_size: int = Field(default=64, ge=1)
    """Items embedded at a time."""


class BaseModelConfig(Section):
    """The frozen language model."""

    name: str = Field(default="smollm2-135m-instruct")
    """`smollm2-135m-instruct` (from the model cache), a local folder, or a Hugging Face id."""
    cache: str = Field(default="cache/models")
    """Folder of fetched models."""
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto")
    """`auto`: the GPU that a process was given, if any. `cuda` needs `adapters.use_gpu`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto")
    """Type of the frozen weights and activations; bank, gates and CRM stay in float32. `auto`:
    bfloat16 on a GPU and on CPUs with units for it (AMX, AVX512-BF16), else float32, which is
    faster there."""
    gradient_checkpointing: bool = Field(default=False)
    """Recompute activations in the backward pass: less memory, a third more time."""


class CRMConfig(Section):
    """The sequential conventional recommendation model."""

    embedding_dim: int = Field(default=16, ge=2)
    """Width of an id or field embedding."""
    state_dim: int = Field(default=64, ge=2)
    """Width of the user state and of retrieval vectors."""
    hidden_dims: tuple[int, ...] = Field(default=(256, 128))
    """Widths of the CTR head; the last is the target-aware state."""
    max_behaviors: int = Field(default=60, ge=1)
    """Past items that target attention reads: the most relevant to the candidate."""
    max_history: int = Field(default=1000, ge=1)
    """Newest past events among which they are retrieved."""
    max_recent: int = Field(default=50, ge=1)
    """Newest past events that the user state reads."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout of the CTR head."""
    id_dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of user and item ids replaced by the unknown id in training, so that it is learned."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Peak rate of AdamW; linear decay to zero."""
    weight_decay: float = Field(default=1e-5, ge=0)
    """AdamW weight decay of the layers."""
    embedding_weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW weight decay of the id and field embeddings."""
    batch_size: int = Field(default=512, ge=1)
    """Global batch in rows."""
    lanes: int = Field(default=4, ge=1)
    """Independent streams of partitions that make up a batch; the number of workers divides it, so
    any allowed number of workers sees the same batches."""
    epochs: int = Field(default=3, ge=1)
    """Passes over the rows."""
    retrieval_weight: float = Field(default=0.2, ge=0)
    """Weight of the sampled softmax beside the CTR loss."""
    retrieval_negatives: int = Field(default=256, ge=1)
    """Items drawn for the sampled softmax of each step."""
    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers."""
    threads_per_worker: int = Field(default=2, ge=1)
    """CPU threads and Ray CPUs of each worker."""
    use_gpu: bool = Field(default=False)
    """Whether each worker takes a GPU."""
    zero_stage: int = Field(default=1, ge=0, le=3)
    """DeepSpeed ZeRO stage."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts after a failed worker."""


class PromptConfig(Section):
    """Text that the language model reads."""

    scope: HistoryScope = Field(default=HistoryScope.SLATE)
    """`slate`: candidates share one prefix. `candidate`: each has its own history text."""
    history_size: int = Field(default=10, ge=0)
    """Past interactions in the text."""
    recent_share: float = Field(default=0.5, ge=0, le=1)
    """Share of them that are the newest; the rest are the most relevant to the candidates (to the
    user's own centre in slate scope)."""
    max_tokens: int = Field(default=1024, ge=64)
    """Longest prefix plus one candidate block; the oldest history is cut first."""
    history_fields: tuple[str, ...] = Field(default=())
    """Item fields shown with a past item."""
    candidate_fields: tuple[str, ...] = Field(default=("year", "genres"))
    """Item fields shown with a candidate."""
    system: str = Field(
        default="You know the user's taste in {noun}s. After each {noun} answer only {positive} or "
        "{negative}."
    )
    """System message; may name {noun}, {positive}, {negative}."""
    noun: str = Field(default="movie")
    """What an item is called."""
    verb: str = Field(default="enjoy")
    """What a positive label means: "will the user <verb> it?"."""
    positive: str = Field(default="Yes")
    """Answer text of label 1; one token."""
    negative: str = Field(default="No")
    """Answer text of label 0; one token."""

    @field_validator("system")
    @classmethod
    def _check_system(cls, system: str) -> str:
        try:
            system.format(noun="", positive="", negative="")
        except (AttributeError, LookupError, ValueError) as error:
            raise ValueError(
                f"{system!r}: {error}; in braces it may name noun, positive and negative, and "
                "braces of its own are doubled"
            ) from error
        return system


class BankConfig(Section):
    """The bank of meta-LoRA adapters and its gates."""

    num_adapters: int = Field(default=8, ge=1)
    """N, adapters in the bank."""
    rank: int = Field(default=8, ge=1)
    """r, rank of each adapter."""
    alpha: float = Field(default=16.0, gt=0)
    """LoRA scale is alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the adapters."""
    targets: tuple[str, ...] = Field(default=("q_proj", "v_proj"))
    """Linear layers of each attention block that the bank changes."""
    mixing: MixingMode = Field(default=MixingMode.SUM_OF_PRODUCTS)
    """`product_of_sums`: (sum a_k B_k)(sum a_k A_k). `sum_of_products`: sum a_k B_k A_k."""
    gate: GateInput = Field(default=GateInput.USER)
    """CRM output that the gates read."""
    gate_hidden: int = Field(default=60, ge=1)
    """Hidden width of each gate's MLP."""
    gate_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in each gate's MLP."""
    temperature: float = Field(default=1.0, gt=0)
    """T of softmax(g / T)."""
    readout: Literal["answer", "block"] = Field(default="block")
    """Where a candidate's logit is read. `answer`: log-odds of the two answer tokens, at its last
    token (the paper's form). `block`: that, and a learned linear function of the mean state of the
    candidate's tokens."""


class AdapterTrainingConfig(Section):
    """Stage 2: bank and gates on a small text sample."""

    max_slates: int = Field(default=1200, ge=1)
    """Slates drawn from [T0, T1)."""
    epochs: int = Field(default=1, ge=1)
    """Passes over them."""
    batch_slates: int = Field(default=4, ge=1)
    """Slates of a global batch; prompts where each candidate has its own (candidate scope, target
    gates)."""
    micro_batch_slates: int = Field(default=2, ge=1)
    """Slates (prompts) in one forward pass of one worker: few pad each other less, many fill a
    GPU."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate of the bank; warm-up, then linear decay to zero. Both rates are for some hundred
    steps: 1,600 steps of MovieLens-1M wanted a quarter of them (docs/results.md)."""
    gate_learning_rate: float = Field(default=4e-3, gt=0)
    """Peak rate of the gates."""
    readout_learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate of the readout, see `bank.readout`; it learns on standardised states."""
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps that warm up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    loss: Literal["answers", "vocabulary", "pairs", "joint"] = Field(default="joint")
    """`answers`: cross-entropy on the two answer logits. `vocabulary`: over all tokens. `pairs`:
    on the difference of logits of a positive and a negative of the same slate, so only the order
    within a slate is learned. `joint`: `answers` + `pairs`; `answers` alone in candidate scope and
    with target gates, where a prompt has one candidate, so no pairs."""
    learn: Literal["labels", "residuals"] = Field(default="labels")
    """`labels`: the language model's logit alone fits the label. `residuals`: the sum of it and the
    CRM's logit does, so it learns what the CRM does not know; its own logit is no opinion then."""
    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers."""
    threads_per_worker: int = Field(default=2, ge=1)
    """CPU threads and Ray CPUs of each worker."""
    use_gpu: bool = Field(default=False)
    """Whether each worker takes a GPU."""
    zero_stage: int = Field(default=1, ge=0, le=3)
    """DeepSpeed ZeRO stage."""
    checkpoint_every: int = Field(default=25, ge=1)
    """Steps between checkpoints."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts after a failed worker."""

    @property
    def rates(self) -> dict[str, float]:
        """Return the peak rate of each part of what is trained."""
        return {
            "bank": self.learning_rate, "gates": self.gate_learning_rate,
            "readout": self.readout_learning_rate,
        }


class TargetsConfig(Section):
    """What a run should reach; the report says which were met. None: not asked for."""

    crm_auc: float | None = Field(default=None, gt=0, lt=1)
    """Lowest test AUC (row level) of the released CRM: mean over `evaluation.crm_seeds`, or of the
    released one if there are none."""
    crm_full_auc: float | None = Field(default=None, gt=0, lt=1)
    """Lowest test AUC (row level) of the CRM trained on all rows before T1: mean of the seeds."""
    llm_auc: float | None = Field(default=None, gt=0, lt=1)
    """Lowest test AUC of the language model alone."""
    gate_variation: float | None = Field(default=0.05, ge=0, le=1)
    """Lowest mean total variation between two users' gates."""


class EvaluationConfig(Section):
    """What is measured on the validation and test windows."""

    validation_rows: int = Field(default=1600, ge=1)
    """Rows (of whole users) that the language model scores on validation."""
    test_rows: int = Field(default=2400, ge=1)
    """Rows (of whole users) that the language model scores on test."""
    max_rows: int = Field(default=500_000, ge=1)
    """Rows of a window (of whole users, by a stable hash) on which CRM and popularity are measured;
    the work is `bootstrap_draws` times this."""
    references: tuple[Literal["zero_shot", "shuffled"], ...] = Field(
        default=("zero_shot", "shuffled")
    )
    """What the test sample is scored with beside the bank: no adapter, another user's gates. Each
    costs as much as the bank's own scores of it."""
    batch_slates: int = Field(default=8, ge=1)
    """Slates scored at a time."""
    bootstrap_draws: int = Field(default=1000, ge=100)
    """Draws over users behind each 95% interval."""
    popularity_smoothing: float = Field(default=10.0, gt=0)
    """Events of average quality that every item is given beside its own."""
    crm_seeds: tuple[int, ...] = Field(default=())
    """Seeds of additional CRM trainings, out of time and on the whole training window, that show
    the noise between runs; empty for none."""
    targets: TargetsConfig = Field(default=TargetsConfig())
    """What the run should reach."""


class RankingConfig(Section):
    """How a request is answered."""

    max_candidates: int = Field(default=200, ge=1)
    """Items that the retrieval head proposes, and the most that a request may name."""
    llm_candidates: int = Field(default=20, ge=0)
    """M, best items by CRM that the language model re-ranks; 0 answers by the CRM alone."""
    max_k: int = Field(default=100, ge=1)
    """Most items of an answer."""
    max_history: int = Field(default=1000, ge=1)
    """Newest events of a user that a request reads, and the most that a guest may bring."""
    shown_history: int = Field(default=20, ge=0)
    """Newest events that an answer lists."""


class RetrievalConfig(Section):
    """How candidates are searched in the catalogue of a loaded release."""

    exact_items: int = Field(default=50_000, ge=0)
    """Largest catalogue, in items, that is searched exactly. A larger one is indexed with faiss
    when its release is loaded: about 4 s and 270 MiB for 1,000,000 items of width 64."""
    probes: int = Field(default=64, ge=1)
    """Cells, of the about sqrt(items) of the index, that a search without filters looks into; one
    with filters looks into more. More of them cost time and find more of the exact answer."""


class RolesConfig(Section):
    """What rows may be used for, by user and time, so that a night can be judged on rows that
    nothing ever learned from. The rest of the rows trains the CRM."""

    judge: float = Field(default=0.2, gt=0, lt=1)
    """Share of users whose rows only judge: they are never learned or counted."""
    tune: float = Field(default=0.05, ge=0, lt=1)
    """Share of users whose rows fit the fusion."""
    bank: float = Field(default=0.1, gt=0, lt=1)
    """Share of users whose rows train bank and gates, and never the CRM that they read."""
    rotate_days: int = Field(default=28, ge=1)
    """Every so many days the users change roles; a row keeps the role of its time."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw. It must not change as long as releases descend from one another."""

    @model_validator(mode="after")
    def _leave_rows_to_the_crm(self) -> Self:
        if self.judge + self.tune + self.bank >= 1:
            raise ValueError("judge + tune + bank must leave users to train the CRM")
        return self


class PromotionConfig(Section):
    """When a challenger replaces the live release; differences are challenger - live, with 95%
    intervals over users."""

    loss_margin: float = Field(default=0.01, ge=0)
    """Most by which the upper end of the rise in log loss may exceed zero, over all judged rows."""
    auc_margin: float = Field(default=0.01, ge=0)
    """Most by which the lower end of the change of AUC may fall below zero, over all judged rows.
    """
    slice_loss_margin: float = Field(default=0.005, ge=0)
    """A slice holds the challenger back where its rise in log loss is above this for certain: the
    lower end of the interval."""
    min_slice_rows: int = Field(default=500, ge=1)
    """Smaller slices are reported, and hold nothing back."""
    min_users: int = Field(default=10, ge=1)
    """With fewer judged users the intervals are too short to go by: the challenger is held, and a
    slice of fewer users holds nothing back."""
    max_calibration_error: float = Field(default=0.1, gt=0, le=1)
    """Highest expected calibration error of the fused answer."""
    min_entropy_share: float = Field(default=0.0, ge=0, le=1)
    """Lowest mean entropy of the gates, as a share of that of uniform ones."""
    max_adapter_load: float = Field(default=1.0, gt=0, le=1)
    """Highest mean gate weight of one adapter of the bank."""
    max_size_ratio: float = Field(default=2.0, gt=0)
    """Largest size of its files, as a multiple of the live release's."""
    max_cpu_ratio: float = Field(default=2.0, gt=0)
    """Most CPU time for the answers that the language model gives in the exam, as a multiple of the
    live release's."""


class NightConfig(Section):
    """The nightly update: what it learns, and how it is judged."""

    roles: RolesConfig = Field(default=RolesConfig())
    promotion: PromotionConfig = Field(default=PromotionConfig())
    learn: Literal["all", "crm"] = Field(default="all")
    """`crm`: bank and gates stay as they are, and read the new CRM's states."""
    from_scratch: bool = Field(default=False)
    """Whether CRM and bank begin anew, at the settings of a whole training, on all rows of their
    roles, not the new ones alone: what a night costs is no longer in proportion to the day."""
    judge_days: int = Field(default=14, ge=1)
    """Newest days whose rows judge."""
    judge_rows: int = Field(default=1500, ge=1)
    """Rows (of whole users) of them that the language model scores, for each release."""
    old_days: int = Field(default=14, ge=0)
    """The old panel: the first days of which rows judge, from where the first release began to
    report. Once `judge_days` are past them, `judge_rows` rows of them tell what was forgotten; 0:
    nobody asks."""
    tune_days: int = Field(default=28, ge=1)
    """Newest days whose rows fit the fusion."""
    min_tune_rows: int = Field(default=500, ge=1)
    """With fewer rows the fusion of the live release is kept."""
    max_user_rows: int = Field(default=1000, ge=1)
    """Newest rows of one user that a night learns in each role, replays, counts or judges by: a
    machine that sends a million outweighs nobody. Histories have them all."""
    crm_rate: float = Field(default=0.1, gt=0)
    """Learning rate of the CRM, as a multiple of `crm.learning_rate`."""
    bank_rate: float = Field(default=0.1, gt=0)
    """Learning rates of bank, gates and readout, as a multiple of those of `adapters`."""
    max_slates: int = Field(default=240, ge=1)
    """Slates that the bank learns in a night, replay among them."""
    replay: float = Field(default=0.2, ge=0, lt=1)
    """Share of old rows among those that CRM and bank learn."""
    replay_weight: float = Field(default=3.0, ge=1)
    """How much likelier than others a slate of a user without newer events, or of items without, is
    replayed."""
    anchor: float = Field(default=0.01, ge=0)
    """Weight in the loss of the squared distances of the bank's A and B, gates and readout from the
    live release's, each divided by the square of what is there: a weight of 1 costs 0.01 where all
    four have moved by 5%. Needs ZeRO stage 0, 1 or 2."""
    lease_s: float = Field(default=120.0, ge=1)
    """How long after a night's process was killed no other one may begin."""
    keep_releases: int | None = Field(default=7, ge=1)
    """Newest releases that stay when a night has ended, with what they were made of; the live one,
    the one before it and a challenger stay whatever their age. Other releases, and what nights and
    trainings left in `run.root`, are deleted. null keeps everything, as it must where several
    registries share one `run.root`."""
    keep_layers: int = Field(default=7, ge=1)
    """Versions of the histories that lie upon one another before all are written anew; what deleted
    users left is gone from the files then."""


class EngineConfig(Section):
    """Everything, as one file."""

    run: RunConfig = Field(default=RunConfig())
    source: SourceConfig = Field(default=SourceConfig())
    split: SplitConfig = Field(default=SplitConfig())
    histories: HistoryConfig = Field(default=HistoryConfig())
    slates: SlateConfig = Field(default=SlateConfig())
    item_text: ItemTextConfig = Field(default=ItemTextConfig())
    base_model: BaseModelConfig = Field(default=BaseModelConfig())
    crm: CRMConfig = Field(default=CRMConfig())
    prompt: PromptConfig = Field(default=PromptConfig())
    bank: BankConfig = Field(default=BankConfig())
    adapters: AdapterTrainingConfig = Field(default=AdapterTrainingConfig())
    evaluation: EvaluationConfig = Field(default=EvaluationConfig())
    night: NightConfig = Field(default=NightConfig())

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.crm.lanes % self.crm.num_workers:
            raise ValueError(
                f"crm.num_workers {self.crm.num_workers} must divide crm.lanes {self.crm.lanes}"
            )
        if self.crm.batch_size % self.crm.lanes:
            raise ValueError(
                f"crm.lanes {self.crm.lanes} must divide crm.batch_size {self.crm.batch_size}"
            )
        if self.adapters.batch_slates % self.adapters.num_workers:
            raise ValueError(
                f"adapters.num_workers {self.adapters.num_workers} must divide "
                f"adapters.batch_slates {self.adapters.batch_slates}"
            )
        if self.adapters.learn == "residuals" and self.adapters.loss == "vocabulary":
            raise ValueError(
                "adapters.learn 'residuals' needs adapters.loss 'answers', 'pairs' or 'joint'"
            )
        if self.bank.readout == "block" and self.adapters.loss == "vocabulary":
            raise ValueError("adapters.loss 'vocabulary' needs bank.readout 'answer'")
        is_apart = HistoryScope.CANDIDATE is self.prompt.scope or GateInput.TARGET is self.bank.gate
        if is_apart and self.adapters.loss == "pairs":
            raise ValueError(
                "adapters.loss 'pairs' orders a slate in one prompt; prompt.scope must be 'slate' "
                "and bank.gate not 'target'"
            )
        if self.base_model.device == "cuda" and not self.adapters.use_gpu:
            raise ValueError("base_model.device 'cuda' needs adapters.use_gpu")
        if self.prompt.scope is HistoryScope.CANDIDATE and self.bank.gate is GateInput.HYBRID:
            raise ValueError("bank.gate 'hybrid' shares a prefix; prompt.scope must be 'slate'")
        for name in (*self.prompt.history_fields, *self.prompt.candidate_fields):
            if name not in self.source.item_fields:
                raise ValueError(
                    f"prompt shows item field {name!r}; source.item_fields has "
                    f"{self.source.item_fields}"
                )
        if self.source.label.kind == "implicit" and self.slates.max_size <= self.slates.negatives:
            raise ValueError(
                f"slates.max_size {self.slates.max_size} must be above slates.negatives "
                f"{self.slates.negatives}: a slate holds a positive and its negatives"
            )
        if self.source.rating_min >= self.source.rating_max:
            raise ValueError("source.rating_min must be below source.rating_max")
        return self

    def at_night(self) -> "EngineConfig":
        """Return the settings of a night's sample: no reference scores and, unless all begins anew,
        fewer slates.
        """
        slates = self.adapters.max_slates if self.night.from_scratch else self.night.max_slates
        return self.model_copy(update={
            "adapters": self.adapters.model_copy(update={"max_slates": slates}),
            "evaluation": self.evaluation.model_copy(update={"references": ()}),
        })


class ServingConfig(Section):
    """Arguments of the Serve application (the registry's root comes in `user_config`)."""

    database_url: str = Field(default=DEFAULT_STATE)
    """SQLAlchemy URL of events and histories: SQLite for one machine, PostgreSQL for many. A
    relative path is below the working folder of the Ray node."""
    model_cache: str = Field(default="cache/models")
    """Folder of fetched base models, on every node that runs a scorer."""
    device: str = Field(default="auto")
    """Device of the scorer's language model."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of each scorer replica."""
    max_batch_size: int = Field(default=8, ge=1, le=32)
    """Requests that one forward pass of the language model may serve."""
    batch_wait_s: float = Field(default=0.005, ge=0)
    """How long a request that finds an idle scorer waits for others; later ones share the next
    batch."""
    prefix_cache_mib: int = Field(default=512, ge=0)
    """Memory of each scorer replica for prefixes that were read: a user's next request costs only
    its candidates. About 23 kB a token with SmolLM2-135M in bfloat16; 0 keeps none."""
    max_events: int = Field(default=1000, ge=1)
    """Most events, items or profiles of one request."""
    deadline_ms: int | None = Field(default=None, ge=1)
    """When an answer is wanted that names no time of its own: the language model is left out where
    it would take longer. None: any time."""
    impression_days: int = Field(default=30, ge=0)
    """How long the database keeps what was recommended to whom; 0 stores nothing of it."""
    ranking: RankingConfig = Field(default=RankingConfig())
    """How requests are answered."""
    retrieval: RetrievalConfig = Field(default=RetrievalConfig())
    """How candidates are found."""


HOME_VARIABLE = "LIFELORA_HOME"
"""Folder that relative paths of a config start from; by default the working folder. A submitted
job works in a copy of the repository without its data, so its cluster sets this."""

RETIRED = (("base_model", "attention"),)
"""Settings that releases of older versions name and that nothing reads any more."""

PATHS = (("run", "root"), ("run", "registry"), ("source", "path"), ("base_model", "cache"))


def at_home(path: str) -> str:
    """Return a path that starts from the home folder, if one is set; a URI as it is."""
    home = os.environ.get(HOME_VARIABLE)
    if not home or "://" in path:
        return path
    return str(Path(home) / Path(path).expanduser())


def default_state() -> str:
    """Return the database of a service whose configuration names none."""
    return database_at_home(DEFAULT_STATE)


def database_at_home(url: str) -> str:
    """Return a database URL whose relative SQLite file starts from the home folder."""
    prefix = "sqlite:///"
    return prefix + at_home(url.removeprefix(prefix)) if url.startswith(prefix) else url


def _shown(value: object) -> str:
    """Return the beginning of a value for a message, the password of a URL left out."""
    text = re.sub(r"(://[^:/@\s]*):.*@", r"\1:***@", repr(value))
    return re.sub(r"([?&]password=)[^&'\"]*", r"\1***", text)[:80]


def _at_home(values: dict[str, Any]) -> dict[str, Any]:
    for section, name in PATHS:
        values[section][name] = at_home(values[section][name])
    if values["run"]["state"] is not None:
        values["run"]["state"] = database_at_home(values["run"]["state"])
    model = at_home(values["base_model"]["name"])
    if Path(model).is_dir():                    # else a name of the cache or of Hugging Face
        values["base_model"]["name"] = model
    return values


def load_config(path: str, overrides: dict[str, Any] | None = None) -> EngineConfig:
    """Read a YAML file; `overrides` are dotted names (`{"run.seed": 3}`).

    Raises ConfigError that names the setting, its value and what is allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"config {path!r} is not a file (working folder {os.getcwd()!r})")
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path!r} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config {path!r} must hold sections, got {type(values).__name__}")
    for name, value in (overrides or {}).items():
        section = values
        *parents, leaf = name.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"config {path!r}: {parent}: not a section (got {section!r})")
        section[leaf] = value
    try:
        config = EngineConfig.model_validate(values)
        return EngineConfig.model_validate(_at_home(config.settings()))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'config'}: {fault['msg']} "
            f"(got {_shown(fault['input'])})"
            for fault in error.errors()
        )
        raise ConfigError(f"config {path!r}: {faults}") from error
