// set_stop, get_stop, event_record, event_wait: host cells, read and written through their own pointer.
// Indexing a pinned Paddle tensor from Python silently moves it to the GPU, so Python never touches these cells itself.
#include "../kernels/host_flag.h"

#include "checks.h"

void SetStop(const paddle::Tensor& flag, bool value) {
  check_tensor(flag, "flag", paddle::DataType::BOOL, 1);
  __atomic_store_n(mutable_data<bool>(flag), value, __ATOMIC_RELEASE);

}

std::vector<paddle::Tensor> GetStop(const paddle::Tensor& flag) {
  check_tensor(flag, "flag", paddle::DataType::BOOL, 1);
  auto out = paddle::empty({1}, paddle::DataType::BOOL, paddle::CPUPlace());
  *out.data<bool>() = __atomic_load_n(flag.data<bool>(), __ATOMIC_ACQUIRE);
  return {out};
}

void EventRecord(const paddle::Tensor& cell, int64_t ticket) {
  check_tensor(cell, "cell", paddle::DataType::INT64, 1);
  bireme::event_record_cpu(mutable_data<int64_t>(cell), ticket);
}

void EventWait(const paddle::Tensor& cell, int64_t ticket) {
  check_tensor(cell, "cell", paddle::DataType::INT64, 1);
  bireme::event_wait_cpu(cell.data<int64_t>(), ticket);
}

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
