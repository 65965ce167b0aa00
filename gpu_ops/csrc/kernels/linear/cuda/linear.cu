#include "kernels/linear/cuda/linear.h"

#include <map>
#include <mutex>
#include <tuple>

#include "kernels/device/cuda/common.cuh"
#include "kernels/linear/cuda/cublas_lt.h"

namespace bireme {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;
// With batch_invariant: the number of rows for which the one algorithm of a weight shape is chosen.
constexpr int64_t kInvariantRows = 128;

struct DeviceState {
  lt::Handle handle = nullptr;
  void* workspace = nullptr;
};

DeviceState& device_state(int device) {
  static std::map<int, DeviceState> states;
  DeviceState& state = states[device];
  if (!state.handle) {
    lt::check(lt::Library::get().create(&state.handle), "cublasLtCreate");
    check_cuda(cudaMalloc(&state.workspace, kWorkspaceBytes), "linear workspace");
  }
  return state;
}

lt::Object layout(lt::DataType type, int64_t rows, int64_t columns) {
  lt::Object object;
  lt::check(lt::Library::get().layout_create(&object, type, rows, columns, rows), "cublasLtMatrixLayoutCreate");
  return object;
}

// Prompts come in every length; one algorithm serves those that are close.
int64_t bucket_of(const CudaLinear& l) {
  if (l.batch_invariant) return kInvariantRows;
  if (l.rows <= 64) return l.rows;
  const int64_t step = l.rows <= 512 ? 32 : 256;
  return (l.rows + step - 1) / step * step;
}

// In cuBLAS's columns: y^T [out, rows] = W^T^T [out, in] x^T [in, rows].
struct Problem {
  lt::Owned desc, a, b, d;

  static lt::DataType input_type(const CudaLinear& l) {
    return l.type == Half::kFloat16 ? lt::kFloat16 : lt::kBfloat16;
  }
  static lt::Object make_desc(const CudaLinear& l) {
    const lt::Library& library = lt::Library::get();
    lt::Object desc;
    lt::check(library.desc_create(&desc, lt::kCompute32F, lt::kFloat32), "cublasLtMatmulDescCreate");
    lt::check(library.desc_set(desc, lt::kDescTransA, &lt::kTranspose, sizeof lt::kTranspose), "transposition");
    if (l.bias) {
      const int32_t type = input_type(l);
      lt::check(library.desc_set(desc, lt::kDescEpilogue, &lt::kEpilogueBias, sizeof lt::kEpilogueBias), "bias");
      lt::check(library.desc_set(desc, lt::kDescBiasPointer, &l.bias, sizeof l.bias), "bias pointer");
      lt::check(library.desc_set(desc, lt::kDescBiasType, &type, sizeof type), "bias type");
    }
    return desc;
  }
  Problem(const CudaLinear& l, int64_t rows)
      : desc(make_desc(l), lt::Library::get().desc_destroy),
        a(layout(input_type(l), l.in_features, l.out_features), lt::Library::get().layout_destroy),
        b(layout(input_type(l), l.in_features, rows), lt::Library::get().layout_destroy),
        d(layout(l.float32_output ? lt::kFloat32 : input_type(l), l.out_features, rows), lt::Library::get().layout_destroy) {}
};

// Whether one block computes an element's whole sum.
bool sums_in_one_go(const lt::Algorithm& algorithm) {
  int32_t splits = 0;
  uint32_t reduction = 0;
  size_t written = 0;
  const lt::Library& library = lt::Library::get();
  lt::check(library.algorithm_get(&algorithm, lt::kSplitK, &splits, sizeof splits, &written), "split of an algorithm");
  lt::check(library.algorithm_get(&algorithm, lt::kReductionScheme, &reduction, sizeof reduction, &written), "reduction");
  return splits <= 1 && reduction == 0;
}

lt::Algorithm choose(const CudaLinear& l, int64_t rows, lt::Handle handle) {
  const lt::Library& library = lt::Library::get();
  const Problem problem(l, rows);
  lt::Object object;
  lt::check(library.preference_create(&object), "cublasLtMatmulPreferenceCreate");
  const lt::Owned preference(object, library.preference_destroy);
  lt::check(library.preference_set(preference, lt::kMaxWorkspace, &kWorkspaceBytes, sizeof kWorkspaceBytes), "workspace size");
  constexpr int kCandidates = 32;
  lt::Heuristic candidates[kCandidates];
  const auto find = [&](int wanted) {
    int found = 0;
    lt::check(library.heuristic(handle, problem.desc, problem.a, problem.b, problem.d, problem.d, preference, wanted, candidates,
                                &found),
              "cublasLtMatmulAlgoGetHeuristic");
    if (!found) throw std::runtime_error("linear: cuBLASLt has no algorithm for this shape");
    return found;
  };
  if (!l.batch_invariant) {
    find(1);
    return candidates[0].algorithm;
  }
  const int found = find(kCandidates);
  for (int i = 0; i < found; ++i) {
    if (sums_in_one_go(candidates[i].algorithm)) return candidates[i].algorithm;
  }
  // None of the fastest sums in one go: ask for those alone.
  lt::check(library.preference_set(preference, lt::kReductionSchemes, &lt::kReductionNone, sizeof lt::kReductionNone),
            "reduction schemes");
  find(1);
  return candidates[0].algorithm;
}

}  // namespace

void linear_cuda(const CudaLinear& l, Stream stream) {
  using Key = std::tuple<int, int64_t, int64_t, int64_t, Half, bool, bool, bool>;
  static std::mutex mutex;
  static std::map<Key, lt::Algorithm> algorithms;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  DeviceState& state = device_state(device);
  const int64_t bucket = bucket_of(l);
  const Key key{device, bucket, l.in_features, l.out_features, l.type, l.float32_output, l.bias != nullptr, l.batch_invariant};
  auto found = algorithms.find(key);
  if (found == algorithms.end()) found = algorithms.emplace(key, choose(l, bucket, state.handle)).first;

  const Problem problem(l, l.rows);
  const float one = 1, zero = 0;
  const auto run = [&](const lt::Algorithm& algorithm) {
    return lt::Library::get().matmul(state.handle, problem.desc, &one, l.weight, problem.a, l.x, problem.b, &zero, l.y, problem.d,
                                     l.y, problem.d, &algorithm, state.workspace, kWorkspaceBytes, stream);
  };
  int status = run(found->second);
  // An algorithm may refuse a neighbouring number of rows; another one is right only where bits may differ.
  if (status && !l.batch_invariant) status = run(choose(l, l.rows, state.handle));
  lt::check(status, "cublasLtMatmul");
}

}  // namespace bireme
