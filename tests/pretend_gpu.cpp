// Answers for CUDA where there is no GPU: there is one device, number 0, with one stream, and whatever is
// asked of it is done already. Fake tensors need no more, since they have no storage.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

struct OneDevice : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static Device zero() { return Device(DeviceType::CUDA, 0); }
  static Stream only() { return Stream(Stream::DEFAULT, zero()); }
  Device exchangeDevice(Device) const override { return zero(); }
  Device getDevice() const override { return zero(); }
  Stream getStream(Device) const noexcept override { return only(); }
  Stream getNewStream(Device, int) const override { return only(); }
  Stream exchangeStream(Stream) const noexcept override { return only(); }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

struct Present : at::CUDAHooksInterface {
  explicit Present(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};

// Hooks are looked up by name once; in a torch with CUDA these come before its own.
namespace at {
C10_REGISTER_TYPED_CLASS_WITH_PRIORITY(CUDAHooksRegistry, "CUDAHooks", c10::REGISTRY_PREFERRED, Present)
}  // namespace at

// The guard is whichever was set last, so it is set once torch is imported.
extern "C" void set_guard() {
  static OneDevice guard;
  auto device = static_cast<size_t>(DeviceType::CUDA);
  c10::impl::device_guard_impl_registry[device].store(&guard);
}
