// State ops take the tensors of their slot fields first. Which, in what order and of what shape comes from the generated struct
// of the op, so that bindings name no field twice.
#pragma once
#include <array>
#include <type_traits>
#include <utility>

#include "bindings/device.h"
#include "generated/slot_fields.h"

template <typename T>
constexpr paddle::DataType data_type() {
  if (std::is_same_v<T, bool>) return paddle::DataType::BOOL;
  if (std::is_same_v<T, int32_t>) return paddle::DataType::INT32;
  if (std::is_same_v<T, int64_t>) return paddle::DataType::INT64;
  static_assert(std::is_same_v<T, bool> || std::is_same_v<T, int32_t> || std::is_same_v<T, int64_t> || std::is_same_v<T, float>);
  return paddle::DataType::FLOAT32;
}

// The checked fields of an op, and where they lie.
template <typename State>
struct Slots {
  State state;
  const paddle::Tensor& first;

  bool on_gpu() const { return first.is_gpu(); }
  bireme::Stream stream() const { return stream_of(first); }
};

// Sizes that several fields share are those of the first; all lie where the first does, or in pinned memory beside it.
template <typename State>
Slots<State> read_slots(const std::array<const paddle::Tensor*, State::kFields>& tensors) {
  Slots<State> slots{{}, *tensors[0]};
  auto next = tensors.begin();
  slots.state.visit_fields([&](const char* name, auto*& data, auto&&... sizes) {
    using T = std::remove_const_t<std::remove_pointer_t<std::remove_reference_t<decltype(data)>>>;
    const paddle::Tensor& tensor = **next++;
    if (&tensor == &slots.first) check_place(tensor, name);
    static_assert(kAnySize == -1, "sizes of a state are -1 until they are known");
    check_shape(tensor, name, data_type<T>(), {sizes...});
    check_staging(tensor, name, slots.on_gpu());
    const std::vector<int64_t> shape = tensor.shape();
    size_t axis = 0;
    ((sizes = shape[axis++]), ...);
    data = data_or_null<T>(tensor);
  });
  return slots;
}

// kOp(slots, further arguments ...) as a function of tensors, which is what Paddle registers.
template <typename State, auto kOp, typename Fields = std::make_index_sequence<State::kFields>, typename Op = decltype(kOp)>
struct StateOp;

template <typename State, auto kOp, size_t... kField, typename Result, typename... Rest>
struct StateOp<State, kOp, std::index_sequence<kField...>, Result (*)(const Slots<State>&, Rest...)> {
  template <size_t>
  using Field = const paddle::Tensor&;

  static Result run(Field<kField>... fields, Rest... rest) {
    return kOp(read_slots<State>({&fields...}), rest...);
  }
};

// Names of an op's inputs: its fields and then the rest.
template <typename State>
std::vector<std::string> state_inputs(std::initializer_list<std::string> rest) {
  std::vector<std::string> names;
  State{}.visit_fields([&](const char* name, auto&&...) { names.push_back(name); });
  names.insert(names.end(), rest.begin(), rest.end());
  return names;
}
