from __future__ import annotations

from autotune.deepspeed_config import deepspeed_config
from autotune.hardware import DeviceType, Hardware
from autotune.predictor.states import StatesModel
from autotune.strategy import Strategy
from autotune.workload import Workload, load_model_shape


def test_the_bucket_is_the_one_that_deepspeed_is_given(cpu_hardware: Hardware) -> None:
    for model in ("125M", "1.1B"):
        workload = Workload(model=load_model_shape(model), seq_len=64, global_batch_size=4)
        strategy = Strategy(zero_stage=2)
        config = deepspeed_config(workload, strategy, num_devices=2, device_type=DeviceType.CPU)
        bucket = config["zero_optimization"]["reduce_bucket_size"]

        states = StatesModel(workload, cpu_hardware).of(strategy)
        # Two of them where communication overlaps with backward.
        assert states.buckets == 2 * 2 * bucket
        assert config["zero_optimization"]["overlap_comm"]


def test_stage_1_holds_all_gradients_between_micro_steps_and_stage_2_its_part(
    cpu_hardware: Hardware,
) -> None:
    workload = Workload(model=load_model_shape("125M"), seq_len=64, global_batch_size=8)
    model = StatesModel(workload, cpu_hardware)
    whole = 2 * workload.model.num_parameters

    assert model.of(Strategy(zero_stage=1)).accumulated_gradients == whole
    assert model.of(Strategy(zero_stage=2)).accumulated_gradients == whole // 2
