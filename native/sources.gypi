{
  "variables": {
    "core_sources": [
      "native/core/status.cc",
      "native/core/dtype.cc"
    ],
    "avx2_sources": [],
    "avx512_sources": [],
    "binding_sources": [],
    "test_sources": []
  }
}
