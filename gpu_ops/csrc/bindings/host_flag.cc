// set_stop, get_stop, event_record, event_wait: host cells, read and written through their own pointer.
// Indexing a pinned Paddle tensor from Python silently moves it to the GPU, so Python never touches these cells itself.
#include "kernels/device/host_flag.h"

#include <cstring>

#include "kernels/device/cuda/events.h"
#include "bindings/device.h"

namespace {
void check_host(const paddle::Tensor& tensor, const char* name) {
  PD_CHECK(!tensor.is_gpu(), name, ": lies on the GPU, needs to lie on the host");
}
}  // namespace

void SetStop(const paddle::Tensor& flag, bool value) {
  check_tensor(flag, "flag", paddle::DataType::BOOL, 1);
  check_host(flag, "flag");
  __atomic_store_n(mutable_data<bool>(flag), value, __ATOMIC_RELEASE);
}

std::vector<paddle::Tensor> GetStop(const paddle::Tensor& flag) {
  check_tensor(flag, "flag", paddle::DataType::BOOL, 1);
  check_host(flag, "flag");
  auto out = paddle::empty({1}, paddle::DataType::BOOL, paddle::CPUPlace());
  *out.data<bool>() = __atomic_load_n(flag.data<bool>(), __ATOMIC_ACQUIRE);
  return {out};
}

void EventRecord(const paddle::Tensor& cell, int64_t ticket) {
  check_tensor(cell, "cell", paddle::DataType::INT64, 1);
  check_host(cell, "cell");
  if constexpr (kWithCuda) {
    // A pinned cell belongs to the current GPU's stream.
    if (cell.is_gpu_pinned()) {
      return on_device([&] { bireme::event_record_cuda(cell.data<int64_t>(), ticket, current_stream()); });
    }
  }
  bireme::event_record_cpu(mutable_data<int64_t>(cell), ticket);
}

void EventWait(const paddle::Tensor& cell, int64_t ticket) {
  check_tensor(cell, "cell", paddle::DataType::INT64, 1);
  check_host(cell, "cell");
  if constexpr (kWithCuda) {
    if (cell.is_gpu_pinned()) return on_device([&] { bireme::event_wait_cuda(mutable_data<int64_t>(cell), ticket); });
  }
  bireme::event_wait_cpu(cell.data<int64_t>(), ticket);
}

// Copies without waiting where one side is on the GPU; the host side should be pinned.
void CopyAsync(const paddle::Tensor& destination, const paddle::Tensor& source) {
  PD_CHECK(source.dtype() == destination.dtype() && source.numel() == destination.numel(), "source: has ", source.numel(),
           " elements of ", phi::DataTypeToString(source.dtype()), ", needs ", destination.numel(), " of ",
           phi::DataTypeToString(destination.dtype()));
  if (source.numel() == 0) return;
  const size_t bytes = source.numel() * phi::SizeOf(source.dtype());
  if constexpr (kWithCuda) {
    if (source.is_gpu() || destination.is_gpu()) {
      return on_device([&] {
        bireme::copy_async_cuda(source.data(), raw_data(destination), bytes,
                                stream_of(source.is_gpu() ? source : destination));
      });
    }
  }
  check_host(source, "source");
  check_host(destination, "destination");
  std::memcpy(raw_data(destination), source.data(), bytes);
}

PD_BUILD_OP(bireme_copy_async)
    .Inputs({"destination", "source"}).Outputs({"destination_out"}).SetInplaceMap({{"destination", "destination_out"}})
    .SetKernelFn(PD_KERNEL(CopyAsync));
PD_BUILD_OP(bireme_get_stop).Inputs({"flag"}).Outputs({"value"}).SetKernelFn(PD_KERNEL(GetStop));
PD_BUILD_OP(bireme_set_stop)
    .Inputs({"flag"}).Attrs({"value: bool"}).Outputs({"flag_out"}).SetInplaceMap({{"flag", "flag_out"}})
    .SetKernelFn(PD_KERNEL(SetStop));
PD_BUILD_OP(bireme_event_record)
    .Inputs({"cell"}).Attrs({"ticket: int64_t"}).Outputs({"cell_out"}).SetInplaceMap({{"cell", "cell_out"}})
    .SetKernelFn(PD_KERNEL(EventRecord));
PD_BUILD_OP(bireme_event_wait)
    .Inputs({"cell"}).Attrs({"ticket: int64_t"}).Outputs({"cell_out"}).SetInplaceMap({{"cell", "cell_out"}})
    .SetKernelFn(PD_KERNEL(EventWait));
