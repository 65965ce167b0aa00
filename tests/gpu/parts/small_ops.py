"""Every kernel once or twice over small, odd shapes, compared with its twin: for compute-sanitizer, which slows code much.

compute-sanitizer --tool memcheck python -m tests.gpu.parts.small_ops
"""

from __future__ import annotations

import paddle

from tests.gpu import test_attention, test_decode_ops, test_layers, test_linear, test_sampling, test_state
from tests.gpu.parts.tensors import gpu, pinned


def main() -> None:
    paddle.set_device("gpu")
    for dtype in ("bfloat16", "float16"):
        test_layers.test_rms_norm_equals_twin(3, 576, dtype)
        test_layers.test_add_rms_norm_equals_twin(1, 8, dtype)
        test_layers.test_rms_norm_add_equals_twin(3, 576, dtype)
        test_layers.test_qk_norm_equals_twin(3, 7, 1, 80, dtype)
        test_layers.test_projection_norm_equals_twin(3, 560, 80, dtype)
        test_layers.test_swiglu_equals_twin(3, 40, dtype)
        test_layers.test_embedding_and_gather_equal_twins(7, 100, 576, dtype)
    test_linear.test_linear_equals_twin(3, 576, 960, True, False, "bfloat16")
    for rows in (3, 11, 20, 40):
        test_decode_ops.test_small_batch_linear_equals_twin(rows, 200, 72, rows % 2 == 1, True, True, "bfloat16")
        test_decode_ops.test_add_small_batch_linear_equals_twin(rows, 200, 72, "bfloat16")
    for shape in ((16, 9, 3, 64), (32, 4, 2, 80), (16, 14, 2, 96), (64, 8, 2, 128)):
        test_attention.test_rotary_kv_write_equals_twin(*shape, "bfloat16")
        test_attention.test_decoding_equals_twin(False, *shape, "bfloat16")
        for invariant in (False, True):
            test_decode_ops.test_decode_attention_equals_twin(shape, [1, 17, 300], invariant, "bfloat16")
            test_attention.test_chunks_and_mixed_steps_equal_twin(invariant, *shape, "bfloat16")
    for seed in range(3):
        test_state.test_apply_step_equals_twin(seed, pinned)
        test_state.test_insert_requests_equals_twin(seed, gpu)
        test_state.test_pack_tokens_equals_twin(seed)
        test_state.test_step_end_equals_twins(seed)
    for seed in range(6):
        test_sampling.test_apply_penalties_equals_twin(seed)
        test_sampling.test_apply_token_masks_equals_twin(seed)
        test_sampling.test_apply_temperature_equals_twin(seed)
        test_sampling.test_sample_equals_twin(seed)
        test_sampling.test_masks_given_to_sample_do_what_masks_applied_before_it_do(seed)
        test_sampling.test_token_logprobs_equal_twin(seed)
    print("small ops: all equal to their twins")


if __name__ == "__main__":
    main()
