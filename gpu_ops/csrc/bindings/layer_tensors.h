// What fused_layers is given, by name, for the devices' own checks.
#pragma once
#include "bindings/checks.h"

using Tensors = std::vector<paddle::Tensor>;
using OptionalTensors = paddle::optional<std::vector<paddle::Tensor>>;

// One tensor a layer each.
struct LayerTensors {
  const Tensors &qkv, &o, &gate_up, &down, &post_attention_norm, &next_norm;
  const OptionalTensors &qkv_bias, &q_norm, &k_norm, &o_bias, &gate_up_bias, &down_bias;
  const Tensors &k_caches, &v_caches;

  size_t count() const { return qkv.size(); }

  void check_counts() const {
    PD_CHECK(count() > 0, "qkv: is of no layer");
    check_count(o, "o");
    check_count(gate_up, "gate_up");
    check_count(down, "down");
    check_count(post_attention_norm, "post_attention_norm");
    check_count(next_norm, "next_norm");
    check_count(qkv_bias, "qkv_bias");
    check_count(q_norm, "q_norm");
    check_count(k_norm, "k_norm");
    check_count(o_bias, "o_bias");
    check_count(gate_up_bias, "gate_up_bias");
    check_count(down_bias, "down_bias");
    check_count(k_caches, "k_cache");
    check_count(v_caches, "v_cache");
    PD_CHECK(static_cast<bool>(q_norm) == static_cast<bool>(k_norm), "k_norm: needs to come with q_norm, or neither");
  }

 private:
  void check_count(const Tensors& tensors, const char* name) const {
    PD_CHECK(tensors.size() == count(), name, ": is of ", tensors.size(), " layers, needs ", count());
  }
  void check_count(const OptionalTensors& tensors, const char* name) const {
    if (tensors) check_count(*tensors, name);
  }
};

// What all layers share.
struct StepTensors {
  const paddle::Tensor &residual, &input_norm, &cos_sin, &positions, &batch_id_per_token, &block_tables;
  const paddle::optional<paddle::Tensor>& cu_seqlens_q;
  int64_t q_heads, kv_heads;
  float eps, scale;
  int64_t max_rows_per_slot;
  bool batch_invariant;
};
