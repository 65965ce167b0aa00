// C entry points to the forward kernels, for a test that builds them for several instruction sets and compares the bits.
#include "kernels/attention/attention.h"
#include "kernels/linear/linear.h"
#include "kernels/layers/norm.h"
#include "kernels/device/thread_pool.h"
#include "kernels/device/vec16.h"
#include "kernels/quantised/round_block.h"

extern "C" {

int tile_rows() { return bireme::kTileRows; }

// x [count], count a multiple of 16 -> e^x.
void exponential(const float* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += bireme::kLanes) bireme::store(out + i, bireme::exp(bireme::load(x + i)));
}

// x [blocks, 32], finite -> out [blocks, 11]: what a quantised weight's inputs become, their sums and the greatest magnitude.
void round_blocks(const float* x, int64_t blocks, int32_t* out) {
  for (int64_t i = 0; i < blocks; ++i, x += 32, out += 11) {
    const int32_t most = bireme::greatest_magnitude(x);
    float magnitude;
    std::memcpy(&magnitude, &most, sizeof most);
    const bireme::RoundedBlock block = bireme::round_block(x, 127.0f / magnitude);
    std::memcpy(out, block.words, sizeof block.words);
    out[8] = block.sum, out[9] = block.first_sum, out[10] = most;
  }
}

void linear(const float* x, int64_t rows, int64_t in_features, const float* weight, int64_t out_features, const float* bias,
            float* packed, float* y) {
  bireme::set_num_threads(2, 50);
  bireme::pack_weight_cpu(weight, out_features, in_features, packed);
  bireme::linear_cpu(x, rows, in_features, packed, out_features, bias, y);
}

void add_rms_norm(const float* x, float* residual, const float* weight, int64_t rows, int64_t hidden, float* out) {
  bireme::add_rms_norm_cpu(x, residual, weight, 1e-5f, rows, hidden, out);
}

void swiglu(const float* gate_up, int64_t rows, int64_t inner, float* out) {
  bireme::swiglu_cpu(gate_up, rows, inner, out);
}

// One slot whose block table is the identity; writes the cache of type `type`, then attends. Returns the faulty row or -1.
int64_t attend(float* qkv, const float* cos_sin, const int32_t* positions, const int32_t* slots, const int32_t* blocks,
               int64_t type, void* k_cache, void* v_cache, int64_t rows, int64_t q_heads, int64_t kv_heads, int64_t dim, int64_t num_blocks,
               int64_t block_size, float* out) {
  const bireme::AttentionShape shape{rows, q_heads, kv_heads, dim, num_blocks, block_size, 1, num_blocks};
  const bireme::KvCache cache{static_cast<bireme::KvType>(type), k_cache, v_cache};
  const auto fault = bireme::rotary_kv_write_cpu(qkv, cos_sin, num_blocks * block_size, positions, slots, blocks, cache, shape);
  if (fault.row >= 0) return fault.row;
  return bireme::paged_attention_cpu(qkv, cache, blocks, positions, slots, 0.125f, shape, out).row;
}

}  // extern "C"
