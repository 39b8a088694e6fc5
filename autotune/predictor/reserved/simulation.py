"""Reserved peak of one rank, simulated: the allocator runs over the allocations of a strategy.

It needs known allocations (`ReservedModel.recipe` says for which strategies); for all others the
caller uses its formula. Does not know how scripts are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from autotune.knob_values import CheckpointScope, MasterWeights, ModuleGroup, Offload, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.predictor.memory.activations import TokenBytes
from autotune.predictor.memory.gradients import overlaps
from autotune.predictor.memory.micro_batch import has_mask
from autotune.predictor.memory.optimizer_states import ABSMAX_BYTES, state_bytes
from autotune.predictor.memory.peak_memory import PeakMemory
from autotune.predictor.memory.precision import FP32_BYTES, element_bytes, master_bytes
from autotune.predictor.memory.sharding import tokens_of_rank, zero_size
from autotune.predictor.memory.states import StatesModel
from autotune.predictor.reserved.allocator import LARGE_POOL_BYTES, Allocator
from autotune.predictor.reserved.described_step import Described, described
from autotune.predictor.reserved.engine import Engine, EnginePlan
from autotune.predictor.reserved.zero0 import Stage0
from autotune.predictor.reserved.zero3 import Stage3
from autotune.predictor.reserved.zero12 import Stages12
from autotune.profile.script import AllocationScript, MicroStep
from autotune.profile.variant import Recipe, Variant
from autotune.question.workload import Method, ModelShape, Workload
from autotune.space.deepspeed_config import stepped_elements
from autotune.space.optimizers import OPTIMIZERS, StateForm
from autotune.space.strategy import Strategy

__all__ = ["ReservedModel", "ReservedPeak", "ScriptSource"]

ScriptSource = Callable[[ModelShape, Recipe, int], AllocationScript | str | None]
"""Gives the script of a model for a recipe and a sequence length, or in words why there is none;
None if it is not known yet."""

_CONTEXT_BYTES = 1_400_000_000
"""Bytes of a GPU that the allocator cannot use (context, kernels): 1.30 GiB in 24 trials on an
H100."""

_UNCERTAINTY = 0.08
"""Uncertainty of a simulated peak, as a fraction of it, in both directions.

Measured in 38 trials of nine architectures other than Llama on one H100, to which nothing was
fitted: 36 were within 0.5 %, the others off by 5.7 and 7.3 %.
"""

_NO_BLOCK_BYTES = 2**62
"""Leaving out blocks of up to this size leaves only the events of weights."""

_NUM_STEPS = 3
"""Optimizer steps that are simulated at most: the first creates the states, and the next two run
with them."""

_ANY_ELEMENTS = 2**62

_FOLLOWED = frozenset(
    (
        "zero_stage",
        "sequence_parallel_size",
        "offload_optimizer",
        "micro_batch_size",
        "checkpoint_interval",
        "checkpoint_scope",
        "mlp_tiles",
        "loss_tiles",
        "optimizer",
        "precision",
        *(f"{group}_precision" for group in ModuleGroup),
        "master_weights",
        "tf32",
        "reduce_bucket_size",
        "overlap_comm",
        "fused_kernels",
        "attention",
        "batching",
        "experts_implementation",
        "lora_rank",
        "lora_alpha",
        "lora_targets",
    )
)
"""Knobs that the simulation follows, or that allocate nothing. A strategy is not simulated if any
other knob, such as a new one, is not at its default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReservedPeak:
    """The reserved peak over all steps."""

    reserved_bytes: int
    allocated_bytes: int
    num_retries: int
    """How often the device was full and free memory was unmapped."""
    moment: str
    """Moment at which the peak was reached first."""
    parts: tuple[tuple[str, int], ...]
    """Bytes live at that moment, by purpose; without blocks of up to 1 MiB."""
    is_described: bool = False
    """Whether activations are counted, because their kernels are not installed here."""

    @property
    def lower_bytes(self) -> int:
        """Lower bound of the reserved peak; if the device was full, at most the live tensors."""
        lower = int((1 - _UNCERTAINTY) * self.reserved_bytes)
        return min(lower, self.allocated_bytes) if self.num_retries else lower

    @property
    def upper_bytes(self) -> int:
        """Upper bound of the reserved peak."""
        return int((1 + _UNCERTAINTY) * self.reserved_bytes)

    def beside(self, weight_bytes: int) -> ReservedPeak:
        """The same with weights that no step reads."""
        if not weight_bytes:
            return self
        parts = dict(self.parts)
        parts["weights"] = parts.get("weights", 0) + weight_bytes
        return replace(
            self,
            reserved_bytes=self.reserved_bytes + weight_bytes,
            allocated_bytes=self.allocated_bytes + weight_bytes,
            parts=tuple(parts.items()),
        )

    def instead_of(self, counted: PeakMemory, *, num_ranks: int) -> PeakMemory:
        """The peak of the worst rank as simulated.

        Args:
            counted: the peak by the formula.
            num_ranks: ranks of the trial. No allocations of several ranks were recorded, so the
                bounds then include the formula's.
        """
        lower, upper = self.lower_bytes, self.upper_bytes
        if num_ranks > 1 or self.is_described:
            lower, upper = min(lower, counted.lower_bytes), max(upper, counted.upper_bytes)
        return replace(
            counted,
            expected_bytes=self.reserved_bytes,
            allocated_bytes=self.allocated_bytes,
            lower_bytes=lower,
            upper_bytes=upper,
            moments={self.moment: dict(self.parts)},
            init_beside_bytes=0,
        )


class ReservedModel:
    """Reserved peaks of any strategy whose allocations are known.

    Args:
        workload: what is trained.
        hardware: what it runs on.
        states: the model of states.
        script_of: the source of scripts.
        token_of: the counted bytes of a token, for kernels that are not installed here.
    """

    def __init__(
        self,
        workload: Workload,
        hardware: Hardware,
        states: StatesModel,
        script_of: ScriptSource,
        token_of: Callable[[Strategy], TokenBytes],
    ) -> None:
        self._workload = workload
        self._hardware = hardware
        self._states = states
        self._script_of = script_of
        self._token_of = token_of
        self._capacity_bytes = hardware.device_memory_bytes - _CONTEXT_BYTES
        self._micro_steps: dict[tuple[Recipe, int], MicroStep] = {}
        self._described: set[tuple[Recipe, int]] = set()
        self._peaks: dict[tuple[Recipe, int, EnginePlan], ReservedPeak] = {}

    def recipe(self, strategy: Strategy) -> Recipe | None:
        """The recipe of a strategy's script; None if its allocations are not known."""
        if not self._is_known(strategy):
            return None
        workload = self._workload
        rank = strategy.lora_rank
        variant = Variant(
            attention=strategy.attention,
            element_bytes=element_bytes(strategy),
            fused_kernels=strategy.fused_kernels,
            experts=strategy.experts_implementation,
            lora_rank=rank,
            lora_targets=workload.adapter_targets(strategy.lora_targets) if rank else (),
        )
        has_scope = strategy.checkpoint_interval > 0
        return Recipe(
            variant=variant,
            checkpoint_interval=strategy.checkpoint_interval,
            checkpoint_scope=strategy.checkpoint_scope if has_scope else CheckpointScope.LAYER,
            mlp_tiles=strategy.mlp_tiles,
            loss_tiles=strategy.loss_tiles,
            sequence_parallel_size=strategy.sequence_parallel_size,
            gathers_weights=(
                self._workload.method is Method.QLORA
                or (strategy.zero_stage == 3 and self._hardware.num_devices > 1)
            ),
        )

    def peak(self, strategy: Strategy) -> ReservedPeak | None:
        """The reserved peak of a strategy; None if it cannot be simulated."""
        recipe = self.recipe(strategy)
        if recipe is None:
            return None
        num_samples = strategy.micro_batch_size
        micro_step = self._micro_step(recipe, strategy)
        if micro_step is None:
            return None
        plan = self._plan(strategy, micro_step)
        key = (recipe, num_samples, plan)
        if key not in self._peaks:
            first = None
            if recipe.checkpoint_interval > 1:
                # The very first forward keeps every layer's input; see `_Span.call`.
                first = self._micro_step(replace(recipe, checkpoint_interval=1), strategy)
            # A frozen tower is there from the beginning to the end, and nothing touches it.
            tower = self._tower_bytes(strategy)
            peak = _simulate(micro_step, first, plan, self._capacity_bytes - tower)
            peak = peak.beside(tower)
            self._peaks[key] = replace(peak, is_described=(recipe, num_samples) in self._described)
        return self._peaks[key]

    def _tower_bytes(self, strategy: Strategy) -> int:
        """Bytes of a vision tower's weights on one rank."""
        size = element_bytes(strategy) * self._workload.model.frozen_tower_parameters
        divisor = zero_size(strategy, self._hardware.num_devices)
        return size // (divisor if strategy.zero_stage == 3 else 1)

    def _is_known(self, strategy: Strategy) -> bool:
        stage, ranks = strategy.zero_stage, self._hardware.num_devices
        # Stage 0 is simulated only with 16-bit weights, which have fp32 masters there. ZeRO-3 with
        # re-entrant checkpoints on one rank took 14 % more in a trial than was simulated.
        has_engine = (
            stage in (1, 2)
            or (stage == 3 and (ranks > 1 or not strategy.checkpoint_interval))
            or (
                stage == 0
                and strategy.precision is not Precision.FP32
                and strategy.master_weights is MasterWeights.FP32
            )
        )
        return (
            self._hardware.device_type is DeviceType.CUDA
            and not self._workload.model.trains_tower
            and OPTIMIZERS[strategy.optimizer].is_step_simulated
            and strategy.offload_optimizer is not Offload.NVME
            and not strategy.has_group_precisions
            and has_engine
            # The mask of padding, and what is copied for it, are not traced.
            and not has_mask(self._workload, strategy)
            and all(
                getattr(strategy, knob.name) == knob.default
                for knob in fields(strategy)
                if knob.name not in _FOLLOWED
            )
        )

    def _micro_step(self, recipe: Recipe, strategy: Strategy) -> MicroStep | None:
        key = (recipe, strategy.micro_batch_size)
        if key not in self._micro_steps:
            script = self._script_of(self._workload.model, recipe, self._workload.longest)
            if script is None:
                return None
            if isinstance(script, str):
                return self._describe(recipe, strategy)
            num_samples = strategy.micro_batch_size
            self._micro_steps[key] = script.micro_step(num_samples, least_bytes=LARGE_POOL_BYTES)
        return self._micro_steps[key]

    def _describe(self, recipe: Recipe, strategy: Strategy) -> MicroStep | None:
        """Describe a micro-step of fused kernels that are not installed here.

        Otherwise a table would compare simulated strategies with ones estimated by the formula.
        """
        if not recipe.variant.fused_kernels:
            return None
        shape, seq_len, num_samples = (
            self._workload.model,
            self._workload.longest,
            strategy.micro_batch_size,
        )
        plain = replace(recipe, variant=replace(recipe.variant, fused_kernels=False))
        script = self._script_of(shape, plain, seq_len)
        if script is None or isinstance(script, str):
            return None
        is_whole = recipe.checkpoint_scope is CheckpointScope.LAYER
        head_bytes = element_bytes(strategy) * shape.vocab_size * shape.hidden_size
        what = Described(
            token=self._token_of(strategy),
            num_tokens=tokens_of_rank(strategy, seq_len),
            num_layers=shape.num_hidden_layers,
            checkpoint_interval=recipe.checkpoint_interval if is_whole else 0,
            head_gradient_bytes=0 if strategy.lora_rank else head_bytes,
        )
        frame = script.micro_step(num_samples, least_bytes=_NO_BLOCK_BYTES)
        key = (recipe, num_samples)
        self._described.add(key)
        self._micro_steps[key] = described(frame, what)
        return self._micro_steps[key]

    def _plan(self, strategy: Strategy, micro_step: MicroStep) -> EnginePlan:
        e = element_bytes(strategy)
        ranks = self._hardware.num_devices
        weights = sum(weight.size_bytes for weight in micro_step.weights)
        trained = sum(weight.size_bytes for weight in micro_step.weights if weight.is_trained)
        shape = self._workload.model
        return EnginePlan(
            zero_stage=strategy.zero_stage,
            num_ranks=zero_size(strategy, ranks),
            accumulation=min(2, self._states.accumulation(strategy)),
            element_bytes=e,
            master_bytes=master_bytes(strategy),
            group_elements=OPTIMIZERS[strategy.optimizer].most_elements or _ANY_ELEMENTS,
            state_bytes=_state_bytes(strategy),
            bucket_elements=min(strategy.reduce_bucket_size, trained // e),
            reduce_bytes=e if strategy.sequence_parallel_size == 1 else FP32_BYTES,
            overlaps=overlaps(strategy) and ranks > 1,
            sub_group_elements=stepped_elements(self._workload, strategy, ranks),
            is_offloaded=strategy.offload_optimizer is not Offload.NONE,
            tied_bytes=e * shape.vocab_size * shape.hidden_size * shape.tie_word_embeddings,
            flattens_on_device=weights + trained < self._hardware.device_memory_bytes,
            logits_bytes=self._logits_bytes(strategy),
            packed_sizes=self._packed_sizes(e),
        )

    def _packed_sizes(self, element_bytes: int) -> frozenset[int]:
        """Bytes of the weights that QLoRA keeps in 4 bit, as they would be whole."""
        if self._workload.method is not Method.QLORA:
            return frozenset()
        shape = self._workload.model
        linears = [*shape.attention_linears.values(), *shape.mlp_linears.values()]
        return frozenset(element_bytes * inputs * outputs for inputs, outputs in linears)

    def _logits_bytes(self, strategy: Strategy) -> int:
        if strategy.fused_kernels or strategy.loss_tiles > 1:
            return 0
        tokens = tokens_of_rank(strategy, self._workload.longest)
        return element_bytes(strategy) * tokens * self._workload.model.vocab_size


def _state_bytes(strategy: Strategy) -> tuple[float, ...]:
    """Bytes for each parameter on the device, one number for each state tensor, in order."""
    facts = OPTIMIZERS[strategy.optimizer]
    in_8bit = facts.states.count(StateForm.BLOCKWISE_8BIT)
    if in_8bit:
        return (() if facts.is_paged else (1,) * in_8bit) + (ABSMAX_BYTES,) * in_8bit
    return tuple(state_bytes(form, master_bytes(strategy)) for form in facts.states)


def _simulate(
    micro_step: MicroStep, first: MicroStep | None, plan: EnginePlan, capacity_bytes: int
) -> ReservedPeak:
    allocator = Allocator(capacity_bytes)
    engines: dict[int, type[Engine]] = {0: Stage0, 1: Stages12, 2: Stages12, 3: Stage3}
    engines[plan.zero_stage](allocator, plan, micro_step, first).run(_NUM_STEPS)
    return ReservedPeak(
        reserved_bytes=allocator.peak_reserved_bytes,
        allocated_bytes=allocator.peak_allocated_bytes,
        num_retries=allocator.num_retries,
        moment=allocator.peak_moment,
        parts=tuple((part, size) for part, size in allocator.peak_parts.items() if part and size),
    )
