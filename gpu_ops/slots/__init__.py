"""The device state of the request slots: its fields, the tensors and the C++ header that follow from them."""
