{
  "variables": {
    "core_sources": [
      "native/core/status.cc",
      "native/core/dtype.cc",
      "native/core/thread_pool.cc",
      "native/core/cpu_features.cc",
      "native/core/read_ceiling.cc",
      "native/checkpoint/json_reader.cc",
      "native/checkpoint/safetensors_header.cc",
      "native/checkpoint/mapped_file.cc",
      "native/sparse/format.cc",
      "native/sparse/tile.cc",
      "native/sparse/packed_matrix.cc",
      "native/sparse/random_matrix.cc",
      "native/kernels/cpu/kernels.cc",
      "native/kernels/cpu/kernels_scalar.cc",
      "native/moe/router.cc",
      "native/engine/weight_ref.cc",
      "native/engine/linear.cc",
      "native/engine/batch.cc",
      "native/engine/attention.cc",
      "native/engine/feed_forward.cc",
      "native/engine/decoder_layer.cc",
      "native/engine/sampler.cc",
      "native/engine/engine.cc",
      "native/prune/panel_kernels.cc",
      "native/prune/panel_kernels_scalar.cc",
      "native/prune/linalg.cc",
      "native/prune/statistics.cc",
      "native/prune/score.cc",
      "native/prune/mask.cc",
      "native/prune/inverse_factor.cc",
      "native/prune/sparsegpt.cc",
      "native/prune/prune_matrix.cc",
      "native/prune/hidden_file.cc",
      "native/prune/layer_pruner.cc"
    ],
    "avx2_sources": [
      "native/kernels/cpu/kernels_avx2.cc",
      "native/prune/panel_kernels_avx2.cc"
    ],
    "avx512_sources": [
      "native/kernels/cpu/kernels_avx512.cc",
      "native/prune/panel_kernels_avx512.cc"
    ],
    "neon_sources": [
      "native/kernels/cpu/kernels_neon.cc"
    ],
    "binding_sources": [
      "native/binding/addon.cc",
      "native/binding/error_codes.cc",
      "native/binding/safetensors_file.cc",
      "native/binding/job.cc",
      "native/binding/spec_reader.cc",
      "native/binding/engine.cc",
      "native/binding/features.cc",
      "native/binding/pruner.cc",
      "native/binding/matrix.cc"
    ],
    "test_sources": [
      "native/test/safetensors_header_test.cc",
      "native/test/dtype_test.cc",
      "native/test/packed_matrix_test.cc",
      "native/test/matmul_test.cc",
      "native/test/rows_test.cc",
      "native/test/thread_pool_test.cc",
      "native/test/bench_test.cc",
      "native/test/router_test.cc",
      "native/test/sampler_test.cc",
      "native/test/prune_linalg_test.cc",
      "native/test/prune_statistics_test.cc",
      "native/test/prune_mask_test.cc",
      "native/test/prune_sparsegpt_test.cc",
      "native/test/prune_matrix_test.cc"
    ]
  }
}
