// float16 and bfloat16 as float, without instructions for them.
#pragma once
#include <cstdint>
#include <cstring>

namespace bireme {
namespace {

inline float half_to_float(const uint8_t* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13;
  const uint32_t exponent = bits & 0x0f800000;
  bits += (127 - 15) << 23;
  float value;
  if (exponent == 0x0f800000) {
    bits += (128 - 16) << 23;  // infinity or NaN
    std::memcpy(&value, &bits, sizeof value);
  } else if (exponent == 0) {
    bits += 1 << 23;  // subnormal: as a normal number with a one in front, which is taken away
    std::memcpy(&value, &bits, sizeof value);
    value -= 0x1p-14f;
  } else {
    std::memcpy(&value, &bits, sizeof value);
  }
  return half & 0x8000 ? -value : value;
}

inline float bfloat_to_float(const uint8_t* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace
}  // namespace bireme
