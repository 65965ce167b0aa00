// The part of cuBLASLt's stable C interface that `linear` uses, found at run time: the library that Paddle brought or loaded
// serves, and building needs no cuBLAS headers. Names and values are those of NVIDIA's documentation.
#pragma once
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels/device/cuda/device.h"

namespace bireme::lt {

using Handle = void*;
using Object = void*;  // matmul descriptor, matrix layout or preference

enum DataType : int { kFloat32 = 0, kFloat16 = 2, kBfloat16 = 14 };
constexpr int kCompute32F = 68;
constexpr int32_t kTranspose = 1;
enum DescAttribute : int { kDescTransA = 3, kDescEpilogue = 7, kDescBiasPointer = 8, kDescBiasType = 26 };
constexpr uint32_t kEpilogueBias = 4;
enum PreferenceAttribute : int { kMaxWorkspace = 1, kReductionSchemes = 3 };
constexpr uint32_t kReductionNone = 0;
enum AlgorithmAttribute : int { kSplitK = 2, kReductionScheme = 3 };

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

struct Library {
  int (*create)(Handle*);
  int (*desc_create)(Object*, int compute, int scale_type);
  int (*desc_destroy)(Object);
  int (*desc_set)(Object, int attribute, const void*, size_t);
  int (*layout_create)(Object*, int type, uint64_t rows, uint64_t columns, int64_t stride);
  int (*layout_destroy)(Object);
  int (*preference_create)(Object*);
  int (*preference_destroy)(Object);
  int (*preference_set)(Object, int attribute, const void*, size_t);
  int (*heuristic)(Handle, Object desc, Object a, Object b, Object c, Object d, Object preference, int wanted, Heuristic*,
                   int* found);
  int (*algorithm_get)(const Algorithm*, int attribute, void*, size_t, size_t* written);
  int (*matmul)(Handle, Object desc, const void* alpha, const void* a, Object a_layout, const void* b, Object b_layout,
                const void* beta, const void* c, Object c_layout, void* d, Object d_layout, const Algorithm*, void* workspace,
                size_t workspace_bytes, Stream);

  static const Library& get() {
    static const Library library;
    return library;
  }

 private:
  Library() {
    void* file = nullptr;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"}) {
      if ((file = dlopen(name, RTLD_NOW | RTLD_LOCAL))) break;
    }
    if (!file) throw std::runtime_error("linear: cuBLASLt not found: libcublasLt.so must be on the library path");
    find(file, "cublasLtCreate", create);
    find(file, "cublasLtMatmulDescCreate", desc_create);
    find(file, "cublasLtMatmulDescDestroy", desc_destroy);
    find(file, "cublasLtMatmulDescSetAttribute", desc_set);
    find(file, "cublasLtMatrixLayoutCreate", layout_create);
    find(file, "cublasLtMatrixLayoutDestroy", layout_destroy);
    find(file, "cublasLtMatmulPreferenceCreate", preference_create);
    find(file, "cublasLtMatmulPreferenceDestroy", preference_destroy);
    find(file, "cublasLtMatmulPreferenceSetAttribute", preference_set);
    find(file, "cublasLtMatmulAlgoGetHeuristic", heuristic);
    find(file, "cublasLtMatmulAlgoConfigGetAttribute", algorithm_get);
    find(file, "cublasLtMatmul", matmul);
  }
  template <typename Function>
  static void find(void* file, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(file, name));
    if (!function) throw std::runtime_error(std::string("linear: cuBLASLt has no ") + name);
  }
};

inline void check(int status, const char* what) {
  if (status) throw std::runtime_error(std::string("linear: ") + what + " failed with cuBLAS status " + std::to_string(status));
}

// Owns a descriptor, layout or preference.
class Owned {
 public:
  Owned(Object object, int (*destroy)(Object)) : object_(object), destroy_(destroy) {}
  Owned(const Owned&) = delete;
  ~Owned() { destroy_(object_); }
  operator Object() const { return object_; }

 private:
  Object object_;
  int (*destroy_)(Object);
};

}  // namespace bireme::lt
