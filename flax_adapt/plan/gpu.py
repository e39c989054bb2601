"""Devices of one host of GPUs that are not there: what XLA must know of them to compile."""

from typing import Any

from jax.experimental import topologies

# An H100 SXM as XLA's CUDA compiler describes it (xla.gpu.GpuTargetConfigProto).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Without a GPU to try them on, XLA finds no tiles for some fusions of products: then cuBLAS.
WITHOUT_TRITON = {"xla_gpu_enable_triton_gemm": False}


def describe_devices(count: int) -> list[Any]:
    """Returns `count` H100 of one host, to compile for."""
    found = topologies.get_topology_desc(
        "", platform="cuda", target_config=H100, topology=f"1x1x{count}"
    )
    return found.devices
