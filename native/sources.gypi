{
  "variables": {
    "core_sources": [
      "native/core/status.cc",
      "native/core/dtype.cc",
      "native/core/thread_pool.cc",
      "native/core/cpu_features.cc"
    ],
    "avx2_sources": [],
    "avx512_sources": [],
    "binding_sources": [],
    "test_sources": []
  }
}
