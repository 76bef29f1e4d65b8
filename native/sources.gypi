{
  "variables": {
    "core_sources": [
      "native/core/status.cc",
      "native/core/dtype.cc",
      "native/core/thread_pool.cc",
      "native/core/cpu_features.cc",
      "native/checkpoint/json_reader.cc",
      "native/checkpoint/safetensors_header.cc",
      "native/checkpoint/mapped_file.cc"
    ],
    "avx2_sources": [],
    "avx512_sources": [],
    "binding_sources": [
      "native/binding/addon.cc",
      "native/binding/error_codes.cc",
      "native/binding/safetensors_file.cc"
    ],
    "test_sources": [
      "native/test/safetensors_header_test.cc"
    ]
  }
}
